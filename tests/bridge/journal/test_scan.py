"""The walk over what is stored: all that can be read comes in order, and what can't is counted and passed."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bridge.journal import JournalExtent, appender, file, scan
from bridge.journal.scan import Stretch

LINES = {seq: b"event %d" % seq for seq in range(1, 16)}
"""In five rows of three."""


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(file.prepare(tmp_path / "journal.db")) as connection:
        for first in range(1, 16, 3):
            lines = {seq.to_bytes(16, "big"): LINES[seq] for seq in range(first, first + 3)}
            appender.insert_batch(connection, first, 100.0, lines)
        yield connection


def walk(db: sqlite3.Connection, at: int = 1) -> list[Stretch]:
    return list(scan.stretches(db, at, scan.extent(db).next))


def good(first: int, last: int) -> Stretch:
    return Stretch(first, last + 1, 100.0, [LINES[seq] for seq in range(first, last + 1)])


def bad(first: int, last: int) -> tuple[int, int, list[bytes]]:
    return first, last + 1, []


def shape(stretches: list[Stretch]) -> list[tuple[int, int, list[bytes]]]:
    return [(one.first, one.end, one.lines) for one in stretches]


def test_everything_comes_in_order_from_any_place(db: sqlite3.Connection) -> None:
    assert scan.extent(db) == JournalExtent(1, 16)
    assert walk(db) == [good(1, 3), good(4, 6), good(7, 9), good(10, 12), good(13, 15)]
    assert walk(db, 9) == [good(9, 9), good(10, 12), good(13, 15)]
    assert walk(db, 16) == walk(db, 10**9) == []


def test_pruned_places_are_passed_over(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM batches WHERE first < 10")
    assert scan.extent(db) == JournalExtent(10, 16)
    assert walk(db, 2) == [good(10, 12), good(13, 15)]
    db.execute("DELETE FROM batches")
    assert scan.extent(db) == JournalExtent(16, 16)
    assert walk(db, 2) == []


def test_places_that_are_missing_after_others_were_lost(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM batches WHERE first IN (4, 13)")
    rest = [*shape([good(7, 9), good(10, 12)]), bad(13, 15)]
    assert shape(walk(db)) == [*shape([good(1, 3)]), bad(4, 6), *rest]
    assert shape(walk(db, 5)) == [bad(5, 6), *rest]
    assert shape(walk(db, 13)) == [bad(13, 15)]


@pytest.mark.parametrize(
    "change",
    [
        "body = CAST('event 7' AS BLOB)",
        "body = 5",
        "crc = crc + 1",
        "crc = 'x'",
        "count = 4",
        "count = -1",
        "count = 1 << 60",
        "count = 'many'",
        "received = 'then'",
    ],
)
def test_a_row_that_changed_is_passed_and_counted_to_the_next(db: sqlite3.Connection, change: str) -> None:
    db.execute(f"UPDATE batches SET {change} WHERE first = 7")
    expected = [*shape([good(1, 3), good(4, 6)]), bad(7, 9), *shape([good(10, 12), good(13, 15)])]
    assert shape(walk(db)) == expected
    db.execute(f"UPDATE batches SET {change} WHERE first = 13")
    assert shape(walk(db)) == [*expected[:-1], bad(13, 15)]


@pytest.mark.parametrize("following", [1, 5, 16, "'x'", "x'00'"])
def test_the_last_row_tells_the_end_if_the_next_place_is_damaged(db: sqlite3.Connection, following: object) -> None:
    db.execute(f"UPDATE meta SET next_seq = {following}")
    assert scan.extent(db) == JournalExtent(1, 16)
    assert len(walk(db)) == 5
    db.execute("DELETE FROM meta")
    assert scan.extent(db) == JournalExtent(1, 16)


def test_a_lock_is_told_and_is_no_damage(db: sqlite3.Connection, tmp_path: Path) -> None:
    db.execute("PRAGMA journal_mode=DELETE")
    with closing(sqlite3.connect(tmp_path / "journal.db", timeout=0)) as other:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            list(scan.stretches(other, 1, 16))
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            scan.extent(other)
        db.execute("ROLLBACK")
