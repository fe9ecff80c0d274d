"""Reading a journal in pages: the file of this process, of another one, or one that a dead process left."""

import fcntl
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from bridge.event import age_seconds
from bridge.journal import file, queues, scan, tables
from bridge.journal.cursor import load_row
from bridge.journal.model import Closed, Counters
from bridge.journal.pages import (
    DeadLetterPage,
    DeadLetterQuery,
    EventPage,
    JournalExtent,
    QuarantinePage,
    RetryPage,
    SinkBacklog,
    StoredEvent,
    VerifyPage,
    time_of,
)
from bridge.journal.queues import Letters
from bridge.journal.writer import Store, used_bytes

_MAX_SEQ: Final = 2**63 - 2
"""The largest number from outside that SQLite takes, since one is added to it."""

_EVENT_PAGE_BYTES: Final = 4 << 20


class JournalReader:
    """Reads a journal's file and changes nothing: nothing is set aside or made. For one thread at a time.

    The file may be damaged, and may be in use: each method returns the state at one instant. On a damaged file, every method
    goes as far as it can, and never returns an event that was not stored.

    Beside a write-ahead log that a killed process left, SQLite makes its `-shm` file if that is missing.

    Args:
        path: The file.

    Raises:
        JournalError: By every method, too: it can't be read, or is no journal, or is of another format.
    """

    running = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = file.connect_to_any(path)
        self._checking: sqlite3.Connection | None = None

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def dead_letters(self, query: DeadLetterQuery, after: int = 0, limit: int = 1000) -> DeadLetterPage:
        """Return the dead letters that fit a query, of any sink, with ids larger than `after`."""
        with self._looking() as db:
            return queues.dead_letters(db, query, min(max(0, after), _MAX_SEQ), limit)

    def retries(self, sink: str, after: int = 0, limit: int = 1000) -> RetryPage:
        """Return the events in a sink's retry queue after a sequence number.

        Raises:
            UnknownSinkError: There is no such sink, or none any more.
        """
        with self._looking() as db:
            if sink not in tables.sinks(db):
                raise file.UnknownSinkError(f"there is no sink {sink}")
            found = queues.waiting(db, sink, min(max(0, after), _MAX_SEQ), limit)
            return RetryPage(found, found[-1] if len(found) == limit else None)

    def quarantine(self, after: int = 0, limit: int = 250) -> QuarantinePage:
        """Return the kept malformed messages with ids larger than `after`."""
        with self._looking() as db:
            found = tables.quarantine(db, min(max(0, after), _MAX_SEQ), limit)
            return QuarantinePage(found, found[-1].id if found else None)

    def extent(self) -> JournalExtent:
        """Return the first and the next sequence number, and the size."""
        with self._looking() as db:
            extent = scan.extent(db)
            with suppress(sqlite3.Error):
                return JournalExtent(extent.first, extent.next, used_bytes(db))
            return extent

    def events(self, after: int, limit: int, max_bytes: int = _EVENT_PAGE_BYTES) -> EventPage:
        """Return stored events after a sequence number, in order: about `max_bytes`, at least one if there is any."""
        with self._looking() as db:
            events: list[StoredEvent] = []
            upto, damaged = after, 0
            for stretch in scan.stretches(db, min(max(0, after), _MAX_SEQ) + 1, scan.extent(db).next):
                if not stretch.lines:
                    upto, damaged = stretch.end - 1, damaged + stretch.end - stretch.first
                    limit -= 1
                received = time_of(stretch.received)
                for seq, line in enumerate(stretch.lines, stretch.first):
                    max_bytes -= len(line)
                    if events and (max_bytes < 0 or len(events) >= limit):
                        return EventPage(events, upto, damaged)
                    events.append(StoredEvent(seq, received, msgspec.Raw(line)))
                    upto = seq
                if len(events) >= limit:
                    break
            return EventPage(events, upto, damaged)

    def verify(self, after: int, rows: int) -> VerifyPage:
        """Check the checksums and the counts of at most so many rows after a sequence number."""
        with self._looking() as db:
            upto, events = after, 0
            damaged: list[tuple[int, int]] = []
            for stretch in scan.stretches(db, min(max(0, after), _MAX_SEQ) + 1, scan.extent(db).next):
                upto = stretch.end - 1
                events += len(stretch.lines)
                if not stretch.lines:
                    damaged.append((stretch.first, stretch.end - stretch.first))
                rows -= 1
                if rows <= 0:
                    break
            return VerifyPage(upto, events, damaged)

    def backlog(self) -> dict[str, SinkBacklog]:
        """Return what waits, by sink."""
        found = {}
        for name, sink in self.counters().sinks.items():
            oldest = self.oldest_retry(name) if sink.retrying else None
            if sink.pending and not sink.retrying:
                oldest = self.event_at(self.extent().next - sink.pending)
            found[name] = SinkBacklog(
                accepted=sink.accepted,
                delivered=sink.delivered,
                pending=sink.pending,
                retrying=sink.retrying,
                dead_letters=sink.dead_letters,
                lag_seconds=None if sink.pending and oldest is None else age_seconds(oldest, time.time()),
            )
        return found

    def check(self) -> str | None:
        """SQLite's own check of the whole file: what is wrong with it; None if nothing is. May take seconds.

        It has a connection of its own, and may run beside everything else.
        """
        try:
            with closing(file.connect_to_any(self._path)) as db:
                self._checking = db
                return file.damage(db)
        except sqlite3.Error as error:
            raise file.JournalError(f"{self._path}: {error}") from error

    def interrupt(self) -> None:
        """End a check that is running, with an error; from any thread."""
        with suppress(sqlite3.Error):
            if self._checking is not None:
                self._checking.interrupt()

    def counters(self) -> Counters:
        """All counts at one instant, of every sink that the journal knows."""
        with self._looking() as db:
            following = tables.next_seq(db)
            oldest = tables.oldest_first(db) or following
            retrying, letters = queues.count_retries(db), queues.weigh_dead_letters(db)
            sinks = {
                name: row.balanced(following, *waits).counters(following, *waits)
                for name, stored in tables.sinks(db).items()
                for row in [stored.dropping(max(0, oldest - stored.cursor))]
                for waits in [(retrying.get(name, 0), letters.get(name, Letters()).count)]
            }
            return Counters(tables.stream_counters(db), sinks, used_bytes(db), None)

    def event_at(self, seq: int) -> bytes | None:
        """The JSON of the event at a place; None if it is gone or damaged."""
        with self._looking() as db:
            row = load_row(db, seq)
            return None if row is None or row.damaged else row.lines[seq - row.first]

    def oldest_retry(self, sink: str) -> bytes | None:
        """The JSON of the first event in a sink's retry queue; None if there is none, or it is damaged."""
        with self._looking() as db:
            return queues.oldest_retry(db, sink)

    @contextmanager
    def _looking(self) -> Iterator[sqlite3.Connection]:
        """Look at one instant."""
        try:
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                self._db.execute("ROLLBACK")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise file.JournalError(f"{self._path}: {error}") from error


class ConcurrentReader(JournalReader):
    """A reader of the journal that this process has open: for any thread, and without the write lock.

    Args:
        store: The journal's file, which also keeps its last error.

    Raises:
        Closed: By every method: the journal was closed.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store.path)
        self._store = store
        self._reading = threading.Lock()

    @property
    def damaged(self) -> bool:
        """True if damage was found since the file was opened: close it and open it again, which sets it aside."""
        return self._store.damaged

    def damaged_files(self) -> list[Path]:
        """Return the damaged journals that were set aside, now or before, and are still there."""
        return file.damaged_files(self._path)

    def check(self) -> str | None:
        """As `JournalReader.check`; nobody waits for it."""
        damage = None
        try:
            if not self._store.closing.is_set():
                damage = super().check()
        except file.JournalError:
            if not self._store.closing.is_set():
                raise
        if self._store.closing.is_set():
            raise Closed
        return damage

    @contextmanager
    def _looking(self) -> Iterator[sqlite3.Connection]:
        with self._reading:
            if self._store.closing.is_set():
                raise Closed
            try:
                with super()._looking() as db:
                    yield db
            except file.JournalError as error:
                self._store.set_error("look", str(error))
                raise
            if "look" in self._store.errors:
                self._store.set_error("look", None)


class Holder(NamedTuple):
    """The process that holds a journal, as `lock.announce` wrote it.

    Attributes:
        process: Its id, or "unknown".
        url: Its HTTP port; empty if it has none.
        secret: Opens the operations there.
    """

    process: str
    url: str
    secret: str


def holder(path: Path) -> Holder | None:
    """Return the process that holds the journal; None if no process does.

    Raises:
        JournalError: There is no journal, or it can't be found out.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        if not path.exists():
            raise file.JournalError(f"{path}: there is no journal (yet); a bridge makes it when it runs")
        with lock_path.open() as lock:
            try:
                # Shared, so that two who ask do not take each other for a holder; and for no longer than the question takes.
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                process, url, secret = (lock.read().split("\n") + [""] * 3)[:3]
                return Holder(process.strip() or "unknown", url, secret)
    except FileNotFoundError:
        return None
    except OSError as error:
        hint = "; run this as the user that the bridge runs as" if isinstance(error, PermissionError) else ""
        raise file.JournalError(f"{lock_path}: {error.strerror}{hint}") from None
    return None
