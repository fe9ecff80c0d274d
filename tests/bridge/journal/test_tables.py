"""The statements: what they find, and that they don't look at more than they must."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bridge.event import Malformed
from bridge.journal import Retry, file, tables
from bridge.journal.tables import QUARANTINE_BYTES, QUARANTINE_FRAMES


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(file.prepare(tmp_path / "journal.db")) as connection:
        yield connection


def store(db: sqlite3.Connection, rows: int) -> None:
    """Rows of two events each, from place 1 on."""
    db.execute("BEGIN")
    for first in range(1, 2 * rows, 2):
        tables.insert_batch(db, first, 0.0, {seq.to_bytes(16, "big"): b"{}" for seq in (first, first + 1)})
    db.execute("COMMIT")


def work_of(db: sqlite3.Connection, before: int) -> int:
    """How much SQLite has to do to delete what lies before a place, in hundreds of its instructions."""
    hundreds = 0

    def count() -> int:
        nonlocal hundreds
        hundreds += 1
        return 0

    db.set_progress_handler(count, 100)
    tables.delete_batches(db, before, 256)
    db.set_progress_handler(None, 0)
    return hundreds


def test_pruning_does_not_look_at_the_backlog(db: sqlite3.Connection) -> None:
    store(db, 5000)
    assert work_of(db, before=1) <= 2
    assert work_of(db, before=8) <= 2
    assert tables.oldest_first(db) == 7, "the row that ends after the place stays whole"


def retry(seq: int, lane: str, due: float, json: bytes = b"{}") -> Retry:
    return Retry(seq, 0.0, json, lane, 1, due, 0.0, "timeout", "no answer")


def due(db: sqlite3.Connection, now: float, *, limit: int = 100, max_bytes: int = 1000) -> list[int]:
    return [retry.seq for retry in tables.due_retries(db, "a", now=now, horizon=1000.0, limit=limit, max_bytes=max_bytes)]


def test_a_lane_is_due_when_its_first_event_is(db: sqlite3.Connection) -> None:
    tables.save_retries(db, "a", [retry(5, "x", 0.0), retry(3, "x", 20.0), retry(4, "y", 10.0), retry(6, "z", 30.0)])
    tables.save_retries(db, "b", [retry(1, "x", 0.0)])
    assert tables.heads(db, "a") == {"x": 20.0, "y": 10.0, "z": 30.0}
    assert due(db, 9.9) == []
    assert due(db, 10.0) == [4]
    assert due(db, 20.0) == [3, 4, 5]


def test_what_can_not_be_meant_is_due(db: sqlite3.Connection) -> None:
    tables.save_retries(db, "a", [retry(1, "x", 1000.0), retry(2, "y", 1000.1)])
    assert due(db, 10.0) == [2]


def test_due_events_are_taken_in_order_within_limits_and_at_least_one(db: sqlite3.Connection) -> None:
    tables.save_retries(db, "a", [retry(seq, f"lane {seq}", 0.0, b"x" * 100) for seq in range(1, 10)])
    assert due(db, 0.0, limit=2) == [1, 2]
    assert due(db, 0.0, max_bytes=300) == [1, 2, 3]
    assert due(db, 0.0, max_bytes=299) == [1, 2]
    assert due(db, 0.0, max_bytes=1) == [1]


def test_the_quarantine_keeps_the_latest_and_not_all_of_a_large_one(db: sqlite3.Connection) -> None:
    frame = bytes(QUARANTINE_BYTES + 1)
    tables.insert_quarantine(db, "s", 0.0, [Malformed("too_large", frame)])
    assert tables.quarantine(db, "s") == [Malformed("too_large", frame[:QUARANTINE_BYTES])]
    numbered = [Malformed("not_json", str(i).encode()) for i in range(QUARANTINE_FRAMES + 50)]
    tables.insert_quarantine(db, "s", 0.0, numbered[:-5])
    tables.insert_quarantine(db, "s", 0.0, numbered[-5:])
    assert tables.quarantine(db, "s") == numbered[50:]


def test_a_full_quarantine_leaves_most_of_the_smallest_journal_free(db: sqlite3.Connection) -> None:
    smallest = 16 * 1024 * 1024
    tables.insert_quarantine(db, "s", 0.0, [Malformed("too_large", bytes(QUARANTINE_BYTES))] * QUARANTINE_FRAMES)
    assert tables.used_bytes(db) < smallest / 3
