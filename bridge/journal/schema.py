"""The tables of the journal's file, and the checks that tell whether they are damaged.

SQLite checks its own structure. It can't know what the rows mean: one changed bit in a cursor would deliver events again, or
not at all. The counters add up after every commit, so they are checked like a checksum. Events, retries and dead letters have
checksums of their own, which are compared when they are read.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Final

from bridge.journal import queues, tables

SCHEMA_VERSION: Final = 3

OLDEST_VERSION: Final = 2
"""The oldest format that is brought to the present one."""

_SCHEMA: Final = """
CREATE TABLE meta (next_seq INTEGER NOT NULL, clock_offset REAL NOT NULL DEFAULT 0);
INSERT INTO meta VALUES (1, 0);
CREATE TABLE batches (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, received REAL NOT NULL, crc INTEGER NOT NULL,
    body BLOB NOT NULL);
CREATE TABLE seen (first INTEGER PRIMARY KEY, received REAL NOT NULL, uuids BLOB NOT NULL, namespace TEXT);
CREATE TABLE streams (name TEXT PRIMARY KEY, received INTEGER NOT NULL, accepted INTEGER NOT NULL,
    duplicate INTEGER NOT NULL, position TEXT) WITHOUT ROWID;
CREATE TABLE malformed (stream TEXT, reason TEXT, count INTEGER NOT NULL, PRIMARY KEY (stream, reason)) WITHOUT ROWID;
CREATE TABLE quarantine (id INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT NOT NULL, received REAL NOT NULL,
    reason TEXT NOT NULL, frame BLOB NOT NULL);
CREATE TABLE sinks (name TEXT PRIMARY KEY, start INTEGER NOT NULL, cursor INTEGER NOT NULL, delivered INTEGER NOT NULL,
    filtered INTEGER NOT NULL, dead INTEGER NOT NULL, dropped INTEGER NOT NULL, replayed INTEGER NOT NULL DEFAULT 0,
    discarded INTEGER NOT NULL DEFAULT 0, rewound INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE retries (sink TEXT, seq INTEGER, received REAL NOT NULL, json BLOB NOT NULL, lane TEXT NOT NULL,
    attempts INTEGER NOT NULL, due REAL NOT NULL, since REAL NOT NULL, reason TEXT NOT NULL, error TEXT NOT NULL,
    crc INTEGER NOT NULL DEFAULT -1, PRIMARY KEY (sink, seq));
CREATE INDEX retries_by_lane ON retries (sink, lane, seq, due);
CREATE TABLE dead_letters (id INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, seq INTEGER NOT NULL,
    received REAL NOT NULL, json BLOB NOT NULL, attempts INTEGER NOT NULL, first_failed REAL NOT NULL, died REAL NOT NULL,
    reason TEXT NOT NULL, error TEXT NOT NULL, lane TEXT NOT NULL DEFAULT '', crc INTEGER NOT NULL DEFAULT -1);
CREATE INDEX dead_letters_by_sink ON dead_letters (sink, id);
"""


def version(db: sqlite3.Connection) -> int:
    """Return the format of the file; 0 if nothing is in it yet."""
    found: int = db.execute("PRAGMA user_version").fetchone()[0]
    return found


def create(db: sqlite3.Connection) -> None:
    """Create the tables in one transaction, or bring those of an earlier format to the present one, unless they are there."""
    if version(db) < 1:
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
    elif version(db) < SCHEMA_VERSION:
        db.executescript(
            "BEGIN; ALTER TABLE meta ADD COLUMN clock_offset REAL NOT NULL DEFAULT 0;"
            " ALTER TABLE sinks ADD COLUMN rewound INTEGER NOT NULL DEFAULT 0;"
            f" ALTER TABLE seen ADD COLUMN namespace TEXT; PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
        )


def is_damage(error: sqlite3.Error) -> bool:
    """Return True for an error that means a damaged file, not a lock, a failing disk or a wrong statement."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return type(error) is sqlite3.DatabaseError
    # The lowest byte is the kind of error (https://sqlite.org/rescode.html).
    return code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def find_damage(db: sqlite3.Connection) -> str | None:
    """Say in words what is damaged in the tables of a journal of the present format; None if nothing is."""
    try:
        return next(_of_tables(db), None) or next(_of_books(db), None)
    except (TypeError, ValueError, KeyError) as error:
        return f"a row has a value that it can't have: {error}"


def _of_tables(db: sqlite3.Connection) -> Iterator[str]:
    """Yield the tables and indexes with other columns than expected."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        create(fresh)
        for shape in sorted(_shapes(fresh) ^ _shapes(db)):
            yield f"the tables are not those of a journal: {' '.join(map(str, shape))}"


def _shapes(db: sqlite3.Connection) -> set[tuple[object, ...]]:
    """Return every column of every table and index, with its type and its position in the key."""
    return set(
        db.execute(
            "SELECT m.name, c.name, c.type, c.pk FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table'"
            " AND m.name NOT LIKE 'sqlite_stat%'"
            " UNION ALL SELECT m.name, c.name, m.tbl_name, c.seqno FROM sqlite_schema m, pragma_index_info(m.name) c"
            " WHERE m.type = 'index'"
        )
    )


def _of_books(db: sqlite3.Connection) -> Iterator[str]:
    """Yield the sequence numbers and counts that can't be right."""
    following = tables.next_seq(db)
    streams, retrying = tables.stream_counters(db), queues.count_retries(db)
    if following != 1 + sum(stream.accepted for stream in streams.values()):
        yield f"the next event can't have place {following}"
    if (tables.last_first(db) or 0) >= following:
        yield f"an event has a place after {following}, the next one"
    for name, stream in streams.items():
        if stream.received != stream.accepted + stream.duplicate + sum(stream.malformed.values()):
            yield f"the books of stream {name} do not balance"
    for name, row in tables.sinks(db).items():
        counts = (row.delivered, row.filtered, row.dead, row.dropped, row.replayed, row.discarded, row.rewound)
        missing = row.cursor + row.replayed + row.rewound - row.start - sum(counts[:4]) - retrying.get(name, 0)
        # What is missing will count as dropped. Nothing can be there that was never accepted: it would be delivered again.
        if min(counts) < 0 or not row.start - row.rewound <= row.cursor <= following or missing < 0:
            yield f"the books of sink {name} do not balance"
