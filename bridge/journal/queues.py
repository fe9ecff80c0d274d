"""The retry queue and the dead letters: their statements, and what moves between them. No locks, no state.

Every row has a checksum over all that it says. Rows are copied, changed and looked at one by one, so that a flipped byte in
one of them does not disturb the others; it must not deliver a wrong event either.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from crc32c import crc32c

from bridge.event import fields_of
from bridge.journal.model import DeadLetter, Limits, Retry, Settlement
from bridge.journal.pages import DeadLetterPage, DeadLetterQuery, StoredDeadLetter, time_of

_MAX_LOOKED_AT: Final = 10_000
"""Dead letters that one page looks at, at most, however few of them fit."""

_PAGE_BYTES: Final = 8 << 20
"""Bytes of events in one page of dead letters, at most; but at least one."""

_OVERHEAD: Final = 200
"""Bytes of a dead letter beside its event, about."""

_pack: Final = msgspec.msgpack.Encoder().encode

# The casts do nothing, unless a bit that tells bytes from text was flipped.
_RETRY: Final = "seq, received, CAST(json AS BLOB), lane, attempts, due, since, reason, error"
_LETTER: Final = "seq, received, CAST(json AS BLOB), lane, attempts, first_failed, died, reason, error"
_AMONG: Final = "id IN (SELECT value FROM json_each(?))"


class Letters(msgspec.Struct, frozen=True):
    """How many dead letters there are, and how many bytes they take, about."""

    count: int = 0
    size: int = 0

    def __add__(self, other: "Letters") -> "Letters":
        return Letters(self.count + other.count, self.size + other.size)

    def __sub__(self, other: "Letters") -> "Letters":
        return Letters(self.count - other.count, self.size - other.size)


def letters_of(events: Sequence[bytes]) -> Letters:
    """Return what the dead letters of events take."""
    return Letters(len(events), sum(map(len, events)) + _OVERHEAD * len(events))


def checksum(*values: object) -> int:
    """The checksum of a row's columns but itself, in the order of the table; text counts as its bytes."""
    return crc32c(_pack([value.encode() if isinstance(value, str) else value for value in values]))


def save(db: sqlite3.Connection, sink: str, outcome: Settlement) -> None:
    """Change the retry queue and the dead letters as a settlement says."""
    _insert_retries(db, "REPLACE", sink, outcome.retries)
    db.executemany("DELETE FROM retries WHERE sink = ? AND seq = ?", [(sink, seq) for seq in outcome.resolved])
    rows = []
    for d in outcome.dead:
        times = (float(d.first_failed), float(d.died))
        rows.append((sink, d.seq, float(d.received), d.json, d.ordering_key, d.attempts, *times, d.reason, d.error))
    db.executemany(
        "INSERT INTO dead_letters (sink, seq, received, json, lane, attempts, first_failed, died, reason, error, crc)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(*row, checksum(*row)) for row in rows],
    )


def replay(db: sqlite3.Connection, sink: str, ids: Sequence[int], cursor: int, now: float) -> tuple[Letters, int]:
    """Move a sink's sound dead letters to its retry queue, due at once; return those that were there, and how many moved.

    An event that waits already, in the retry queue or after the cursor, is not queued twice (a sink that left and came back
    may have both): its dead letter is deleted.
    """
    found = dead_letters_of(db, sink, ids)
    # As if it had never been tried.
    retries = [
        Retry(d.seq, d.received, d.json, d.ordering_key, 0, now, now, "held", f"sent again after: {d.error}")
        for d in found.values()
        if d.seq < cursor
    ]
    moved = _insert_retries(db, "IGNORE", sink, retries)
    delete_dead(db, list(found))
    return letters_of([dead.json for dead in found.values()]), moved


def _insert_retries(db: sqlite3.Connection, conflict: str, sink: str, retries: Iterable[Retry]) -> int:
    """Put events into the retry queue; return how many rows were written."""
    rows = []
    for r in retries:
        # As SQLite gives them back: its REAL is always a float.
        row = (
            sink,
            r.seq,
            float(r.received),
            r.json,
            r.ordering_key,
            r.attempts,
            float(r.due),
            float(r.since),
            r.reason,
            r.error,
        )
        rows.append((*row, checksum(*row)))
    return db.executemany(f"INSERT OR {conflict} INTO retries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows).rowcount


def count_retries(db: sqlite3.Connection) -> dict[str, int]:
    """Return the number of events in each sink's retry queue."""
    return dict(db.execute("SELECT sink, count(*) FROM retries GROUP BY sink"))


def waiting(db: sqlite3.Connection, sink: str, after: int, limit: int) -> list[int]:
    """Return the sequence numbers of at most so many events of a retry queue, in order, from the one after `after` on."""
    found = db.execute("SELECT seq FROM retries WHERE sink = ? AND seq > ? ORDER BY seq LIMIT ?", (sink, after, limit))
    return [seq for (seq,) in found]


def heads(db: sqlite3.Connection, sink: str) -> tuple[dict[str, float], int]:
    """Return the ordering keys of a retry queue, each with the due time of its first event; and the bytes of all events."""
    # With min(), SQLite takes the bare column `due` from the row that has the minimum.
    found = db.execute("SELECT lane, min(seq), due, total(length(json)) FROM retries WHERE sink = ? GROUP BY lane", (sink,))
    rows = found.fetchall()
    return {ordering_key: due for ordering_key, _, due, _ in rows}, int(sum(size for *_, size in rows))


def due_retries(db: sqlite3.Connection, sink: str, now: float, limits: Limits) -> tuple[list[Retry], list[int]]:
    """Return retries in order: the first of an ordering key is due, and those that wait behind it come along.

    The row ids of damaged ones come apart.
    """
    found = db.execute(
        f"SELECT rowid, crc, {_RETRY} FROM retries WHERE sink = :sink AND lane IN ("
        " SELECT lane FROM (SELECT lane, min(seq), due FROM retries WHERE sink = :sink GROUP BY lane)"
        " WHERE due <= :now OR due > :horizon) ORDER BY seq LIMIT :limit",
        {"sink": sink, "now": now, "horizon": limits.horizon, "limit": limits.max_events},
    )
    max_bytes = limits.max_bytes
    due, damaged = list[Retry](), list[int]()
    for rowid, crc, *row in found:
        if checksum(sink, *row) != crc:
            damaged.append(rowid)
            continue
        retry = Retry(*row)
        max_bytes -= len(retry.json)
        if due and max_bytes < 0:
            break
        due.append(retry)
    return due, damaged


def oldest_retry(db: sqlite3.Connection, sink: str) -> bytes | None:
    """The JSON of the oldest event in the retry queue; None if it is damaged."""
    statement = f"SELECT crc, {_RETRY} FROM retries WHERE sink = ? ORDER BY seq LIMIT 1"
    found = db.execute(statement, (sink,)).fetchone()
    if found is None or checksum(sink, *found[1:]) != found[0]:
        return None
    return Retry(*found[1:]).json


def dead_letters(db: sqlite3.Connection, query: DeadLetterQuery, after: int, limit: int) -> DeadLetterPage:
    """Return dead letters that fit a query by id, from the one after `after` on."""
    found: list[StoredDeadLetter] = []
    upto, looked_at, left = after, 0, _PAGE_BYTES
    statement = f"SELECT id, sink, crc, {_LETTER} FROM dead_letters WHERE id > ? ORDER BY id LIMIT ?"
    for row in db.execute(statement, (after, _MAX_LOOKED_AT)):
        letter = _stored(*row)
        if _fits(query, letter):
            left -= memoryview(letter.event).nbytes
            if found and (left < 0 or len(found) >= limit):
                return DeadLetterPage(found, upto)
            found.append(letter)
        upto, looked_at = letter.id, looked_at + 1
    return DeadLetterPage(found, upto if looked_at == _MAX_LOOKED_AT else None)


def dead_letters_of(db: sqlite3.Connection, sink: str, ids: Sequence[int]) -> dict[int, DeadLetter]:
    """Return the sound dead letters of a sink with these ids, as far as they are there, by id in order."""
    rows = db.execute(f"SELECT id, sink, crc, {_LETTER} FROM dead_letters WHERE {_AMONG} ORDER BY id", (_list(ids),))
    return {id_: DeadLetter(*row) for id_, owner, crc, *row in rows if owner == sink and checksum(owner, *row) == crc}


def oldest_dead_letters(db: sqlite3.Connection, limit: int, sink: str | None = None) -> list[tuple[int, int, float]]:
    """Return the oldest dead letters, of all sinks or of one: their ids, about how many bytes they take, when they died."""
    columns = f"SELECT id, ifnull(length(json), 0) + {_OVERHEAD}, died FROM dead_letters"
    if sink is None:
        return db.execute(f"{columns} ORDER BY id LIMIT ?", (limit,)).fetchall()
    return db.execute(f"{columns} WHERE sink = ? ORDER BY id LIMIT ?", (sink, limit)).fetchall()


def delete_dead(db: sqlite3.Connection, ids: Sequence[int]) -> dict[str, Letters]:
    """Delete dead letters; return how many there were of each sink."""
    gone = weigh_dead_letters(db, f"WHERE {_AMONG}", (_list(ids),))
    db.execute(f"DELETE FROM dead_letters WHERE {_AMONG}", (_list(ids),))
    return gone


def weigh_dead_letters(db: sqlite3.Connection, where: str = "", values: tuple[str, ...] = ()) -> dict[str, Letters]:
    """Return how many dead letters each sink has, and their bytes."""
    columns = f"sink, count(*), CAST(total(length(json) + {_OVERHEAD}) AS INTEGER)"
    found = db.execute(f"SELECT {columns} FROM dead_letters {where} GROUP BY sink", values)
    return {sink: Letters(*rest) for sink, *rest in found}


def _list(ids: Sequence[int]) -> str:
    return msgspec.json.encode(ids).decode()


def _stored(id_: int, sink: Any, crc: Any, *row: Any) -> StoredDeadLetter:
    if checksum(sink, *row) != crc:
        return StoredDeadLetter(id_, sink if isinstance(sink, str) else "", damaged=True)
    letter = DeadLetter(*row)
    return StoredDeadLetter(
        id=id_,
        sink=sink,
        reason=letter.reason,
        error=letter.error,
        attempts=letter.attempts,
        received=time_of(letter.received),
        first_failed=time_of(letter.first_failed),
        died=time_of(letter.died),
        seq=letter.seq,
        event=msgspec.Raw(letter.json),
    )


def _fits(query: DeadLetterQuery, letter: StoredDeadLetter) -> bool:
    """Return True if a dead letter fits a query."""
    if query.sink not in {None, letter.sink} or query.reason not in {None, letter.reason}:
        return False
    if query.since is not None and (letter.died is None or letter.died < query.since):
        return False
    if query.uuid is None and query.type is None:
        return True
    try:
        fields = fields_of(bytes(letter.event))
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return query.uuid in {None, fields.uuid} and query.type in {None, fields.type}
