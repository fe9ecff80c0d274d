"""Appending without duplicates: the dedup window, and the group commit of batches."""

import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from crc32c import crc32c

from bridge.event import Event, Malformed
from bridge.journal import tables
from bridge.journal.file import JournalError
from bridge.journal.model import Appended, Batch, StreamCounters
from bridge.journal.pruning import Space
from bridge.journal.writer import Store

QUARANTINE_FRAMES: Final = 250
"""Malformed messages that are kept, the latest ones: they take a third of the smallest journal at most."""

QUARANTINE_BYTES: Final = 16 * 1024
"""Bytes of a malformed message that are kept."""

_MAX_GROUP: Final = 256
"""Batches in one transaction at most. Their bytes are bounded, too: by a quarter of what SQLite's log may take."""


Keys = dict[str | None, dict[bytes, None]]
"""Uuids by namespace."""

_STEP_SECONDS: Final = 60.0
"""A difference by which a clock does not go wrong by itself."""


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
        self._current: Keys = {}
        self._previous: Keys = {}
        self._began = now
        self._began_at = first

    def __len__(self) -> int:
        return sum(len(keys) for generation in (self._current, self._previous) for keys in generation.values())

    def unseen(self, namespace: str, events: Iterable[Event], taken: Keys) -> dict[bytes, bytes]:
        """Of these events, those that are neither remembered nor among `taken`: uuid to JSON, in order."""
        fresh = {event.key: event.json for event in events}
        for known in (self._current, self._previous, taken):
            # Those of an earlier format have no namespace: they may be of any.
            for seen in (known.get(namespace), known.get(None)):
                if seen and not fresh.keys().isdisjoint(seen.keys()):
                    fresh = {key: json for key, json in fresh.items() if key not in seen}
        return fresh

    def remember(self, namespace: str | None, keys: Iterable[bytes], first: int, now: float) -> None:
        """Remember uuids of events that were stored from `first` on, at monotonic time `now`."""
        if now - self._began > self._seconds or sum(map(len, self._current.values())) >= self._half:
            self._previous, self._current = self._current, {}
            self.oldest_seq, self._began_at, self._began = self._began_at, first, now
        self._current.setdefault(namespace, {}).update(dict.fromkeys(keys))


class Clock:
    """The time by which uuids get older: that of the day when the journal was made, and no step of the clock since then.

    Args:
        recorded: By how much the clock was ahead of it when that was recorded last.
        least: It was not earlier when the journal was closed.
    """

    def __init__(
        self, clock: Callable[[], float], monotonic: Callable[[], float], recorded: float = 0.0, least: float = 0.0
    ) -> None:
        self.recorded = recorded
        self._clock = clock
        self._monotonic = monotonic
        self._base = max(clock() - recorded, least) - monotonic()

    def now(self) -> float:
        """Return seconds since the epoch, more or less."""
        return self._base + self._monotonic()

    def ahead(self) -> float:
        """Return by how many seconds the clock is ahead."""
        return self._clock() - self.now()


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
        window: What is remembered; set before the first commit.
        clock: By which it is forgotten at the next start.
    """

    window: Window

    def __init__(
        self,
        store: Store,
        space: Space,
        *,
        next_seq: int,
        observe_commit: Callable[[float], None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self.next_seq = next_seq
        self.clock = Clock(clock, monotonic, *tables.clock(store.db))
        self.streams = tables.stream_counters(store.db)
        self.waiting: deque[Ticket] = deque()
        self._store = store
        self._space = space
        self._observe_commit = observe_commit
        self._monotonic = monotonic

    def enqueue(self, batch: Batch) -> Ticket:
        """Put a batch in line for the next commit. May be called from any thread."""
        ticket = Ticket(batch)
        self.waiting.append(ticket)
        return ticket

    def commit(self) -> bool:
        """Commit the batches that wait; return False if there is no room or the disk fails."""
        tickets: list[Ticket] = []
        batches: list[tuple[Batch, int, dict[bytes, bytes]]] = []
        taken: Keys = {}
        following, room = self.next_seq, self._store.log_limit // 4
        for index in range(min(len(self.waiting), _MAX_GROUP)):
            ticket = self.waiting[index]
            batch = ticket.batch
            fresh = self.window.unseen(batch.namespace, batch.events, taken)
            room -= sum(map(len, fresh.values()))
            if room < 0 and index:
                break
            tickets.append(ticket)
            batches.append((batch, following, fresh))
            following += len(fresh)
            if index + 1 < len(self.waiting):
                taken.setdefault(batch.namespace, {}).update(dict.fromkeys(fresh))
        if not self._store.has_room() and not self._space.make_room(self.window.oldest_seq):
            return False
        began = self._monotonic()
        with suppress(JournalError):
            with self._store.write("append", synced=True) as db:
                save_batches(db, batches, self.clock.now())
            now = self._monotonic()
            for batch, first, fresh in batches:
                self.window.remember(batch.namespace, fresh, first, now)
            with self._store.changed:
                for ticket, (batch, _, fresh) in zip(tickets, batches, strict=True):
                    ticket.outcome = Appended(len(fresh), len(batch.events) - len(fresh))
                    self._count(batch, ticket.outcome)
                    self.waiting.popleft()
                if following > self.next_seq:
                    self.next_seq = following
                    self._store.changed.notify_all()
            self._observe_commit(now - began)
            return True
        return False

    def keep_clock(self) -> None:
        """Record by how much the clock is ahead, if it was set since that was recorded last. With the write lock held."""
        offset = self.clock.ahead()
        if abs(offset - self.clock.recorded) >= _STEP_SECONDS:
            with suppress(JournalError):
                with self._store.write("clock") as db:
                    db.execute("UPDATE meta SET clock_offset = ?", (offset,))
                self.clock.recorded = offset

    def _count(self, batch: Batch, outcome: Appended) -> None:
        counters = self.streams.setdefault(batch.stream, StreamCounters(malformed={}))
        counters.received += len(batch.events) + len(batch.malformed)
        counters.accepted += outcome.accepted
        counters.duplicate += outcome.duplicate
        for reason, count in Counter(message.reason for message in batch.malformed).items():
            counters.malformed[reason] = counters.malformed.get(reason, 0) + count
        if batch.position is not None:
            counters.position = batch.position


def save_batches(db: sqlite3.Connection, batches: Sequence[tuple[Batch, int, dict[bytes, bytes]]], now: float) -> None:
    """Store batches and count their events; each comes with its first sequence number and its new events (uuid to JSON).

    `now` is the time of the `Clock`.
    """
    for batch, first, fresh in batches:
        if fresh:
            insert_batch(db, first, batch.received, fresh, batch.namespace, now)
        if batch.malformed:
            insert_quarantine(db, batch.stream, batch.received, batch.malformed)
        received = len(batch.events) + len(batch.malformed)
        add_counts(db, batch.stream, (received, len(fresh), len(batch.events) - len(fresh)), batch.position)


def insert_batch(  # noqa: PLR0917 - the columns
    db: sqlite3.Connection,
    first: int,
    received: float,
    events: dict[bytes, bytes],
    namespace: str = "",
    now: float | None = None,
) -> None:
    """Store events (uuid to JSON) as one row, and their uuids as another, so that each can go when it is not needed."""
    body = b"\n".join(events.values())
    db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", (first, len(events), received, crc32c(body), body))
    age = received if now is None else now
    db.execute("INSERT INTO seen VALUES (?, ?, ?, ?)", (first, age, b"".join(events), namespace))
    db.execute("UPDATE meta SET next_seq = ?", (first + len(events),))


def add_counts(db: sqlite3.Connection, stream: str, counts: tuple[int, int, int], position: str | None) -> None:
    """Add to a stream's received, accepted and duplicate events, and move its position unless that is None."""
    db.execute(
        "INSERT INTO streams VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET received = received + excluded.received,"
        " accepted = accepted + excluded.accepted, duplicate = duplicate + excluded.duplicate,"
        " position = coalesce(excluded.position, position)",
        (stream, *counts, position),
    )


def insert_quarantine(db: sqlite3.Connection, stream: str, received: float, malformed: Sequence[Malformed]) -> None:
    """Count malformed messages, and keep the latest of them."""
    db.executemany(
        "INSERT INTO malformed VALUES (?, ?, ?) ON CONFLICT (stream, reason) DO UPDATE SET count = count + excluded.count",
        [(stream, reason, count) for reason, count in Counter(message.reason for message in malformed).items()],
    )
    db.executemany(
        "INSERT INTO quarantine (stream, received, reason, frame) VALUES (?, ?, ?, ?)",
        [(stream, received, m.reason, m.frame[:QUARANTINE_BYTES]) for m in malformed[-QUARANTINE_FRAMES:]],
    )
    db.execute("DELETE FROM quarantine WHERE id <= (SELECT max(id) FROM quarantine) - ?", (QUARANTINE_FRAMES,))
