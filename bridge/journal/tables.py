"""The statements on events, streams and sinks, and nothing else: no locks, no state, no decisions."""

import sqlite3
from typing import Any, Final, NamedTuple

from bridge.journal.model import SinkCounters, StreamCounters
from bridge.journal.pages import QuarantinedMessage, time_of

SAVE_SINK: Final = "INSERT OR REPLACE INTO sinks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
"""Takes a sink's name and `SinkRow`."""

LATEST: Final = 253_402_300_799.0
"""The last second of the year 9999: nothing was received later."""


class SinkRow(NamedTuple):
    """A sink's cursor and counts."""

    start: int
    cursor: int
    delivered: int
    filtered: int
    dead: int
    dropped: int
    replayed: int = 0
    discarded: int = 0
    rewound: int = 0

    def counters(self, next_seq: int, retrying: int, dead_letters: int) -> SinkCounters:
        """Return the counters; `next_seq` is the sequence number of the journal's next event."""
        pending = next_seq - self.cursor + retrying
        _, _, delivered, filtered, dead, dropped, *rest = self
        counts = (next_seq - self.start, delivered, filtered, dead, dropped, pending, retrying, dead_letters, *rest)
        return SinkCounters(*counts)

    def dropping(self, count: int) -> "SinkRow":
        """Return the row after so many events after the cursor were dropped."""
        return self._replace(cursor=self.cursor + count, dropped=self.dropped + count)

    def balanced(self, next_seq: int, retrying: int, dead_letters: int) -> "SinkRow":
        """Return a row whose counters add up. No counter decreases; a difference is added to another one.

        They do not if a sink comes back and finds its dead letters: they count as dead, and as accepted before. Nor do they
        if a row of a queue was lost with damage: it counts as dropped, or as discarded.
        """
        gone = self.dead - dead_letters - self.replayed - self.discarded
        row = self._replace(dead=self.dead + max(0, -gone), discarded=self.discarded + max(0, gone))
        exits = row.delivered + row.filtered + row.dead + row.dropped + next_seq - row.cursor + retrying
        lost = next_seq - row.start + row.replayed + row.rewound - exits
        return row._replace(start=row.start + min(0, lost), dropped=row.dropped + max(0, lost))


def next_seq(db: sqlite3.Connection) -> int:
    """Return the sequence number of the next event; none is used twice."""
    found = db.execute("SELECT next_seq FROM meta").fetchone()
    if found is None or not isinstance(found[0], int):
        raise sqlite3.DatabaseError("the place of the next event is damaged")
    return found[0]


def quarantine(db: sqlite3.Connection, after: int, limit: int) -> list[QuarantinedMessage]:
    """The malformed messages that are kept, by id, from the one after `after` on."""
    found = db.execute(
        "SELECT id, stream, received, reason, CAST(frame AS BLOB) FROM quarantine WHERE id > ? ORDER BY id LIMIT ?",
        (after, limit),
    )
    return [_quarantined(*row) for row in found]


def _quarantined(key: int, stream: Any, received: Any, reason: Any, frame: Any) -> QuarantinedMessage:
    """A row that has no checksum, as far as it can be true."""
    if not isinstance(frame, bytes):
        frame, reason = b"", None
    if isinstance(stream, str) and isinstance(reason, str) and isinstance(received, float) and 0 <= received <= LATEST:
        return QuarantinedMessage(key, stream, time_of(received), reason, frame)
    return QuarantinedMessage(key, str(stream), time_of(0), "damaged", frame)


def clock(db: sqlite3.Connection) -> tuple[float, float]:
    """Return by how much the clock was ahead of the one of the uuids, and the latest time by that."""
    (offset,) = db.execute("SELECT clock_offset FROM meta").fetchone() or (0.0,)
    (latest,) = db.execute("SELECT received FROM seen ORDER BY first DESC LIMIT 1").fetchone() or (0.0,)
    return tuple(value if isinstance(value, float) and abs(value) <= LATEST else 0.0 for value in (offset, latest))  # type: ignore[return-value]


def stream_counters(db: sqlite3.Connection) -> dict[str, StreamCounters]:
    """Return the counters of all streams."""
    counters = {
        name: StreamCounters(received, accepted, duplicate, {}, position)
        for name, received, accepted, duplicate, position in db.execute("SELECT * FROM streams")
    }
    for stream, reason, count in db.execute("SELECT * FROM malformed"):
        counters[stream].malformed[reason] = count
    return counters


def first_after(db: sqlite3.Connection, seq: int) -> int | None:
    """Return the first sequence number of the next row after `seq`."""
    first: int | None = db.execute("SELECT min(first) FROM batches WHERE first > ?", (seq,)).fetchone()[0]
    return first


def last_first(db: sqlite3.Connection) -> int | None:
    """Return the first sequence number of the last stored batch."""
    first: int | None = db.execute("SELECT max(first) FROM batches").fetchone()[0]
    return first


def sinks(db: sqlite3.Connection) -> dict[str, SinkRow]:
    """Return all sinks that the journal knows."""
    return {name: SinkRow(*rest) for name, *rest in db.execute("SELECT * FROM sinks")}


def oldest_first(db: sqlite3.Connection) -> int | None:
    """Return the first stored sequence number."""
    first: int | None = db.execute("SELECT min(first) FROM batches").fetchone()[0]
    return first


def seq_at(db: sqlite3.Connection, received: float) -> int | None:
    """Return the first sequence number that was received at a time or later; None if none was."""
    found = db.execute("SELECT first FROM batches WHERE received >= ? ORDER BY first LIMIT 1", (received,)).fetchone()
    return None if found is None else int(found[0])


def delete_received(db: sqlite3.Connection, received: float, before: int, limit: int) -> int:
    """Delete those of the oldest `limit` batches that lie wholly before a sequence number and a time; return how many."""
    return db.execute(
        "DELETE FROM batches WHERE first IN (SELECT first FROM (SELECT first, count, received FROM batches ORDER BY first"
        " LIMIT ?) WHERE first + count <= ? AND received < ?)",
        (limit, before, received),
    ).rowcount


def delete_batches(db: sqlite3.Connection, before: int, limit: int) -> int:
    """Delete at most `limit` batches that lie wholly before a sequence number; return how many."""
    return db.execute(
        # The first condition says nothing new, but keeps SQLite from looking at the whole backlog.
        "DELETE FROM batches WHERE first IN"
        " (SELECT first FROM batches WHERE first < :before AND first + count <= :before ORDER BY first LIMIT :limit)",
        {"before": before, "limit": limit},
    ).rowcount
