"""The cursors: how far each sink has got, its counts, what it reads next, and what a settlement makes of them."""

import sqlite3
import threading
from functools import partial
from typing import Literal

import structlog

from bridge.journal import file, queues, tables
from bridge.journal.model import Limits, Settlement, SinkCounters, Work
from bridge.journal.tables import Row, SinkRow
from bridge.journal.writer import Store
from bridge.sink import Entry

log = structlog.get_logger(__name__)


class Cursor:
    """A sink's cursor and counts in memory, and its own connection for reading.

    `row`, `retrying` and `dead_letters` change under the journal's lock; `read` belongs to the sink's thread.

    Attributes:
        max_pending: Events in the retry queue at which nothing new is read.
        reading: Held while `db` is used, so that it is not closed then.
        next_unread: The sequence number after the last event that was read, and may be in delivery.
    """

    def __init__(self, row: SinkRow, retrying: int, dead_letters: int, db: sqlite3.Connection) -> None:
        self.max_pending = 0
        self.reading = threading.Lock()
        self.row = row
        self.retrying = retrying
        self.dead_letters = dead_letters
        self.db = db
        self.next_unread = row.cursor
        # The row that `read` is in the middle of: a sink that takes ten events at a time must not load it ten times.
        self._ahead: Row | None = None
        # Counts the changes of the retry queue, and the one after which its heads were looked up.
        self._queue_version = 0
        self._heads_version = -1
        self._heads: dict[str, float] = {}

    def counters(self, next_seq: int) -> SinkCounters:
        """Return the sink's counters; `next_seq` is the sequence number of the journal's next event."""
        return self.row.counters(next_seq, self.retrying, self.dead_letters)

    def next_work(self, sink: str, now: float, limits: Limits, end: int, *, new_first: bool) -> tuple[Work, list[int]]:
        """Return the work of `Journal.next_work` that is there now, and the row ids of damaged retries."""
        heads = self.heads(sink)
        due = queues.DueRetries([], [])
        if heads and any(at <= now or at > limits.horizon for at in heads.values()):
            due = queues.due_retries(
                self.db, sink, now=now, horizon=limits.horizon, limit=limits.max_events, max_bytes=limits.max_bytes
            )
        entries: list[Entry] = []
        if self.retrying < limits.max_pending and (new_first or not due.retries):
            entries = self.read(end, limits.max_events, limits.max_bytes)
        next_due = min(heads.values()) if heads else None
        return Work(due.retries, entries, heads.keys(), next_due, self.retrying), due.damaged

    def read(self, end: int, limit: int, max_bytes: int) -> list[Entry]:
        """Read events from the cursor on, before `end` and within the limits, up to a row that is missing or damaged."""
        seq = self.row.cursor
        entries: list[Entry] = []
        while seq < end and len(entries) < limit and max_bytes > 0:
            row = self.row_at(seq)
            if row is None or row.damaged:
                break
            some, size = tables.entries_of(row, seq, min(limit - len(entries), end - seq), max_bytes)
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
        row = self._ahead
        if row is None or not row.first <= seq < row.first + len(row.lines):
            row = self._ahead = tables.load_row(self.db, seq)
        return row

    def heads(self, sink: str) -> dict[str, float]:
        """Return the ordering keys of the retry queue, each with the due time of its first event; cached until a change."""
        # Taken before the look: what another thread changes meanwhile is looked up next time.
        version = self._queue_version
        if version != self._heads_version:
            self._heads = queues.heads(self.db, sink) if self.retrying else {}
            self._heads_version = version
        return self._heads

    def settled(self, row: SinkRow, retrying: int, dead_letters: int) -> None:
        """Take over a recorded settlement, by which the retry queue and the dead letters grew so much."""
        self.row = row
        self.dead_letters += dead_letters
        self.queue_grew(retrying)

    def queue_grew(self, count: int) -> None:
        """Note a change of the retry queue, which grew by a count."""
        self.retrying += count
        # After the count: a thread that sees this number sees that one.
        self._queue_version += 1

    def after(self, outcome: Settlement) -> SinkRow:
        """Return the row of the table as it is once the outcome is recorded."""
        row = self.row
        return row._replace(
            cursor=max(row.cursor, outcome.next_seq),
            delivered=row.delivered + outcome.delivered,
            filtered=row.filtered + outcome.filtered,
            dead=row.dead + len(outcome.dead),
        )

    def jumped(self, end: int) -> SinkRow:
        """Return the row of the table as it is once all events before `end` are dropped.

        Events that are being delivered are dropped all or none, so that their settlement can tell.
        """
        end = max(end, self.next_unread)
        return self.row._replace(cursor=end, dropped=self.row.dropped + end - self.row.cursor)


class Sinks(dict[str, Cursor]):
    """The cursors by the sinks' names. All methods belong to the holder of the journal's write lock."""

    def __init__(self, store: Store, changed: threading.Condition) -> None:
        super().__init__()
        self._store = store
        self._changed = changed

    def add(self, name: str, start_at: Literal["latest", "earliest"], next_seq: int) -> None:
        """Read or create a sink's cursor, and correct its counts if they do not add up.

        Raises:
            sqlite3.Error: It can't be recorded.
        """
        db = self._store.db
        row = before = tables.sinks(db).get(name)
        retrying = queues.count_retries(db).get(name, 0)
        dead_letters = queues.count_dead_letters(db).get(name, 0)
        if row is None:
            oldest = tables.oldest_first(db) if start_at == "earliest" else None
            start = next_seq if oldest is None else oldest
            row = tables.SinkRow(start, start, 0, 0, 0, 0)
        row = row.balanced(next_seq, retrying, dead_letters)
        if row != before:
            with self._store.transaction(synced=False):
                tables.save_sink(db, name, row)
        if before not in {None, row}:
            log.warning("the counts of a sink did not balance, and were corrected", sink=name, before=before, after=row)
        with self._changed:
            self[name] = Cursor(row, retrying, dead_letters, file.connect(self._store.path, read_only=True))

    def settle(self, name: str, outcome: Settlement) -> bool:
        """Record a settlement; return False if the disk fails. One of events that were dropped meanwhile changes nothing."""
        cursor, new = self[name], outcome.next_seq - outcome.first_seq
        if new and outcome.first_seq != cursor.row.cursor:
            return True
        after = cursor.after(outcome)
        save = partial(tables.save_settlement, name=name, row=after, outcome=outcome)
        if not self._store.try_to_write(f"settle {name}", save, synced=False):
            return False
        with self._changed:
            left = new - outcome.delivered - outcome.filtered - len(outcome.dead)
            cursor.settled(after, left, len(outcome.dead))
        return True

    def forget_except(self, names: set[str], next_seq: int) -> None:
        """Delete the cursors and retry queues of all other sinks, and log how much was pending.

        Raises:
            sqlite3.Error: It can't be recorded.
        """
        db = self._store.db
        retrying = queues.count_retries(db)
        rows = {name: row for name, row in tables.sinks(db).items() if name not in names}
        with self._store.transaction(synced=False):
            for name in rows:
                tables.delete_sink(db, name)
        for name, row in rows.items():
            with self._changed:
                gone = self.pop(name, None)
            if gone is not None:
                gone.close()
            pending = next_seq - row.cursor + retrying.get(name, 0)
            log.warning("a sink left the configuration, its cursor is forgotten", sink=name, pending_events=pending)
