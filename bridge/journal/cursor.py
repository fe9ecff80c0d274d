"""One sink's place in the journal: its counts, what it reads next, and what a settlement makes of them."""

import sqlite3
import threading

from bridge.journal import queues, tables
from bridge.journal.model import Settlement, SinkBooks
from bridge.journal.tables import Row, SinkRow
from bridge.sink import Entry


class Cursor:
    """A sink's cursor and counts in memory, and its own connection for reading.

    `row`, `retrying` and `dead_letters` change under the journal's lock; `read` belongs to the sink's thread.

    Attributes:
        reading: Held while `db` is used, so that nobody closes it then.
        row: What the journal's table says of the sink.
        retrying: How many events wait in its retry queue.
        dead_letters: How many dead letters it has.
        read_upto: The place after what was read last, and may be on its way to the far side now.
    """

    def __init__(self, row: SinkRow, retrying: int, dead_letters: int, db: sqlite3.Connection) -> None:
        self.reading = threading.Lock()
        self.row = row
        self.retrying = retrying
        self.dead_letters = dead_letters
        self.db = db
        self.read_upto = row.cursor
        # The row that `read` is in the middle of: a sink that takes ten events at a time must not load it ten times.
        self._ahead: Row | None = None
        # Counts the changes of the retry queue, and the one after which its heads were looked up.
        self._queue_version = 0
        self._heads_version = -1
        self._heads: dict[str, float] = {}

    def books(self, next_seq: int) -> SinkBooks:
        """The sink's counts, if the journal's next event would get place `next_seq`."""
        return self.row.books(next_seq, self.retrying, self.dead_letters)

    def read(self, end: int, limit: int, max_bytes: int) -> list[Entry]:
        """Take events from the cursor on, up to place `end` and the limits; stop before a row that is missing or damaged."""
        seq = self.row.cursor
        entries: list[Entry] = []
        while seq < end and len(entries) < limit and max_bytes > 0:
            row = self.row_at(seq)
            if row is None or row.damaged:
                break
            some = _slice(row, seq, min(limit - len(entries), end - seq), max_bytes)
            max_bytes -= sum(len(entry.json) for entry in some)
            entries += some
            seq += len(some)
        self.read_upto = seq
        return entries

    def row_at(self, seq: int) -> Row | None:
        """The row that holds a place; None if it is not there."""
        row = self._ahead
        if row is None or not row.first <= seq < row.first + len(row.lines):
            row = self._ahead = tables.load_row(self.db, seq)
        return row

    def heads(self, sink: str) -> dict[str, float]:
        """The lanes of the retry queue, and when the first event of each is due; asked of the table once a change of it."""
        # Taken before the look: what another thread changes meanwhile is looked up next time.
        version = self._queue_version
        if version != self._heads_version:
            self._heads = queues.heads(self.db, sink) if self.retrying else {}
            self._heads_version = version
        return self._heads

    def settled(self, row: SinkRow, retrying: int, dead_letters: int) -> None:
        """A settlement was recorded, by which the retry queue and the dead letters grew so much."""
        self.row = row
        self.dead_letters += dead_letters
        self.queue_grew(retrying)

    def queue_grew(self, count: int) -> None:
        """The retry queue changed, and grew by a count."""
        self.retrying += count
        # After the count: whoever sees this number sees that one.
        self._queue_version += 1

    def after(self, outcome: Settlement) -> SinkRow:
        """What the table says once the outcome is recorded."""
        row = self.row
        return row._replace(
            cursor=max(row.cursor, outcome.upto),
            delivered=row.delivered + outcome.delivered,
            filtered=row.filtered + outcome.filtered,
            dead=row.dead + len(outcome.dead),
        )

    def jumped(self, end: int) -> SinkRow:
        """What the table says once all before `end` is dropped.

        What is on its way to the far side is dropped as a whole or not at all, so that its settlement can tell.
        """
        end = max(end, self.read_upto)
        return self.row._replace(cursor=end, dropped=self.row.dropped + end - self.row.cursor)


def _slice(row: Row, seq: int, limit: int, max_bytes: int) -> list[Entry]:
    """Entries of a row from a place on: at most `limit`, about `max_bytes`, but at least one."""
    lines = row.lines[seq - row.first : seq - row.first + limit]
    if sum(map(len, lines)) > max_bytes:
        total = 0
        for count, line in enumerate(lines):
            total += len(line)
            if total > max_bytes:
                lines = lines[: max(1, count)]
                break
    return [Entry(seq + offset, row.received, line) for offset, line in enumerate(lines)]
