"""Reading the dedup window when a journal is opened: the uuids of the newest events.

To read a million uuids takes a second or two. Sinks deliver meanwhile; only `append` waits for it.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Final

import structlog

from bridge.journal import file
from bridge.journal.appender import Appender, Window
from bridge.journal.settings import DedupSettings
from bridge.journal.writer import Store

log = structlog.get_logger(__name__)

_UUID_BYTES: Final = 16
_PAGE: Final = 4096
"""Sequence numbers whose uuids are read at a time."""


class Remembered:
    """Reads the dedup window of a file that was just opened, and gives it to the appender.

    Attributes:
        done: Set when all uuids are remembered, or the journal is being closed.
    """

    def __init__(self, store: Store, settings: DedupSettings, appender: Appender, monotonic: Callable[[], float]) -> None:
        self._store = store
        self._seconds = settings.window
        # A uuid takes 40 bytes of the file at most (batches of one event), and all of them a quarter of the journal: nothing
        # else could free a journal that is full of uuids.
        self._max_events = max(1, min(settings.max_events, store.largest() // (4 * 40)))
        if self._max_events < settings.max_events:
            wanted, fewer = settings.max_events, self._max_events
            log.warning("fewer uuids are remembered than wanted: the journal is too small", wanted=wanted, remembered=fewer)
        self._appender = appender
        self._following = appender.next_seq
        # The clock may have been set between two starts, by an hour if the window is a day.
        self._since = appender.clock.now() - settings.window * (1 + 1 / 24)
        self._monotonic = monotonic
        # Nothing is older than that: nothing is pruned until it is read.
        appender.window = Window(settings.window, self._max_events, monotonic())
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="dedup-window")
        self._thread.start()

    def end(self) -> None:
        """Wait until nothing is read any more; the journal is being closed."""
        self._thread.join()

    def _run(self) -> None:
        while not self._store.closing.is_set() and not self._succeeds():
            self._store.closing.wait(0.25)
        self.done.set()

    def _succeeds(self) -> bool:
        """Read them; tell whether that was possible. Without them duplicates would pass, so nothing goes on without."""
        try:
            with suppress(file.JournalError), self._store.report_errors("uuids"):
                self._appender.window = self._read()
                return True
        except Exception as error:
            if "uuids" not in self._store.errors:
                log.exception("the journal has a bug: its uuids can't be read, and nothing is accepted")
            self._store.set_error("uuids", f"{self._store.path}: {type(error).__name__} while uuids are read, see the log")
        return False

    def _read(self) -> Window:
        with closing(file.connect(self._store.path, read_only=True)) as db:
            oldest = oldest_seen(db, self._since, self._max_events)
            first = self._following if oldest is None else oldest
            window = Window(self._seconds, self._max_events, self._monotonic(), first)
            damaged = 0
            for at, namespace, keys, missing in seen_keys(db, first, self._following):
                if self._store.closing.is_set():
                    return window
                window.remember(namespace, keys, at, self._monotonic())
                damaged += missing
        if damaged:
            log.error("remembered uuids are damaged; their events would be taken for new ones", batches=damaged)
        return window


def oldest_seen(db: sqlite3.Connection, since: float, limit: int) -> int | None:
    """Return the first sequence number to remember: of batches received after `since`, at most about `limit` uuids."""
    # Most often all of them fit, which SQLite finds out ten times as fast by itself.
    oldest, size = db.execute("SELECT min(first), total(length(uuids)) FROM seen WHERE received > ?", (since,)).fetchone()
    if size // _UUID_BYTES <= limit:
        return oldest  # type: ignore[no-any-return] # None if there is none
    for first, uuids in db.execute("SELECT first, length(uuids) FROM seen WHERE received > ? ORDER BY first DESC", (since,)):
        oldest = first
        limit -= uuids // _UUID_BYTES
        if limit <= 0:
            break
    return oldest  # type: ignore[no-any-return] # as above


def seen_keys(db: sqlite3.Connection, oldest: int, following: int) -> Iterator[tuple[int, str | None, list[bytes], int]]:
    """Yield the uuids of all batches of `[oldest, following)`: from which place, of which namespace, and how many are damaged.

    Some at a time, since a million of them would take 200 MiB. SQLite joins what many batches of one event have: to take it row
    by row takes twice as long. A row whose uuids are not whole is left out, since all that follow would be cut wrongly.
    """
    whole = f"length(CAST(uuids AS BLOB)) % {_UUID_BYTES} = 0"
    page = (
        f"SELECT namespace, group_concat(CASE WHEN {whole} THEN hex(CAST(uuids AS BLOB)) END, ''), total(NOT {whole})"
        " FROM seen WHERE first >= ? AND first < ? GROUP BY namespace"
    )
    for at in range(oldest, following, _PAGE):
        for namespace, joined, damaged in db.execute(page, (at, min(at + _PAGE, following))).fetchall():
            uuids = bytes.fromhex(joined or "")
            keys = [uuids[i : i + _UUID_BYTES] for i in range(0, len(uuids), _UUID_BYTES)]
            yield (at, namespace if isinstance(namespace, str) else None, keys, int(damaged))
