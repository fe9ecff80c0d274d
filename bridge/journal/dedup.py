"""Appending without duplicates: group commit, the dedup window, and the thread that reads the window when a journal is opened.

To read a million uuids takes a second or two. Sinks deliver meanwhile; only `append` waits for it.
"""

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Final, NamedTuple

import structlog

from bridge.event import Event
from bridge.journal import file, tables
from bridge.journal.model import Appended, Batch, StreamCounters
from bridge.journal.pruning import Space
from bridge.journal.settings import DedupSettings
from bridge.journal.writer import Store

log = structlog.get_logger(__name__)

_MAX_GROUP: Final = 256
"""Batches in one transaction at most."""

_UUID_BYTES: Final = 16
_PAGE: Final = 4096
"""Sequence numbers whose uuids are read at a time."""


class Window:
    """Remembers uuids for at least `seconds`, but no more than `max_events` of them (and those of one commit).

    Two generations make expiry free: new uuids go into the current one; when it is full or old it becomes the previous one,
    and what was the previous one is forgotten as a whole. Evicting one by one costs a hundred times as much.

    Attributes:
        oldest_seq: The first sequence number that is remembered; older uuids need not be kept on disk.
    """

    def __init__(self, seconds: float, max_events: int, now: float, first: int = 0) -> None:
        self.oldest_seq = first
        self._seconds = seconds
        self._half = max(1, max_events // 2)
        self._current: dict[bytes, None] = {}
        self._previous: dict[bytes, None] = {}
        self._began = now
        self._began_at = first

    def __len__(self) -> int:
        return len(self._current) + len(self._previous)

    def unseen(self, events: Iterable[Event], taken: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Of these events, those that are neither remembered nor among `taken`: uuid to JSON, in order."""
        current, previous = self._current, self._previous
        if taken:
            return {
                event.key: event.json
                for event in events
                if event.key not in current and event.key not in previous and event.key not in taken
            }
        return {event.key: event.json for event in events if event.key not in current and event.key not in previous}

    def remember(self, keys: Iterable[bytes], first: int, now: float) -> None:
        """Remember uuids of events that were stored from `first` on, at monotonic time `now`."""
        if len(self._current) >= self._half or now - self._began > self._seconds:
            self._previous, self._current = self._current, {}
            self.oldest_seq, self._began_at, self._began = self._began_at, first, now
        self._current.update(dict.fromkeys(keys))


class Ticket:
    """A batch that waits for the next commit; `outcome` is None until then."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.outcome: Appended | None = None


class Appender:
    """Commits batches, many of all streams at once: group commit. `commit` belongs to the holder of the write lock.

    Attributes:
        next_seq: The sequence number of the next event.
        streams: The counters of the streams.
        waiting: The batches that wait.
    """

    def __init__(
        self,
        store: Store,
        space: Space,
        remembered: "Remembered",
        changed: threading.Condition,
        *,
        next_seq: int,
        observe_commit: Callable[[float], None],
    ) -> None:
        self.next_seq = next_seq
        self.streams = tables.stream_counters(store.db)
        self.waiting: deque[Ticket] = deque()
        self._store = store
        self._space = space
        self._remembered = remembered
        self._changed = changed
        self._observe_commit = observe_commit

    def enqueue(self, batch: Batch) -> Ticket:
        """Put a batch in line for the next commit. May be called from any thread."""
        ticket = Ticket(batch)
        self.waiting.append(ticket)
        return ticket

    def commit(self) -> bool:
        """Commit the batches that wait; return False if there is no room or the disk fails."""
        window, monotonic = self._remembered.window, self._remembered.monotonic
        tickets: list[Ticket] = []
        batches: list[tuple[Batch, int, dict[bytes, bytes]]] = []
        taken: dict[bytes, bytes] = {}
        for index in range(min(len(self.waiting), _MAX_GROUP)):
            ticket = self.waiting[index]
            fresh = window.unseen(ticket.batch.events, taken)
            tickets.append(ticket)
            batches.append((ticket.batch, self.next_seq + len(taken), fresh))
            if index == 0:
                taken = fresh
            else:
                taken = dict(taken) if index == 1 else taken
                taken.update(fresh)
        if not self._store.has_room() and not self._space.make_room(window.oldest_seq):
            return False
        began = monotonic()
        if not self._store.try_to_write("append", partial(tables.save_batches, batches=batches), synced=True):
            return False
        window.remember(taken, self.next_seq, monotonic())
        with self._changed:
            for ticket, (batch, _, fresh) in zip(tickets, batches, strict=True):
                ticket.outcome = Appended(len(fresh), len(batch.events) - len(fresh))
                self._count(batch, ticket.outcome)
                self.waiting.popleft()
            self.next_seq += len(taken)
            if taken:
                self._changed.notify_all()
        self._observe_commit(monotonic() - began)
        return True

    def _count(self, batch: Batch, outcome: Appended) -> None:
        counters = self.streams.setdefault(batch.stream, StreamCounters(malformed={}))
        counters.received += len(batch.events) + len(batch.malformed)
        counters.accepted += outcome.accepted
        counters.duplicate += outcome.duplicate
        for malformed in batch.malformed:
            counters.malformed[malformed.reason] = counters.malformed.get(malformed.reason, 0) + 1
        if batch.position is not None:
            counters.position = batch.position


class Remembered:
    """Reads the dedup window of a file that was just opened.

    Args:
        following: The sequence number of the next event.
        closing: Set once the journal is being closed, which ends the reading.

    Attributes:
        done: Set when all uuids are remembered, or the journal is being closed.
        window: The dedup window. Empty until `done` is set, and from then on for the holder of the journal's write lock; its
            `oldest_seq` is right at any time.
    """

    def __init__(
        self,
        store: Store,
        settings: DedupSettings,
        following: int,
        closing: threading.Event,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._store = store
        self._seconds = settings.window
        # A uuid takes 40 bytes of the file at most (batches of one event), and all of them a quarter of the journal: nothing
        # else could free a journal that is full of uuids.
        self._max_events = max(1, min(settings.max_events, store.largest() // (4 * 40)))
        if self._max_events < settings.max_events:
            wanted, fewer = settings.max_events, self._max_events
            log.warning("fewer uuids are remembered than wanted: the journal is too small", wanted=wanted, remembered=fewer)
        self._following = following
        self._closing = closing
        # The clock may have been set between two starts, by an hour if the window is a day.
        self._since = clock() - settings.window * (1 + 1 / 24)
        self.monotonic = monotonic
        self.window = Window(settings.window, self._max_events, monotonic())
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="dedup-window")
        self._thread.start()

    def end(self) -> None:
        """Wait until nothing is read any more; the journal is being closed."""
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set() and not self._succeeds():
            self._closing.wait(0.25)
        self.done.set()

    def _succeeds(self) -> bool:
        """Read them; tell whether that was possible. Without them duplicates would pass, so nothing goes on without."""
        try:
            with self._store.swallow_errors("uuids"):
                self.window = self._read()
                return True
        except Exception as error:
            if not self._store.has_error("uuids"):
                log.exception("the journal has a bug: its uuids can't be read, and nothing is accepted")
            self._store.set_error("uuids", f"{self._store.path}: {type(error).__name__} while uuids are read, see the log")
        return False

    def _read(self) -> Window:
        with closing(file.connect(self._store.path, read_only=True)) as db:
            oldest = oldest_seen(db, self._since, self._max_events)
            first = self._following if oldest is None else oldest
            window = Window(self._seconds, self._max_events, self.monotonic(), first)
            damaged = 0
            for page in seen_keys(db, first, self._following):
                if self._closing.is_set():
                    return window
                window.remember(page.keys, page.first, self.monotonic())
                damaged += page.damaged
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


class Keys(NamedTuple):
    """A page of uuids, from the batch at `first` on; those of `damaged` batches are missing."""

    first: int
    keys: list[bytes]
    damaged: int


def seen_keys(db: sqlite3.Connection, oldest: int, following: int) -> Iterator[Keys]:
    """Yield the uuids of all batches of `[oldest, following)`, oldest first.

    Some at a time, since a million of them would take 200 MiB. SQLite joins what many batches of one event have: to take it row
    by row takes twice as long. A row whose uuids are not whole is left out, since all that follow would be cut wrongly.
    """
    whole = f"length(CAST(uuids AS BLOB)) % {_UUID_BYTES} = 0"
    page = (
        f"SELECT group_concat(CASE WHEN {whole} THEN hex(CAST(uuids AS BLOB)) END, ''), total(NOT {whole})"
        " FROM seen WHERE first >= ? AND first < ?"
    )
    at = _first_seen(db, oldest)
    while at is not None and at < following:
        joined, damaged = db.execute(page, (at, min(at + _PAGE, following))).fetchone()
        uuids = bytes.fromhex(joined or "")
        yield Keys(at, [uuids[i : i + _UUID_BYTES] for i in range(0, len(uuids), _UUID_BYTES)], int(damaged))
        at = _first_seen(db, at + _PAGE)


def _first_seen(db: sqlite3.Connection, at: int) -> int | None:
    """Return the first batch from `at` on whose uuids are stored."""
    first: int | None = db.execute("SELECT min(first) FROM seen WHERE first >= ?", (at,)).fetchone()[0]
    return first
