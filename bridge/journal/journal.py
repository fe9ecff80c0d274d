"""The journal's owner: who may write when, what is in memory, and who waits for what."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec
import structlog

from bridge.journal import file, queues, scan, tables
from bridge.journal.cursor import Cursor
from bridge.journal.dead_letters import Letters
from bridge.journal.dedup import Remembered
from bridge.journal.inside import Inside
from bridge.journal.model import (
    Appended,
    Batch,
    Books,
    Closed,
    JournalOptions,
    Retry,
    Settlement,
    StreamBooks,
)
from bridge.journal.pruning import Space
from bridge.journal.writer import Store
from bridge.sink import Entry

log = structlog.get_logger(__name__)

_TRY_AGAIN: Final = 0.25
"""Seconds between attempts while the disk fails or the journal is full."""

_GROUP: Final = 256
"""Batches in one transaction at most."""

_PRUNE_SECONDS: Final = 0.25
"""How long one `prune` takes at most. There may be a day's backlog to delete, and its caller has other duties."""

_PRUNE_PAUSE: Final = 0.001
"""Seconds between two of its transactions. A lock is not fair: let go and taken again at once, it keeps the others waiting."""


class _Ticket:
    """A batch that waits for the next commit."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.outcome: Appended | None = None


class Journal(Inside):
    """The durable log. Every method may be called from any thread; `read` from one thread per sink.

    Args:
        options: Where it is, and its limits.
        observe_commit: Called with the seconds that a commit of events took.
        clock: The time of day in seconds since the epoch.
        monotonic: Seconds of a clock that nobody sets.

    Raises:
        JournalError: It can't be opened; the text says why and what to do.
    """

    def __init__(
        self,
        options: JournalOptions,
        observe_commit: Callable[[float], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._observe_commit = observe_commit
        self._monotonic = monotonic
        super().__init__(Store(options.path, options.durability, options.max_bytes), threading.Event())
        self._write = threading.Lock()
        self._changed = threading.Condition()
        self._waiting: deque[_Ticket] = deque()
        self._next = scan.extent(self._store.db).next
        self._streams = tables.stream_books(self._store.db)
        self._sinks: dict[str, Cursor] = {}
        self._letters = Letters(self._store, self._sinks, self._changed)
        self._space = Space(self._store, self._sinks, self._changed, self._letters, options.when_full)
        self._remembered = Remembered(self._store, options, self._next, self._closing, clock=clock, monotonic=monotonic)

    # Streams

    def append(self, batch: Batch) -> Appended:
        """Commit a batch; return when it is durable. Waits as long as the disk fails or the journal is full.

        The first one waits, too, until all uuids are remembered that the file holds.

        Raises:
            Closed: The journal was closed before the batch was committed.
        """
        self._remembered.wait()
        ticket = _Ticket(batch)
        self._waiting.append(ticket)
        while True:
            with self._write:
                while ticket.outcome is None and not self._closing.is_set() and self._commit_waiting():
                    pass
            if ticket.outcome is not None:
                return ticket.outcome
            if self._closing.wait(_TRY_AGAIN):
                raise Closed

    @property
    def accepts(self) -> bool:
        """Whether `append` goes on at once: false for a moment after a start, while uuids are read."""
        return self._remembered.complete

    def position(self, stream: str) -> str | None:
        """From where a stream resumes: the position that was committed last."""
        with self._changed:
            books = self._streams.get(stream)
            return books.position if books else None

    # Sinks

    def add_sink(self, name: str, start_at: Literal["latest", "earliest"]) -> None:
        """Give a sink its cursor: where it was, or for a new one the end or the beginning of what is scan.

        Raises:
            JournalError: It can't be recorded.
        """
        with self._write, self._store.telling_of_trouble("sinks"):
            if name in self._sinks:
                return
            row = tables.sinks(self._store.db).get(name)
            retrying = queues.count_retries(self._store.db).get(name, 0)
            dead_letters = queues.count_dead_letters(self._store.db).get(name, 0)
            before = row
            if row is None:
                oldest = tables.oldest_first(self._store.db) if start_at == "earliest" else None
                start = self._next if oldest is None else oldest
                row = tables.SinkRow(start, start, 0, 0, 0, 0)
            row = row.balanced(self._next, retrying, dead_letters)
            if row != before:
                with self._store.transaction(synced=False) as db:
                    tables.save_sink(db, name, row)
            if before not in {None, row}:
                log.warning("the counts of a sink did not balance, and were corrected", sink=name, before=before, after=row)
            with self._changed:
                self._sinks[name] = Cursor(row, retrying, dead_letters, file.connect(self._options.path, read_only=True))

    def forget_sinks_except(self, names: set[str]) -> None:
        """Drop the cursors and retry queues of all sinks that are not configured any more, and say what was pending.

        Raises:
            JournalError: It can't be recorded.
        """
        with self._write, self._store.telling_of_trouble("sinks"):
            retrying = queues.count_retries(self._store.db)
            rows = {name: row for name, row in tables.sinks(self._store.db).items() if name not in names}
            with self._store.transaction(synced=False) as db:
                for name in rows:
                    tables.delete_sink(db, name)
            for name, row in rows.items():
                with self._changed:
                    gone = self._sinks.pop(name, None)
                if gone is not None:
                    with gone.reading:
                        gone.db.close()
                pending = self._next - row.cursor + retrying.get(name, 0)
                log.warning("a sink left the configuration, its cursor is forgotten", sink=name, pending_events=pending)

    def read(self, sink: str, limit: int, max_bytes: int, timeout: float) -> list[Entry]:
        """Return what lies after the sink's cursor, waiting up to `timeout` seconds for something; the cursor stays.

        At most `limit` events and about `max_bytes` bytes, but at least one event if there is any. A wait ends early
        without an event at `wake`.

        Raises:
            Closed: The journal was closed.
            JournalError: It can't be read.
        """
        cursor = self._sinks[sink]
        with self._changed:
            if cursor.row.cursor >= self._next and not self._closing.is_set():
                self._changed.wait(timeout)
            end = self._next
        with self._reading(sink):
            entries = cursor.read(end, limit, max_bytes)
        if not entries and cursor.row.cursor < end and not self._skip(sink, cursor):
            self._closing.wait(_TRY_AGAIN)
        return entries

    def wait(self, timeout: float) -> bool:
        """Wait until something is appended; False if `wake` was called or the time was up before."""
        with self._changed:
            before = self._next
            if not self._closing.is_set():
                self._changed.wait(timeout)
            return self._next > before

    def wake(self) -> None:
        """End all waits of `read` and `wait`."""
        with self._changed:
            self._changed.notify_all()

    def due_retries(self, sink: str, now: float, horizon: float, limit: int, max_bytes: int) -> list[Retry]:
        """Events of the retry queue that are due, in order, each with what waits behind it in its lane.

        Args:
            sink: Whose.
            now: The time of day in seconds since the epoch.
            horizon: A due time beyond this can't be meant (the clock was set back) and counts as due.
            limit: How many at most.
            max_bytes: How many bytes at most, but at least one event.

        Raises:
            Closed: The journal was closed.
            JournalError: It can't be read.
        """
        with self._reading(sink) as cursor:
            if not any(due <= now or due > horizon for due in cursor.heads(sink).values()):
                return []
            found = queues.due_retries(cursor.db, sink, now=now, horizon=horizon, limit=limit, max_bytes=max_bytes)
        if found.damaged:
            self._drop_damaged(sink, cursor, found.damaged)
        return found.retries

    def retrying(self, sink: str) -> int:
        """How many events wait in the sink's retry queue."""
        return self._sinks[sink].retrying

    def next_due(self, sink: str) -> float | None:
        """When the next event of the retry queue is due, in seconds since the epoch; None if there is none."""
        with self._reading(sink) as cursor:
            return min(cursor.heads(sink).values(), default=None)

    def waiting_lanes(self, sink: str) -> AbstractSet[str]:
        """The lanes of the retry queue in which something waits; later events of theirs have to wait behind it."""
        with self._reading(sink) as cursor:
            return cursor.heads(sink).keys()

    def settle(self, sink: str, outcome: Settlement) -> None:
        """Record the outcome of a delivery. Survives the death of the process at once, a power failure a moment later.

        Events that `drop_oldest` dropped while they were being delivered stay counted as dropped.

        Raises:
            Closed: The journal was closed before it could be recorded.
        """
        cursor = self._sinks[sink]
        while True:
            with self._write:
                if self._closing.is_set():
                    raise Closed
                if self._try_settle(sink, cursor, outcome):
                    return
            self._closing.wait(_TRY_AGAIN)

    def replay(self, sink: str, ids: Sequence[int], now: float) -> int:
        """Send a sink's dead letters back to its retry queue, due at once; return how many went there.

        What is gone, damaged or another sink's is left alone, so this may be repeated. An event that waits already (a sink
        that left the configuration and came back may have both) is not put there twice: its dead letter is discarded.

        Args:
            sink: Whose they are.
            ids: Which; all of them in one transaction, so that a thousand or so are enough.
            now: The time of day in seconds since the epoch.

        Raises:
            Closed: The journal was closed.
            JournalError: The sink is not configured, or it can't be recorded.
        """
        with self._rearranging(sink):
            return self._letters.replay(sink, ids, now)

    def discard(self, ids: Sequence[int]) -> int:
        """Delete dead letters for ever, in one transaction; return how many were there. Those of any sink, damaged or not.

        Raises:
            Closed: The journal was closed.
            JournalError: It can't be recorded.
        """
        with self._rearranging():
            return sum(self._letters.discard(ids).values())

    # Everybody

    def books(self) -> Books:
        """All counts at one instant; they balance."""
        with self._changed:
            return Books(
                {
                    name: msgspec.structs.replace(books, malformed=dict(books.malformed))
                    for name, books in self._streams.items()
                },
                {name: cursor.books(self._next) for name, cursor in self._sinks.items()},
                self._store.used,
                self._store.trouble(),
            )

    @property
    def damaged(self) -> bool:
        """Whether the file was found damaged since it was opened: to be closed, and opened anew, which sets it aside."""
        return self._store.damaged

    def damaged_files(self) -> list[Path]:
        """Damaged journals that were set aside when this one was opened, now or before, and are still there."""
        return file.damaged_files(self._options.path)

    def oldest(self, sink: str) -> bytes | None:
        """The JSON of the oldest event that the sink has neither got nor given up; None if there is none.

        Raises:
            Closed: The journal was closed.
            JournalError: It can't be read.
        """
        cursor = self._sinks[sink]
        with self._peeking() as reader:
            if cursor.retrying:
                return reader.oldest_retry(sink)
            seq = cursor.row.cursor
            return reader.event_at(seq) if seq < self._next else None

    def prune(self) -> bool:
        """Delete what no cursor and no dedup window needs, and make settled outcomes durable. Meant for every second or so.

        Takes a fraction of a second at most, and lets others commit meanwhile.

        Returns:
            Whether there may be more to delete.
        """
        until, more = self._monotonic() + _PRUNE_SECONDS, True
        while more and self._monotonic() < until:
            with self._write:
                more = not self._closing.is_set() and self._space.prune_some(self._remembered.window.floor)
            if more:
                self._closing.wait(_PRUNE_PAUSE)
        with self._write:
            if not self._closing.is_set():
                self._store.sync()
        # Which uuids nobody needs is known when it is known which are remembered.
        return more or not self._remembered.complete

    def close(self) -> None:
        """Wake everybody who waits, bring the file into order and let go of it. May be called twice."""
        self._closing.set()
        self.wake()
        self._reader.interrupt()
        self._remembered.end()
        with self._write, self._peek:
            if self._store.closed:
                return
            for cursor in self._sinks.values():
                with cursor.reading:
                    cursor.db.close()
            self._reader.close()
            self._store.close()

    # Inside: everything below is called with the write lock held, unless it says otherwise.

    @contextmanager
    def _reading(self, sink: str) -> Iterator[Cursor]:
        """Use a sink's cursor for reading; called by the sink's thread, without the write lock."""
        cursor = self._sinks[sink]
        with cursor.reading, self._store.telling_of_trouble(f"read {sink}"):
            if self._closing.is_set():
                raise Closed
            yield cursor

    @contextmanager
    def _rearranging(self, sink: str | None = None) -> Iterator[None]:
        """Change dead letters, for an operator who is told of failures; takes the write lock."""
        with self._write:
            if self._closing.is_set():
                raise Closed
            if sink is not None and sink not in self._sinks:
                raise file.JournalError(f"sink {sink!r} is not configured, so that nothing can be sent to it again")
            with self._store.telling_of_trouble("dead letters"):
                yield

    def _commit_waiting(self) -> bool:
        """Commit what waits, or tell that there is no room or the disk fails; tickets that got their outcome are done."""
        if not self._space.has_room(self._remembered.window.floor):
            return False
        tickets = [self._waiting[i] for i in range(min(len(self._waiting), _GROUP))]
        began = self._monotonic()
        with self._store.watching_the_disk("append"):
            taken: dict[bytes, bytes] = {}
            outcomes: list[Appended] = []
            with self._store.transaction(synced=True):
                for ticket in tickets:
                    fresh = self._remembered.window.unseen(ticket.batch.events, taken)
                    outcomes.append(self._insert(ticket.batch, self._next + len(taken), fresh))
                    if taken:
                        taken.update(fresh)
                    else:
                        taken = fresh
            self._remembered.window.remember(taken, self._next, self._monotonic())
            with self._changed:
                for ticket, outcome in zip(tickets, outcomes, strict=True):
                    self._count(ticket.batch, outcome)
                    ticket.outcome = outcome
                    self._waiting.popleft()
                self._next += len(taken)
                if taken:
                    self._changed.notify_all()
            self._observe_commit(self._monotonic() - began)
            return True
        return False

    def _insert(self, batch: Batch, first: int, fresh: dict[bytes, bytes]) -> Appended:
        db = self._store.db
        outcome = Appended(len(fresh), len(batch.events) - len(fresh))
        if fresh:
            tables.insert_batch(db, first, batch.received, fresh)
        if batch.malformed:
            tables.insert_quarantine(db, batch.stream, batch.received, batch.malformed)
        received = len(batch.events) + len(batch.malformed)
        tables.add_counts(db, batch.stream, (received, *outcome), batch.position)
        return outcome

    def _count(self, batch: Batch, outcome: Appended) -> None:
        books = self._streams.setdefault(batch.stream, StreamBooks(malformed={}))
        books.received += len(batch.events) + len(batch.malformed)
        books.accepted += outcome.accepted
        books.duplicate += outcome.duplicate
        for malformed in batch.malformed:
            books.malformed[malformed.reason] = books.malformed.get(malformed.reason, 0) + 1
        if batch.position is not None:
            books.position = batch.position

    def _try_settle(self, sink: str, cursor: Cursor, outcome: Settlement) -> bool:
        new = outcome.upto - outcome.first
        if new and outcome.first != cursor.row.cursor:
            return True
        after = cursor.after(outcome)
        with self._store.watching_the_disk(f"settle {sink}"):
            with self._store.transaction(synced=False) as db:
                tables.save_sink(db, sink, after)
                queues.save_retries(db, sink, outcome.retries)
                queues.delete_retries(db, sink, outcome.resolved)
                queues.insert_dead(db, sink, outcome.dead)
            with self._changed:
                left = new - outcome.delivered - outcome.filtered - len(outcome.dead)
                cursor.settled(after, left, len(outcome.dead))
            return True
        return False

    def _skip(self, sink: str, cursor: Cursor) -> bool:
        """Step over a damaged row, counting its events as dropped; called by the sink's thread, without the write lock.

        A row that is missing was dropped a moment ago (the cursor has moved by itself), or lost with a damaged page.

        Returns:
            False if the disk fails.
        """
        with self._write, self._store.watching_the_disk(f"skip {sink}"):
            seq = cursor.row.cursor
            row = None if self._closing.is_set() else cursor.row_at(seq)
            if self._closing.is_set() or (row is not None and not row.damaged):
                return True
            # To where the next row begins: how long a damaged one is can't be believed.
            end = tables.first_after(self._store.db, seq) or self._next
            if end > seq:
                self._space.jump({sink: cursor}, end)
                log.error("stored events are damaged and were dropped", sink=sink, first=seq, events=end - seq)
            return True
        return False

    def _drop_damaged(self, sink: str, cursor: Cursor, rows: list[int]) -> None:
        """Take damaged rows out of the retry queue, counting them as dropped; called by the sink's thread, without the lock."""
        with self._write, self._store.telling_of_trouble(f"skip {sink}"):
            if self._closing.is_set():
                raise Closed
            after = cursor.row._replace(dropped=cursor.row.dropped + len(rows))
            with self._store.transaction(synced=False) as db:
                queues.delete_damaged_retries(db, rows)
                tables.save_sink(db, sink, after)
            with self._changed:
                cursor.settled(after, -len(rows), 0)
            log.error("events in the retry queue are damaged and were dropped", sink=sink, events=len(rows))
