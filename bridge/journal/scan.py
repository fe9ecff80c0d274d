"""A walk over the stored events, any part of which may be damaged: every step goes forward, and no event is made up."""

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from bridge.journal import tables
from bridge.journal.cursor import Row, load_row
from bridge.journal.pages import JournalExtent


class Stretch(NamedTuple):
    """The sequence numbers `[first, end)` with their events, or without lines if they can't be read."""

    first: int
    end: int
    received: float
    lines: list[bytes]


def extent(db: sqlite3.Connection) -> JournalExtent:
    """Return the first and the next sequence number, as far as they can be read."""
    try:
        following = tables.next_seq(db)
    except sqlite3.DatabaseError as error:
        _only_damage(error)
        following = 0
    try:
        first, last = tables.oldest_first(db), tables.last_first(db)
        row = None if last is None else load_row(db, last)
    except sqlite3.DatabaseError as error:
        _only_damage(error)
        if not following:
            raise
        return JournalExtent(1, following)
    if row is not None:
        # If `next_seq` is damaged, the last row gives it, too.
        following = max(following, row.first + max(1, len(row.lines)))
    following = max(1, following)
    return JournalExtent(following if first is None else min(first, following), following)


def stretches(db: sqlite3.Connection, at: int, end: int) -> Iterator[Stretch]:
    """Yield the stored events of `[at, end)` in order, with the damaged stretches between them.

    Batches are deleted oldest first. So missing numbers after a stored row were lost; missing numbers before all stored rows
    were pruned, and are passed over.
    """
    while at < end:
        try:
            row = _row_from(db, at)
            lost = (row is None or row.first > at) and db.execute(
                "SELECT 1 FROM batches WHERE first < ? LIMIT 1", (at,)
            ).fetchone()
        except sqlite3.DatabaseError as error:
            _only_damage(error)
            resumed = _readable_again(db, at, end)
            yield Stretch(at, resumed, 0.0, [])
            at = resumed
            continue
        begin = end if row is None else min(max(row.first, at), end)
        if lost and begin > at:
            yield Stretch(at, begin, 0.0, [])
        if row is None or begin == end:
            return
        at = begin
        stop = max(at + 1, _end_of(db, row, end))
        yield Stretch(at, stop, row.received, row.lines[at - row.first : stop - row.first])
        at = stop


def _row_from(db: sqlite3.Connection, at: int) -> Row | None:
    """Return the row that holds a sequence number, or else the next row; None if there is none."""
    row = load_row(db, at)
    if row is not None:
        return row
    first = tables.first_after(db, at)
    row = None if first is None or first <= at else load_row(db, first)
    if first is not None and row is None:
        raise sqlite3.DatabaseError("a row is not where its key is")
    return row


def _end_of(db: sqlite3.Connection, row: Row, end: int) -> int:
    """Return the sequence number after a row's last event; for a damaged row, the first of the next row."""
    if not row.damaged:
        return min(row.first + len(row.lines), end)
    try:
        following = tables.first_after(db, row.first)
    except sqlite3.DatabaseError as error:
        _only_damage(error)
        following = None
    return end if following is None else min(following, end)


def _readable_again(db: sqlite3.Connection, bad: int, end: int) -> int:
    """Return the number from which rows can be read again after an unreadable one, in about 2 log2(end) reads."""
    step = 1
    while bad + step < end and not _is_readable(db, bad + step):
        bad, step = bad + step, step * 2
    good = min(bad + step, end)
    while good - bad > 1:
        middle = (good + bad) // 2
        if _is_readable(db, middle):
            good = middle
        else:
            bad = middle
    return good


def _is_readable(db: sqlite3.Connection, at: int) -> bool:
    try:
        _row_from(db, at)
    except sqlite3.DatabaseError as error:
        _only_damage(error)
        return False
    return True


def _only_damage(error: sqlite3.DatabaseError) -> None:
    """Ignore damage of the file or of the disk below it; raise every other error."""
    if not getattr(error, "sqlite_errorname", "SQLITE_CORRUPT").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR")):
        raise error
