"""One sink's place: what it reads within its limits, and what becomes of its counts."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.journal import JournalError, Settlement, appender, tables
from bridge.journal.cursor import Cursor
from bridge.journal.queues import Letters
from bridge.journal.tables import SinkRow
from bridge.journal.writer import Store
from bridge.sink import Entry

START = SinkRow(start=1, cursor=1, delivered=0, filtered=0, dead=0, dropped=0)


def line(seq: int, size: int = 0) -> bytes:
    return f"{seq}:".encode().ljust(size, b".")


def store(db: sqlite3.Connection, *batches: list[bytes]) -> int:
    """Store batches from place 1 on; return the place after them."""
    seq = 1
    for batch in batches:
        events = {(seq + i).to_bytes(16, "big"): json for i, json in enumerate(batch)}
        appender.insert_batch(db, seq, 100.0 + seq, events)
        seq += len(batch)
    return seq


def cursor_at(seq: int, db: sqlite3.Connection) -> Cursor:
    return Cursor("a", START._replace(cursor=seq), 0, Letters(), db)


@pytest.fixture
def loads(db: sqlite3.Connection) -> Callable[[], int]:
    """Tells how many rows of events were looked up."""
    statements: list[str] = []
    db.set_trace_callback(statements.append)
    return lambda: sum("FROM batches" in statement for statement in statements)


def test_events_come_with_their_place_and_the_time_of_their_batch(db: sqlite3.Connection) -> None:
    end = store(db, [b"a", b"b"], [b"c"])
    assert cursor_at(2, db).read(end, 10, 1000) == [Entry(2, 101.0, b"b"), Entry(3, 103.0, b"c")]


def test_reading_does_not_move_the_cursor_and_ends_where_it_is_told(db: sqlite3.Connection) -> None:
    store(db, [b"a", b"b", b"c"])
    cursor = cursor_at(1, db)
    assert [entry.seq for entry in cursor.read(3, 10, 1000)] == [1, 2]
    assert cursor.next_unread == 3
    assert [entry.seq for entry in cursor.read(4, 10, 1000)] == [1, 2, 3]


def test_a_big_row_read_in_small_pieces_is_loaded_once(db: sqlite3.Connection, loads: Callable[[], int]) -> None:
    end = store(db, [line(1 + i) for i in range(1000)], [line(1001)])
    cursor = cursor_at(1, db)
    seen: list[int] = []
    while cursor.row.cursor < end:
        entries = cursor.read(end, 7, 1 << 20)
        seen += [entry.seq for entry in entries]
        cursor.row = cursor.row._replace(cursor=entries[-1].seq + 1)
    assert seen == list(range(1, 1002))
    assert loads() == 2


def test_a_damaged_row_ends_what_is_read(db: sqlite3.Connection) -> None:
    end = store(db, [b"a"], [b"b", b"c"], [b"d"])
    db.execute("UPDATE batches SET body = 'x\nc' WHERE first = 2")
    assert [entry.json for entry in cursor_at(1, db).read(end, 10, 1000)] == [b"a"]
    assert cursor_at(2, db).read(end, 10, 1000) == []
    assert [entry.json for entry in cursor_at(4, db).read(end, 10, 1000)] == [b"d"]


def test_bytes_that_have_become_text_are_the_same_bytes(db: sqlite3.Connection) -> None:
    end = store(db, [b"a", b"b"])
    db.execute("UPDATE batches SET body = CAST(body AS TEXT)")
    assert [entry.json for entry in cursor_at(1, db).read(end, 10, 1000)] == [b"a", b"b"]


@pytest.mark.parametrize("count", [-1, 0, 1, 3, 1 << 40])
def test_a_row_with_a_wrong_count_is_not_delivered(db: sqlite3.Connection, count: int) -> None:
    end = store(db, [b"a"], [b"b", b"c"], [b"d"])
    db.execute("UPDATE batches SET count = ? WHERE first = 2", (count,))
    assert cursor_at(2, db).read(end, 10, 1000) == []


@given(
    sizes=st.lists(st.lists(st.integers(3, 60), min_size=1, max_size=8), min_size=1, max_size=6),
    limit=st.integers(1, 12),
    max_bytes=st.integers(1, 200),
    data=st.data(),
)
def test_any_limits_give_the_next_events_without_a_gap(
    sizes: list[list[int]], limit: int, max_bytes: int, data: st.DataObject
) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript("CREATE TABLE meta (next_seq); CREATE TABLE seen (first, received, uuids, namespace);")
        db.execute("CREATE TABLE batches (first INTEGER PRIMARY KEY, count, received, crc, body)")
        flat = [line(seq, size) for seq, size in enumerate((size for batch in sizes for size in batch), 1)]
        rest = iter(flat)
        end = store(db, *[[next(rest) for _ in batch] for batch in sizes])
        start = data.draw(st.integers(1, end - 1))
        entries = cursor_at(start, db).read(end, limit, max_bytes)
        assert 1 <= len(entries) <= limit
        assert [(entry.seq, entry.json) for entry in entries] == list(enumerate(flat, 1))[start - 1 :][: len(entries)]
        assert sum(len(entry.json) for entry in entries[:-1]) < max_bytes or len(entries) == 1
        if len(entries) < min(limit, end - start):
            taken = sum(len(entry.json) for entry in entries)
            assert taken + len(flat[start - 1 + len(entries)]) > max_bytes, "the next one did not fit"


def test_a_settlement_moves_the_cursor_and_adds_to_the_counts(path: Path) -> None:
    with closing(Store(path, "normal", 1 << 30)) as store:
        cursor = cursor_at(1, store.db)
        assert cursor.settle(store, Settlement(1, 6, delivered=3, filtered=1)) == 1
        row = SinkRow(start=1, cursor=6, delivered=3, filtered=1, dead=0, dropped=0)
        assert cursor.row == tables.sinks(store.db)["a"] == row
        assert cursor.settle(store, Settlement(delivered=1, resolved=[4])) == 0
        assert cursor.row == tables.sinks(store.db)["a"] == row._replace(delivered=4)
        store.db.execute("CREATE TRIGGER failing BEFORE INSERT ON sinks BEGIN SELECT RAISE(FAIL, 'the disk is on fire'); END")
        with pytest.raises(JournalError, match="on fire"):
            cursor.settle(store, Settlement(6, 7, delivered=1))
        assert cursor.row.cursor == 6, "until it is recorded"


def test_what_was_dropped_counts_at_once_unless_it_is_in_delivery(db: sqlite3.Connection) -> None:
    end = store(db, [line(1 + i) for i in range(10)])
    cursor = cursor_at(3, db)
    cursor.read(end, 4, 1000)
    cursor.dropped_before = 5
    assert cursor.counters(end).dropped == 0, "3 to 6 may still be delivered"
    cursor.dropped_before = 9
    counters = cursor.counters(end)
    assert (counters.dropped, counters.pending) == (2, 6), "7 and 8 are gone, 9 and 10 are stored"
    cursor.row = cursor.row._replace(cursor=7)
    assert cursor.read(end, 4, 1000) == [], "its batch is in memory, but counts as dropped"
    assert cursor.counters(end).dropped == 2


def test_the_counts_balance(db: sqlite3.Connection) -> None:
    cursor = Cursor("a", SinkRow(start=5, cursor=20, delivered=8, filtered=2, dead=1, dropped=1), 3, Letters(1), db)
    counters = cursor.counters(next_seq=30)
    assert (counters.accepted, counters.pending, counters.retrying, counters.dead_letters) == (25, 13, 3, 1)
    assert counters.accepted == counters.delivered + counters.filtered + counters.dead + counters.dropped + counters.pending
