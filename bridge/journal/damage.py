"""What is wrong with a journal's tables, as far as that can be seen without reading every event.

SQLite looks after its own structure. What it can't know is what the rows mean: one changed bit in a cursor would deliver
events again, or not at all. But the books balance after every commit, and so they are their own checksum. Events, retries and
dead letters have checksums, which are looked at when they are read.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

from bridge.journal import queues, schema, tables


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error tells of a damaged file, and not of a lock, a disk that fails or a statement that is wrong."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return type(error) is sqlite3.DatabaseError
    # The lowest byte is the kind of error (https://sqlite.org/rescode.html).
    return code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def find_damage(db: sqlite3.Connection) -> str | None:
    """Say in words what is damaged in the tables of a journal of the present format; None if nothing is.

    Raises:
        sqlite3.Error: The file can't be read, or it is damaged as SQLite sees it.
    """
    try:
        return next(_of_tables(db), None) or next(_of_books(db), None)
    except (TypeError, ValueError, KeyError) as error:
        return f"a row has a value that it can't have: {error}"


def _of_tables(db: sqlite3.Connection) -> Iterator[str]:
    """Tables and indexes that are not what they should be."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        schema.migrate(fresh)
        for shape in sorted(_shapes(fresh) ^ _shapes(db)):
            yield f"the tables are not those of a journal: {' '.join(map(str, shape))}"


def _shapes(db: sqlite3.Connection) -> set[tuple[object, ...]]:
    """Every column of every table and index: its type, and its place in the key."""
    return set(
        db.execute(
            "SELECT m.name, c.name, c.type, c.pk FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table'"
            " AND m.name NOT LIKE 'sqlite_stat%'"
            " UNION ALL SELECT m.name, c.name, m.tbl_name, c.seqno FROM sqlite_schema m, pragma_index_info(m.name) c"
            " WHERE m.type = 'index'"
        )
    )


def _of_books(db: sqlite3.Connection) -> Iterator[str]:
    """Places and counts that can't be right."""
    following = tables.next_seq(db)
    streams, retrying = tables.stream_books(db), queues.count_retries(db)
    if following != 1 + sum(stream.accepted for stream in streams.values()):
        yield f"the next event can't have place {following}"
    if (tables.newest_first(db) or 0) >= following:
        yield f"an event has a place after {following}, the next one"
    for name, stream in streams.items():
        if stream.received != stream.accepted + stream.duplicate + sum(stream.malformed.values()):
            yield f"the books of stream {name} do not balance"
    for name, row in tables.sinks(db).items():
        counts = (row.delivered, row.filtered, row.dead, row.dropped, row.replayed, row.discarded)
        missing = row.cursor + row.replayed - row.start - sum(counts[:4]) - retrying.get(name, 0)
        # What is missing will count as dropped. Nothing can be there that was never accepted: it would be delivered again.
        if min(counts) < 0 or not row.start <= row.cursor <= following or missing < 0:
            yield f"the books of sink {name} do not balance"
