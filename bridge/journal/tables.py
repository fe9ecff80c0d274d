"""The statements on the journal's tables, and nothing else: no locks, no state, no decisions."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from crc32c import crc32c

from bridge.event import Malformed
from bridge.journal.records import DeadLetter, Retry, StreamBooks

QUARANTINE_FRAMES: Final = 250
"""How many malformed messages are kept, the latest ones: all of them take a third of the smallest journal at most."""

QUARANTINE_BYTES: Final = 16 * 1024
"""How much of a malformed message is kept."""

UUID_BYTES: Final = 16


class Row(NamedTuple):
    """One committed batch: `first` is the place of `lines[0]`. A damaged row has no lines."""

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


def next_seq(db: sqlite3.Connection) -> int:
    """The place that the next event will get; places are never used twice."""
    seq: int = db.execute("SELECT next_seq FROM meta").fetchone()[0]
    return seq


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


def stream_books(db: sqlite3.Connection) -> dict[str, StreamBooks]:
    """All streams' counts."""
    books = {
        name: StreamBooks(received, accepted, duplicate, {}, position)
        for name, received, accepted, duplicate, position in db.execute("SELECT * FROM streams")
    }
    for stream, reason, count in db.execute("SELECT * FROM malformed"):
        books[stream].malformed[reason] = count
    return books


def oldest_seen(db: sqlite3.Connection, since: float, limit: int) -> int | None:
    """The first place whose uuids are to be remembered: of batches received after `since`, at most about `limit` uuids."""
    oldest: int | None = None
    for first, size in db.execute("SELECT first, length(uuids) FROM seen WHERE received > ? ORDER BY first DESC", (since,)):
        oldest = first
        limit -= size // UUID_BYTES
        if limit <= 0:
            break
    return oldest


def seen_keys(db: sqlite3.Connection, oldest: int) -> Iterator[tuple[int, list[bytes]]]:
    """The uuids of all batches from a place on, oldest first; one after another, since a million of them would take 200 MiB."""
    for first, uuids in db.execute("SELECT first, uuids FROM seen WHERE first >= ? ORDER BY first", (oldest,)):
        yield first, [uuids[i : i + UUID_BYTES] for i in range(0, len(uuids), UUID_BYTES)]


def load_row(db: sqlite3.Connection, seq: int) -> Row | None:
    """The row that holds place `seq`; None if it is gone."""
    # The cast does nothing, unless the bit that tells bytes from text was flipped.
    found = db.execute(
        "SELECT first, count, received, crc, CAST(body AS BLOB) FROM batches WHERE first <= ? ORDER BY first DESC LIMIT 1",
        (seq,),
    ).fetchone()
    if found is None or found[0] + found[1] <= seq:
        return None
    first, count, received, crc, body = found
    lines = body.split(b"\n")
    if crc32c(body) != crc or len(lines) != count:
        return Row(first, received, [], damaged=True)
    return Row(first, received, lines, damaged=False)


def first_after(db: sqlite3.Connection, seq: int) -> int | None:
    """The place of the first event that is stored after a place."""
    first: int | None = db.execute("SELECT min(first) FROM batches WHERE first > ?", (seq,)).fetchone()[0]
    return first


def sinks(db: sqlite3.Connection) -> dict[str, SinkRow]:
    """All sinks that the journal knows."""
    return {name: SinkRow(*rest) for name, *rest in db.execute("SELECT * FROM sinks")}


def least_cursor(db: sqlite3.Connection) -> int | None:
    """The place that all sinks have passed; None if there is no sink."""
    cursor: int | None = db.execute("SELECT min(cursor) FROM sinks").fetchone()[0]
    return cursor


def save_sink(db: sqlite3.Connection, name: str, row: SinkRow) -> None:
    """Record a sink's cursor and counts."""
    db.execute("INSERT OR REPLACE INTO sinks VALUES (?, ?, ?, ?, ?, ?, ?)", (name, *row))


def delete_sink(db: sqlite3.Connection, name: str) -> None:
    """Forget a sink with its retry queue; its dead letters stay."""
    db.execute("DELETE FROM sinks WHERE name = ?", (name,))
    db.execute("DELETE FROM retries WHERE sink = ?", (name,))


def oldest_first(db: sqlite3.Connection) -> int | None:
    """The place of the first event that is still stored."""
    first: int | None = db.execute("SELECT min(first) FROM batches").fetchone()[0]
    return first


def oldest_end(db: sqlite3.Connection, rows: int) -> int | None:
    """The place after the oldest stored batches, so many of them; None if nothing is stored."""
    end: int | None = db.execute(
        "SELECT max(first + count) FROM (SELECT first, count FROM batches ORDER BY first LIMIT ?)", (rows,)
    ).fetchone()[0]
    return end


def delete_batches(db: sqlite3.Connection, before: int, limit: int) -> int:
    """Delete at most `limit` batches that lie wholly before a place; return how many."""
    return db.execute(
        # The first condition says nothing new, but keeps SQLite from looking at the whole backlog.
        "DELETE FROM batches WHERE first IN"
        " (SELECT first FROM batches WHERE first < :before AND first + count <= :before ORDER BY first LIMIT :limit)",
        {"before": before, "limit": limit},
    ).rowcount


def delete_seen(db: sqlite3.Connection, before: int, limit: int) -> int:
    """Delete the uuids of at most `limit` batches that begin before a place; return how many batches."""
    return db.execute(
        "DELETE FROM seen WHERE first IN (SELECT first FROM seen WHERE first < ? ORDER BY first LIMIT ?)", (before, limit)
    ).rowcount


def used_bytes(db: sqlite3.Connection) -> int:
    """How much of the file is in use."""
    pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)


def save_retries(db: sqlite3.Connection, sink: str, retries: Iterable[Retry]) -> None:
    """Put events into the retry queue, or replace what it says of them."""
    db.executemany(
        "INSERT OR REPLACE INTO retries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(sink, r.seq, r.received, r.json, r.lane, r.attempts, r.due, r.since, r.reason, r.error) for r in retries],
    )


def delete_retries(db: sqlite3.Connection, sink: str, seqs: Iterable[int]) -> None:
    """Take events out of the retry queue."""
    db.executemany("DELETE FROM retries WHERE sink = ? AND seq = ?", [(sink, seq) for seq in seqs])


def count_retries(db: sqlite3.Connection) -> dict[str, int]:
    """How many events wait in each sink's retry queue."""
    return dict(db.execute("SELECT sink, count(*) FROM retries GROUP BY sink"))


def heads(db: sqlite3.Connection, sink: str) -> dict[str, float]:
    """The lanes in which something waits, and when the first event of each is due."""
    # With min(), SQLite takes the bare column `due` from the row that has the minimum.
    found = db.execute("SELECT lane, min(seq), due FROM retries WHERE sink = ? GROUP BY lane", (sink,))
    return {lane: due for lane, _, due in found}


def due_retries(  # noqa: PLR0913 - the parameters of a statement
    db: sqlite3.Connection, sink: str, *, now: float, horizon: float, limit: int, max_bytes: int
) -> list[Retry]:
    """Events whose lane is due, in order: the first of a lane is due, and what waits behind it comes along.

    At most `limit` events and `max_bytes` bytes, but at least one. A due time beyond the horizon can't be meant, the clock
    was set back since: it counts as due.
    """
    found = db.execute(
        "SELECT seq, received, json, lane, attempts, due, since, reason, error FROM retries WHERE sink = :sink AND lane IN ("
        " SELECT lane FROM (SELECT lane, min(seq), due FROM retries WHERE sink = :sink GROUP BY lane)"
        " WHERE due <= :now OR due > :horizon) ORDER BY seq LIMIT :limit",
        {"sink": sink, "now": now, "horizon": horizon, "limit": limit},
    )
    due: list[Retry] = []
    for row in found:
        retry = Retry(*row)
        max_bytes -= len(retry.json)
        if due and max_bytes < 0:
            break
        due.append(retry)
    return due


def oldest_retry(db: sqlite3.Connection, sink: str) -> bytes | None:
    """The JSON of the oldest event in the retry queue."""
    found = db.execute("SELECT json FROM retries WHERE sink = ? ORDER BY seq LIMIT 1", (sink,)).fetchone()
    return None if found is None else bytes(found[0])


def insert_dead(db: sqlite3.Connection, sink: str, dead: Iterable[DeadLetter]) -> None:
    """Add dead letters."""
    db.executemany(
        "INSERT INTO dead_letters (sink, seq, received, json, attempts, first_failed, died, reason, error)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(sink, d.seq, d.received, d.json, d.attempts, d.first_failed, d.died, d.reason, d.error) for d in dead],
    )


def dead_letters(db: sqlite3.Connection, sink: str) -> list[DeadLetter]:
    """A sink's dead letters, oldest first."""
    found = db.execute(
        "SELECT seq, received, json, attempts, first_failed, died, reason, error FROM dead_letters WHERE sink = ? ORDER BY id",
        (sink,),
    )
    return [DeadLetter(*row) for row in found]


def count_dead_letters(db: sqlite3.Connection) -> dict[str, int]:
    """How many dead letters each sink has."""
    return dict(db.execute("SELECT sink, count(*) FROM dead_letters GROUP BY sink"))


def quarantine(db: sqlite3.Connection, stream: str) -> list[Malformed]:
    """The malformed messages of a stream that are kept, oldest first."""
    return [
        Malformed(reason, frame)
        for reason, frame in db.execute("SELECT reason, frame FROM quarantine WHERE stream = ? ORDER BY id", (stream,))
    ]
