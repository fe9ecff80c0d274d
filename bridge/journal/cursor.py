"""The cursors: how far each sink has got, its counts, what it reads next, and what a settlement makes of them."""

import sqlite3
import sys
import threading
from collections.abc import Iterable
from typing import NamedTuple

import structlog
from crc32c import crc32c

from bridge.journal import file, queues, tables
from bridge.journal.model import Limits, Paused, Retry, Settlement, SinkCounters, StartAt, Work
from bridge.journal.pages import Rewound
from bridge.journal.queues import Letters
from bridge.journal.tables import SinkRow
from bridge.journal.writer import Store
from bridge.sink import Entry

log = structlog.get_logger(__name__)


class Row(NamedTuple):
    """One committed batch: `first` is the sequence number of `lines[0]`. A damaged row has no lines."""

    first: int
    received: float
    lines: list[bytes]
    damaged: bool


class Cursor:
    """A sink's cursor and counts in memory, and its own connection for reading.

    `row`, `retrying` and `dead_letters` change under the journal's lock; `read` belongs to the sink's thread.

    Attributes:
        max_pending: Events in the retry queue at which nothing new is read.
        retries_limit: Their bytes beyond which nothing new is read, either.
        letters_limit: Bytes of dead letters beyond which nothing new is read.
        reading: Held while `db` is used, so that it is not closed then.
        next_unread: The sequence number after the last event that was read, and may be in delivery.
        dropped_before: Where the stored events begin since the oldest ones were dropped. Those that are not in delivery count
            as dropped at once; the others when the sink reads on, if they were not delivered.
        queue_version: Counts the changes of the retry queue.
    """

    def __init__(self, sink: str, row: SinkRow, retrying: int, dead_letters: Letters, db: sqlite3.Connection) -> None:
        self.max_pending = 0
        self.retries_limit = self.letters_limit = sys.maxsize
        self.dropped_before = 0
        self.reading = threading.Lock()
        self.row = row
        self.retrying = retrying
        self.dead_letters = dead_letters
        self.db = db
        self.next_unread = row.cursor
        self._sink = sink
        # The row that `read` is in the middle of: a sink that takes ten events at a time must not load it ten times.
        self._ahead: Row | None = None
        self.queue_version = 0
        self._heads_version = -1
        self._heads: dict[str, float] = {}
        self._retry_bytes = 0

    def counters(self, next_seq: int) -> SinkCounters:
        """Return the sink's counters; `next_seq` is the sequence number of the journal's next event."""
        return self.row.dropping(self.gone).counters(next_seq, self.retrying, self.dead_letters.count)

    @property
    def gone(self) -> int:
        """The number of events that were dropped while they were not in delivery, and are not counted yet."""
        return max(0, self.dropped_before - max(self.row.cursor, self.next_unread))

    def next_work(self, now: float, limits: Limits, end: int, *, new_first: bool) -> tuple[Work, list[int]]:
        """Return the work of `Journal.next_work` that is there now, and the row ids of damaged retries."""
        heads = self.heads()
        due, damaged = list[Retry](), list[int]()
        if heads and any(at <= now or at > limits.horizon for at in heads.values()):
            due, damaged = queues.due_retries(self.db, self._sink, now, limits)
        paused: Paused | None = None
        if self.retrying >= limits.max_pending or self._retry_bytes > self.retries_limit:
            paused = "retry_queue_full"
        elif self.dead_letters.size > self.letters_limit:
            paused = "dead_letters_full"
        entries: list[Entry] = []
        if not paused and (new_first or not due):
            entries = self.read(end, limits.max_events, limits.max_bytes)
        next_due = min(heads.values()) if heads else None
        return Work(due, entries, heads.keys(), next_due, self.retrying, paused), damaged

    def read(self, end: int, limit: int, max_bytes: int) -> list[Entry]:
        """Read events from the cursor on, before `end` and within the limits, up to a row that is missing or damaged."""
        seq = self.row.cursor
        entries: list[Entry] = []
        while seq < end and len(entries) < limit and max_bytes > 0:
            row = self.row_at(seq)
            if row is None or row.damaged:
                break
            some, size = _entries(row, seq, min(limit - len(entries), end - seq), max_bytes)
            max_bytes -= size
            entries += some
            seq += len(some)
        self.next_unread = seq
        return entries

    def close(self) -> None:
        """Close the connection, after the read that uses it."""
        with self.reading:
            self.db.close()

    def row_at(self, seq: int) -> Row | None:
        """Return the row with a sequence number; None if it is not there."""
        if seq < self.dropped_before:
            return None  # What counts as dropped is not delivered, although it may be in memory.
        row = self._ahead
        if row is None or not row.first <= seq < row.first + len(row.lines):
            row = self._ahead = load_row(self.db, seq)
        return row

    def heads(self) -> dict[str, float]:
        """Return the ordering keys of the retry queue, each with the due time of its first event; cached until a change."""
        # Taken before the look: what another thread changes meanwhile is looked up next time.
        version = self.queue_version
        if version != self._heads_version:
            self._heads, self._retry_bytes = queues.heads(self.db, self._sink) if self.retrying else ({}, 0)
            self._heads_version = version
        return self._heads

    def settle(self, store: Store, outcome: Settlement) -> int:
        """Record a settlement; return how many events are in the retry queue then. With the write lock held.

        A settlement of other events than those after the cursor changes nothing.
        """
        row, new = self.row, outcome.next_seq - outcome.first_seq
        if new and outcome.first_seq != row.cursor:
            return self.retrying
        after = row._replace(
            cursor=max(row.cursor, outcome.next_seq),
            delivered=row.delivered + outcome.delivered,
            filtered=row.filtered + outcome.filtered,
            dead=row.dead + len(outcome.dead),
        )
        with store.write(f"settle {self._sink}") as db:
            db.execute(tables.SAVE_SINK, (self._sink, *after))
            if outcome.retries or outcome.resolved or outcome.dead:
                queues.save(db, self._sink, outcome)
        with store.changed:
            self.row = after
            if outcome.dead:
                self.dead_letters += queues.letters_of([dead.json for dead in outcome.dead])
            self.retrying += new - outcome.delivered - outcome.filtered - len(outcome.dead)
            # After the count: a thread that sees this number sees that one.
            self.queue_version += 1
        return self.retrying

    def rewind(self, store: Store, seq: int, *, dry_run: bool) -> Rewound:
        """Set the cursor back to `seq`, or to the oldest stored event; see `Journal.rewind`. With the write lock held."""
        first = max(seq, tables.oldest_first(store.db) or self.row.cursor)
        again = self.row.cursor - first
        if again <= 0 or dry_run:
            return Rewound(first, max(0, again))
        with store.write("rewind") as db:
            # What waits for a retry lies before the cursor, and once.
            taken = db.execute("DELETE FROM retries WHERE sink = ? AND seq >= ?", (self._sink, first)).rowcount
            row = self.row._replace(cursor=first, rewound=self.row.rewound + again - taken)
            db.execute(tables.SAVE_SINK, (self._sink, *row))
        with store.changed:
            self.row, self.next_unread = row, first
            self.retrying -= taken
            self.queue_version += 1
            store.changed.notify_all()
        return Rewound(first, again)


def add(store: Store, name: str, start_at: StartAt, next_seq: int) -> Cursor:
    """Read or create a sink's cursor, and correct its counts if they do not add up; `next_seq` is that of the next event."""
    with store.write("sinks") as db:
        row = before = tables.sinks(db).get(name)
        retrying = queues.count_retries(db).get(name, 0)
        letters = queues.weigh_dead_letters(db).get(name, Letters())
        oldest = tables.oldest_first(db) or next_seq
        if row is None:
            at = tables.seq_at(db, start_at) if isinstance(start_at, float) else oldest if start_at == "earliest" else None
            start = at or next_seq
            row = SinkRow(start, start, 0, 0, 0, 0)
        row = row.balanced(next_seq, retrying, letters.count)
        if row != before:
            db.execute(tables.SAVE_SINK, (name, *row))
    if before not in {None, row}:
        log.warning("the counts of a sink did not balance, and were corrected", sink=name, before=before, after=row)
    with store.report_errors("sinks"):
        cursor = Cursor(name, row, retrying, letters, file.connect(store.path, read_only=True))
    # Nothing goes before a cursor has passed it, but the oldest, if the journal is full.
    cursor.dropped_before = oldest
    return cursor


def forget_except(store: Store, names: set[str], next_seq: int) -> Iterable[str]:
    """Delete the rows and retry queues of all other sinks, and log how much was pending; return their names."""
    with store.write("sinks") as db:
        retrying = queues.count_retries(db)
        rows = {name: row for name, row in tables.sinks(db).items() if name not in names}
        # Its dead letters stay.
        db.executemany("DELETE FROM sinks WHERE name = ?", [(name,) for name in rows])
        db.executemany("DELETE FROM retries WHERE sink = ?", [(name,) for name in rows])
    for name, row in rows.items():
        pending = next_seq - row.cursor + retrying.get(name, 0)
        log.warning("a sink left the configuration, its cursor is forgotten", sink=name, pending_events=pending)
    return rows


def load_row(db: sqlite3.Connection, seq: int) -> Row | None:
    """Return the row that holds `seq`; None if it is gone."""
    # The cast does nothing, unless the bit that tells bytes from text was flipped.
    found = db.execute(
        "SELECT first, count, received, crc, CAST(body AS BLOB) FROM batches WHERE first <= ? ORDER BY first DESC LIMIT 1",
        (seq,),
    ).fetchone()
    if found is None:
        return None
    first, count, received, crc, body = found
    if not (
        isinstance(count, int) and isinstance(received, float) and 0 <= received <= tables.LATEST and isinstance(body, bytes)
    ):
        return Row(first, 0.0, [], damaged=True)
    if first + count <= seq:
        return None
    lines = body.split(b"\n")
    if crc32c(body) != crc or len(lines) != count:
        return Row(first, received, [], damaged=True)
    return Row(first, received, lines, damaged=False)


def _entries(row: Row, seq: int, limit: int, max_bytes: int) -> tuple[list[Entry], int]:
    """Return entries of a row from `seq` on, and their size: at most `limit`, about `max_bytes`, but at least one."""
    lines = row.lines[seq - row.first : seq - row.first + limit]
    size = sum(map(len, lines))
    if size > max_bytes:
        size = 0
        for count, line in enumerate(lines):
            if count and size + len(line) > max_bytes:
                lines = lines[:count]
                break
            size += len(line)
    return [Entry(seq + offset, row.received, line) for offset, line in enumerate(lines)], size
