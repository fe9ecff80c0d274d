"""Read the file of a journal while a bridge writes it, or after its process was killed."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

_UUID_BYTES = 16


class Look(NamedTuple):
    """A journal at one instant.

    Attributes:
        next_seq: The number that the next event will get.
        first: The number of the first of `uuids`.
        uuids: The events that were committed since the last look, in order.
        streams: Each stream's counts.
        sinks: Each sink's cursor and counts, with its `retrying` and `dead_letters`.
        retrying: The numbers in each sink's retry queue.
        dead: The uuids in each sink's dead letters.
    """

    next_seq: int
    first: int
    uuids: list[str]
    streams: dict[str, dict[str, int]]
    sinks: dict[str, dict[str, int]]
    retrying: dict[str, set[int]]
    dead: dict[str, set[str]]


NOTHING = Look(1, 1, [], {}, {}, {}, {})
"""A journal that was not begun yet."""


def look(path: Path, after: int) -> Look:
    """Read the journal, its events with numbers above `after`.

    Raises:
        sqlite3.Error: It can't be read.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=30)) as db:
        db.row_factory = sqlite3.Row
        db.execute("BEGIN")  # All of it at one instant.
        found = list(db.execute("SELECT first, uuids FROM seen WHERE first > ? ORDER BY first", (after,)))
        return Look(
            next_seq=db.execute("SELECT next_seq FROM meta").fetchone()[0],
            first=found[0]["first"] if found else after + 1,
            uuids=[uuid for row in found for uuid in _uuids(row["uuids"])],
            streams={row["name"]: _counts(row) | _malformed(db, row["name"]) for row in db.execute("SELECT * FROM streams")},
            sinks={row["name"]: _counts(row) | _waiting(db, row["name"]) for row in db.execute("SELECT * FROM sinks")},
            retrying=_by_sink(db.execute("SELECT sink, seq FROM retries"), int),
            dead=_by_sink(db.execute("SELECT sink, json FROM dead_letters"), lambda event: json.loads(event)["uuid"]),
        )


def problems(look: Look) -> list[str]:
    """Return the counters that do not add up."""
    wrong = []
    for name, stream in look.streams.items():
        if stream["received"] != stream["accepted"] + stream["duplicate"] + stream["malformed"]:
            wrong.append(f"stream {name}: {stream}")
    if look.streams and sum(stream["accepted"] for stream in look.streams.values()) != look.next_seq - 1:
        wrong.append(f"{look.next_seq - 1} numbers are taken, and the streams say {look.streams}")
    for name, sink in look.sinks.items():
        pending = look.next_seq - sink["cursor"] + sink["retrying"]
        ends = sum(sink[end] for end in ("delivered", "filtered", "dead", "dropped"))
        if look.next_seq - sink["start"] + sink["replayed"] + sink["rewound"] != ends + pending:
            wrong.append(f"sink {name}: {pending} are pending, next is {look.next_seq}, and it says {sink}")
        if sink["dead"] != sink["dead_letters"] + sink["replayed"] + sink["discarded"]:
            wrong.append(f"sink {name}: its dead letters do not add up: {sink}")
    return wrong


def counts(look: Look) -> dict[Any, float]:
    """The counts that never go back."""
    ever = {("streams", name, what): float(value) for name, stream in look.streams.items() for what, value in stream.items()}
    for name, sink in look.sinks.items():
        ever |= {("sinks", name, what): float(sink[what]) for what in sink.keys() - {"retrying", "dead_letters"}}
    return ever | {("next_seq",): float(look.next_seq)}


def _uuids(keys: bytes) -> list[str]:
    return [str(UUID(bytes=keys[i : i + _UUID_BYTES])) for i in range(0, len(keys), _UUID_BYTES)]


def _counts(row: sqlite3.Row) -> dict[str, int]:
    return {key: row[key] for key in row.keys() if key not in {"name", "position"}}  # noqa: SIM118 - a row's iterator gives its values


def _malformed(db: sqlite3.Connection, stream: str) -> dict[str, int]:
    return {"malformed": db.execute("SELECT coalesce(sum(count), 0) FROM malformed WHERE stream = ?", (stream,)).fetchone()[0]}


def _waiting(db: sqlite3.Connection, sink: str) -> dict[str, int]:
    return {
        "retrying": db.execute("SELECT count(*) FROM retries WHERE sink = ?", (sink,)).fetchone()[0],
        "dead_letters": db.execute("SELECT count(*) FROM dead_letters WHERE sink = ?", (sink,)).fetchone()[0],
    }


def _by_sink(rows: sqlite3.Cursor, value: Any) -> dict[str, set[Any]]:
    found: dict[str, set[Any]] = {}
    for sink, what in rows:
        found.setdefault(sink, set()).add(value(what))
    return found
