"""The statements on events, streams and sinks, and nothing else: no locks, no state, no decisions."""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from crc32c import crc32c

from bridge.event import Malformed
from bridge.journal import queues
from bridge.journal.model import Batch, Settlement, SinkCounters, StreamCounters
from bridge.journal.pages import QuarantinedMessage, time_of
from bridge.sink import Entry

QUARANTINE_FRAMES: Final = 250
"""Malformed messages that are kept, the latest ones: they take a third of the smallest journal at most."""

QUARANTINE_BYTES: Final = 16 * 1024
"""Bytes of a malformed message that are kept."""

_LATEST: Final = 253_402_300_799.0
"""The last second of the year 9999: nothing was received later."""


class Row(NamedTuple):
    """One committed batch: `first` is the sequence number of `lines[0]`. A damaged row has no lines."""

    first: int
    received: float
    lines: list[bytes]
    damaged: bool


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

    def counters(self, next_seq: int, retrying: int, dead_letters: int) -> SinkCounters:
        """Return the counters; `next_seq` is the sequence number of the journal's next event."""
        return SinkCounters(
            accepted=next_seq - self.start,
            delivered=self.delivered,
            filtered=self.filtered,
            dead=self.dead,
            dropped=self.dropped,
            pending=next_seq - self.cursor + retrying,
            retrying=retrying,
            dead_letters=dead_letters,
            replayed=self.replayed,
            discarded=self.discarded,
        )

    def balanced(self, next_seq: int, retrying: int, dead_letters: int) -> "SinkRow":
        """Return a row whose counters add up. No counter decreases; a difference is added to another one.

        They do not if a sink comes back and finds its dead letters: they count as dead, and as accepted before. Nor do they
        if a row of a queue was lost with damage: it counts as dropped, or as discarded.
        """
        gone = self.dead - dead_letters - self.replayed - self.discarded
        row = self._replace(dead=self.dead + max(0, -gone), discarded=self.discarded + max(0, gone))
        exits = row.delivered + row.filtered + row.dead + row.dropped + next_seq - row.cursor + retrying
        lost = next_seq - row.start + row.replayed - exits
        return row._replace(start=row.start + min(0, lost), dropped=row.dropped + max(0, lost))


def next_seq(db: sqlite3.Connection) -> int:
    """Return the sequence number of the next event; none is used twice."""
    found = db.execute("SELECT next_seq FROM meta").fetchone()
    if found is None or not isinstance(found[0], int):
        raise sqlite3.DatabaseError("the place of the next event is damaged")
    return found[0]


def save_batches(db: sqlite3.Connection, batches: Sequence[tuple[Batch, int, dict[bytes, bytes]]]) -> None:
    """Store batches and count their events; each comes with its first sequence number and its new events (uuid to JSON)."""
    for batch, first, fresh in batches:
        if fresh:
            insert_batch(db, first, batch.received, fresh)
        if batch.malformed:
            insert_quarantine(db, batch.stream, batch.received, batch.malformed)
        received = len(batch.events) + len(batch.malformed)
        add_counts(db, batch.stream, (received, len(fresh), len(batch.events) - len(fresh)), batch.position)


def insert_batch(db: sqlite3.Connection, first: int, received: float, events: dict[bytes, bytes]) -> None:
    """Store events (uuid to JSON) as one row, and their uuids as another, so that each can go when it is not needed."""
    body = b"\n".join(events.values())
    db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", (first, len(events), received, crc32c(body), body))
    db.execute("INSERT INTO seen VALUES (?, ?, ?)", (first, received, b"".join(events)))
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
        "INSERT INTO malformed VALUES (?, ?, 1) ON CONFLICT (stream, reason) DO UPDATE SET count = count + 1",
        [(stream, frame.reason) for frame in malformed],
    )
    db.executemany(
        "INSERT INTO quarantine (stream, received, reason, frame) VALUES (?, ?, ?, ?)",
        [(stream, received, m.reason, m.frame[:QUARANTINE_BYTES]) for m in malformed[-QUARANTINE_FRAMES:]],
    )
    db.execute("DELETE FROM quarantine WHERE id <= (SELECT max(id) FROM quarantine) - ?", (QUARANTINE_FRAMES,))


def quarantine(db: sqlite3.Connection, after: int, limit: int) -> list[QuarantinedMessage]:
    """The malformed messages that are kept, by id, from the one after `after` on."""
    found = db.execute(
        "SELECT id, stream, received, reason, CAST(frame AS BLOB) FROM quarantine WHERE id > ? ORDER BY id LIMIT ?",
        (after, limit),
    )
    return [_quarantined(*row) for row in found]


def _quarantined(key: int, stream: Any, received: Any, reason: Any, frame: Any) -> QuarantinedMessage:
    """A row that has no checksum, as far as it can be true."""
    if isinstance(stream, str) and _is_time(received) and isinstance(reason, str) and isinstance(frame, bytes):
        return QuarantinedMessage(key, stream, time_of(received), reason, frame)
    return QuarantinedMessage(key, str(stream), time_of(0), "damaged", frame if isinstance(frame, bytes) else b"")


def _is_time(received: Any) -> bool:
    return isinstance(received, float) and 0 <= received <= _LATEST


def stream_counters(db: sqlite3.Connection) -> dict[str, StreamCounters]:
    """Return the counters of all streams."""
    counters = {
        name: StreamCounters(received, accepted, duplicate, {}, position)
        for name, received, accepted, duplicate, position in db.execute("SELECT * FROM streams")
    }
    for stream, reason, count in db.execute("SELECT * FROM malformed"):
        counters[stream].malformed[reason] = count
    return counters


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
    if not (isinstance(count, int) and _is_time(received) and isinstance(body, bytes)):
        return Row(first, 0.0, [], damaged=True)
    if first + count <= seq:
        return None
    lines = body.split(b"\n")
    if crc32c(body) != crc or len(lines) != count:
        return Row(first, received, [], damaged=True)
    return Row(first, received, lines, damaged=False)


def entries_of(row: Row, seq: int, limit: int, max_bytes: int) -> tuple[list[Entry], int]:
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


def first_after(db: sqlite3.Connection, seq: int) -> int | None:
    """Return the first sequence number of the next row after `seq`."""
    first: int | None = db.execute("SELECT min(first) FROM batches WHERE first > ?", (seq,)).fetchone()[0]
    return first


def is_stored_before(db: sqlite3.Connection, seq: int) -> bool:
    """Return whether an event before `seq` is stored."""
    return db.execute("SELECT 1 FROM batches WHERE first < ? LIMIT 1", (seq,)).fetchone() is not None


def last_first(db: sqlite3.Connection) -> int | None:
    """Return the first sequence number of the last stored batch."""
    first: int | None = db.execute("SELECT max(first) FROM batches").fetchone()[0]
    return first


def sinks(db: sqlite3.Connection) -> dict[str, SinkRow]:
    """Return all sinks that the journal knows."""
    return {name: SinkRow(*rest) for name, *rest in db.execute("SELECT * FROM sinks")}


def least_cursor(db: sqlite3.Connection) -> int | None:
    """Return the sequence number that all cursors have reached; None if there is no sink."""
    cursor: int | None = db.execute("SELECT min(cursor) FROM sinks").fetchone()[0]
    return cursor


def save_sink(db: sqlite3.Connection, name: str, row: SinkRow) -> None:
    """Record a sink's cursor and counts."""
    db.execute("INSERT OR REPLACE INTO sinks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (name, *row))


def save_settlement(db: sqlite3.Connection, name: str, row: SinkRow, outcome: Settlement) -> None:
    """Record a sink's cursor and counts after a delivery, and its changes of the retry queue and the dead letters."""
    save_sink(db, name, row)
    if outcome.retries:
        queues.save_retries(db, name, outcome.retries)
    if outcome.resolved:
        queues.delete_retries(db, name, outcome.resolved)
    if outcome.dead:
        queues.insert_dead(db, name, outcome.dead)


def delete_sink(db: sqlite3.Connection, name: str) -> None:
    """Forget a sink with its retry queue; its dead letters stay."""
    db.execute("DELETE FROM sinks WHERE name = ?", (name,))
    db.execute("DELETE FROM retries WHERE sink = ?", (name,))


def oldest_first(db: sqlite3.Connection) -> int | None:
    """Return the first stored sequence number."""
    first: int | None = db.execute("SELECT min(first) FROM batches").fetchone()[0]
    return first


def oldest_end(db: sqlite3.Connection, rows: int) -> int | None:
    """Return the sequence number after the oldest stored batches, so many of them; None if nothing is stored."""
    end: int | None = db.execute(
        "SELECT max(first + count) FROM (SELECT first, count FROM batches ORDER BY first LIMIT ?)", (rows,)
    ).fetchone()[0]
    return end


def delete_batches(db: sqlite3.Connection, before: int, limit: int) -> int:
    """Delete at most `limit` batches that lie wholly before a sequence number; return how many."""
    return db.execute(
        # The first condition says nothing new, but keeps SQLite from looking at the whole backlog.
        "DELETE FROM batches WHERE first IN"
        " (SELECT first FROM batches WHERE first < :before AND first + count <= :before ORDER BY first LIMIT :limit)",
        {"before": before, "limit": limit},
    ).rowcount


def delete_seen_from(db: sqlite3.Connection, at: int) -> int:
    """Delete the uuids of all batches from a sequence number on; return how many batches."""
    return db.execute("DELETE FROM seen WHERE first >= ?", (at,)).rowcount


def delete_seen(db: sqlite3.Connection, before: int, limit: int) -> int:
    """Delete the uuids of at most `limit` batches that begin before a sequence number; return how many batches."""
    return db.execute(
        "DELETE FROM seen WHERE first IN (SELECT first FROM seen WHERE first < ? ORDER BY first LIMIT ?)", (before, limit)
    ).rowcount
