"""Space in the journal: nothing goes that somebody needs, unless it is full and the oldest may be dropped."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from bridge.journal import Settlement, appender, file, pruning, tables
from bridge.journal.cursor import Cursor
from bridge.journal.pruning import Space
from bridge.journal.queues import Letters
from bridge.journal.tables import SinkRow
from bridge.journal.writer import Store
from tests.support.journal_samples import journal_settings

Sinks = dict[str, Cursor]
ROW = SinkRow(1, 1, 0, 0, 0, 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "journal.db", "normal", 200_000)) as opened:
        yield opened


@pytest.fixture
def add_sink(store: Store) -> Iterator[Callable[[Sinks, str, int], Cursor]]:
    """Adds a sink whose cursor is at a place."""
    connections = []

    def add(sinks: Sinks, name: str, at: int) -> Cursor:
        row = ROW._replace(cursor=at, delivered=at - 1)
        with store.write("test") as db:
            db.execute(tables.SAVE_SINK, (name, *row))
        connections.append(file.connect(store.path, read_only=True))
        sinks[name] = Cursor(name, row, 0, Letters(), connections[-1])
        return sinks[name]

    yield add
    for connection in connections:
        connection.close()


def make(store: Store, sinks: Sinks, when_full: Literal["block", "drop_oldest"] = "block") -> Space:
    return Space(store, sinks, journal_settings(store.path, when_full=when_full))


def put(store: Store, count: int, *, size: int = 1000) -> None:
    with store.write("test") as db:
        first = tables.next_seq(db)
        for seq in range(first, first + count):
            appender.insert_batch(db, seq, 100.0, {seq.to_bytes(16, "big"): bytes(size)})


def stored(store: Store) -> list[int]:
    return [first for (first,) in store.db.execute("SELECT first FROM batches ORDER BY first")]


def seen(store: Store) -> list[int]:
    return [first for (first,) in store.db.execute("SELECT first FROM seen ORDER BY first")]


def move(store: Store, cursor: Cursor, end: int) -> None:
    cursor.settle(store, Settlement(cursor.row.cursor, end, delivered=end - cursor.row.cursor))


Add = Callable[[Sinks, str, int], Cursor]


def test_pruning_keeps_what_the_slowest_sink_and_the_window_need(store: Store, add_sink: Add) -> None:
    sinks: Sinks = {}
    add_sink(sinks, "fast", 6)
    add_sink(sinks, "slow", 3)
    put(store, 5)
    assert make(store, sinks).prune_some(5) is False
    assert stored(store) == [3, 4, 5]
    assert seen(store) == [5]


def test_without_a_sink_all_events_may_go_and_the_windows_uuids_stay(store: Store) -> None:
    put(store, 5)
    assert make(store, {}).prune_some(2) is False
    assert stored(store) == []
    assert seen(store) == [2, 3, 4, 5]


def test_pruning_goes_on_in_steps_while_there_may_be_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruning, "_PRUNE_ROWS", 2)
    put(store, 5)
    made = make(store, {})
    assert [made.prune_some(6), made.prune_some(6), made.prune_some(6)] == [True, True, False]
    assert (stored(store), seen(store)) == ([], [])


def test_pruning_that_fails_is_trouble_and_promises_no_more(store: Store) -> None:
    put(store, 300)
    store.db.execute("CREATE TRIGGER failing BEFORE DELETE ON batches BEGIN SELECT RAISE(FAIL, 'the disk is on fire'); END")
    assert make(store, {}).prune_some(1) is False
    assert "the disk is on fire" in (store.last_error or "")
    assert len(stored(store)) == 300


def test_a_full_journal_has_room_when_what_nobody_needs_is_gone(store: Store, add_sink: Add) -> None:
    sinks: Sinks = {}
    cursor = add_sink(sinks, "a", 1)
    made = make(store, sinks)
    assert made.make_room(1)
    put(store, 200)
    assert not made.make_room(1)
    assert "full, journal.max_bytes is 200000" in (store.last_error or "")
    assert len(stored(store)) == 200, "blocked, nothing is dropped"
    move(store, cursor, 150)
    assert made.make_room(1)
    assert store.last_error is None


def test_once_full_it_has_room_only_when_it_is_well_below_its_limit(
    store: Store, add_sink: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_ENOUGH_SHARE", 2)
    sinks: Sinks = {}
    cursor = add_sink(sinks, "a", 1)
    made = make(store, sinks)
    put(store, 200)
    assert not made.make_room(1)
    move(store, cursor, 120)
    assert not made.make_room(1)
    assert store.used < store.limit() * 15 // 16
    move(store, cursor, 200)
    assert made.make_room(1)


def test_the_oldest_are_dropped_and_counted_for_those_who_had_not_passed_them(store: Store, add_sink: Add) -> None:
    sinks: Sinks = {}
    fast, slow = add_sink(sinks, "fast", 201), add_sink(sinks, "slow", 1)
    put(store, 200)
    with capture_logs() as logs:
        assert make(store, sinks, "drop_oldest").make_room(1)
    assert store.used <= store.limit() * 15 // 16
    counted = fast.counters(201), slow.counters(201)
    assert (counted[0].delivered, counted[0].dropped) == (200, 0)
    dropped = counted[1].dropped
    assert 0 < dropped < 200
    assert slow.dropped_before == dropped + 1 == stored(store)[0]
    assert [entry["events"] for entry in logs] == [{"slow": dropped}]
    assert make(store, sinks).skip("slow", slow, 201)
    assert slow.row == tables.sinks(store.db)["slow"] == ROW._replace(cursor=dropped + 1, dropped=dropped)


def test_a_skip_that_can_not_be_recorded_moves_nobody(store: Store, add_sink: Add) -> None:
    sinks: Sinks = {}
    cursor = add_sink(sinks, "a", 1)
    put(store, 5)
    store.db.execute("CREATE TRIGGER failing BEFORE INSERT ON sinks BEGIN SELECT RAISE(FAIL, 'the disk is on fire'); END")
    store.db.execute("DELETE FROM batches WHERE first < 3")
    assert not make(store, sinks).skip("a", cursor, 6)
    assert "on fire" in (store.last_error or "")
    assert cursor.row == ROW
    assert tables.sinks(store.db) == {"a": ROW}


def test_a_journal_that_is_full_of_something_else_drops_what_it_has_and_stays_full(store: Store, add_sink: Add) -> None:
    sinks: Sinks = {}
    cursor = add_sink(sinks, "a", 1)
    put(store, 3)
    with store.write("test") as db:
        db.execute("INSERT INTO quarantine (stream, received, reason, frame) VALUES ('s', 1.0, 'not_json', zeroblob(300000))")
    assert not make(store, sinks, "drop_oldest").make_room(1)
    counters = cursor.counters(4)
    assert (stored(store), counters.dropped, counters.pending) == ([], 3, 0)
    assert "full, journal.max_bytes is 200000" in (store.last_error or "")


def test_nothing_is_skipped_that_is_sound(store: Store, add_sink: Add) -> None:
    sinks: Sinks = {}
    cursor = add_sink(sinks, "a", 1)
    put(store, 3)
    assert make(store, sinks).skip("a", cursor, 4)
    assert cursor.row == ROW
