"""The uuids that a file remembers: all of them are read, what is damaged is said, and a journal that closes does not wait."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bridge.event import Event
from bridge.journal import appender, dedup, tables
from bridge.journal.appender import Appender, Window
from bridge.journal.dedup import Remembered
from bridge.journal.pruning import Space
from bridge.journal.writer import Store
from tests.support.journal_samples import journal_settings

Remember = Callable[[], Remembered]
NOW = 1000.0
DEADLINE = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "journal.db", "normal", 1 << 30)) as opened:
        yield opened


def start(store: Store, window: float | None = None) -> Remembered:
    monotonic, following = (lambda: 0.0), tables.next_seq(store.db)
    space = Space(store, {}, journal_settings(store.path))
    fills = Appender(store, space, next_seq=following, observe_commit=lambda _: None, clock=lambda: NOW, monotonic=monotonic)
    settings = journal_settings(store.path, window=window).dedup
    return Remembered(store, settings, fills, monotonic)


@pytest.fixture
def remember(store: Store) -> Iterator[Remember]:
    made: list[Remembered] = []

    def make() -> Remembered:
        made.append(start(store, window=60.0))
        return made[-1]

    yield make
    store.closing.set()
    for each in made:
        each.end()


def put(store: Store, numbers: range, received: float = NOW) -> None:
    with store.write("test") as db:
        appender.insert_batch(db, tables.next_seq(db), received, {n.to_bytes(16, "big"): b"{}" for n in numbers})


def unseen(remembered: Remembered, numbers: range) -> int:
    """How many of these events are not remembered."""
    remembered.done.wait()
    return len(remembered._appender.window.unseen("", [Event(n.to_bytes(16, "big"), b"{}") for n in numbers], {}))


def test_all_are_read_in_however_large_batches_they_came(store: Store, remember: Remember) -> None:
    first = 0
    for size in (1, 5000, 3, 1, 9000, *[1] * 50, 4096, 4095):
        put(store, range(first, first + size))
        first += size

    assert unseen(remember(), range(first + 7)) == 7


def test_those_before_the_window_are_forgotten_and_what_is_between_does_not_matter(store: Store, remember: Remember) -> None:
    put(store, range(10), received=NOW - 120)
    put(store, range(10, 20_000))
    with store.write("test") as db:
        db.execute("DELETE FROM seen WHERE first = 11")
    put(store, range(20_000, 20_010))
    remembered = remember()

    assert unseen(remembered, range(20_000, 20_010)) == 0
    assert unseen(remembered, range(20_000)) == 20_000
    assert remembered._appender.window.oldest_seq == 20_001


def test_those_that_are_damaged_are_counted_and_cost_no_others(store: Store, remember: Remember) -> None:
    for start in range(0, 30, 3):
        put(store, range(start, start + 3))
    with store.write("test") as db:
        db.execute("UPDATE seen SET uuids = substr(uuids, 2) WHERE first = 4")
        db.execute("UPDATE seen SET uuids = 5 WHERE first = 7")
    with capture_logs() as logs:
        remembered = remember()

        assert unseen(remembered, range(30)) == 6
    assert [(line["log_level"], line["batches"]) for line in logs] == [("error", 2)]


def test_a_journal_that_closes_does_not_wait_for_them(
    store: Store, remember: Remember, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = threading.Event()

    def endless(*_: object) -> Iterator[tuple[int, str | None, list[bytes], int]]:
        while True:
            reading.set()
            yield 1, "", [], 0

    put(store, range(3))
    monkeypatch.setattr(dedup, "seen_keys", endless)
    remembered = remember()
    assert reading.wait(DEADLINE)
    assert not remembered.done.is_set()
    store.closing.set()
    remembered.end()
    remembered.done.wait()

    assert remembered.done.is_set()


def test_a_small_journal_remembers_fewer(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "small.db", "normal", 16 << 20)) as store, capture_logs() as logs:
        start(store).end()

    assert [(line["wanted"], line["remembered"]) for line in logs] == [(1_000_000, (14 << 20) // 160)]


# The window

SECONDS = 60.0


def event(number: int, json: bytes = b"{}") -> Event:
    return Event(number.to_bytes(16, "big"), json)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def knows(window: Window, number: int) -> bool:
    return not window.unseen("", [event(number)], {})


def test_what_was_remembered_is_seen_and_the_rest_comes_back_in_order() -> None:
    window = Window(SECONDS, 100, now=0.0)
    window.remember("", [key(2), key(4)], first=1, now=0.0)
    unseen = window.unseen("", [event(5, b"five"), event(4), event(3, b"three"), event(2)], {})
    assert list(unseen.items()) == [(key(5), b"five"), (key(3), b"three")]


def test_an_event_that_comes_twice_in_a_batch_is_taken_once() -> None:
    assert list(Window(SECONDS, 100, now=0.0).unseen("", [event(1), event(2), event(1)], {})) == [key(1), key(2)]


def test_what_an_earlier_batch_of_the_same_commit_brought_is_seen() -> None:
    assert list(Window(SECONDS, 100, now=0.0).unseen("", [event(1), event(2)], {"": {key(1): None}})) == [key(2)]


def test_a_uuid_is_remembered_for_the_whole_time_and_forgotten_at_last() -> None:
    window = Window(SECONDS, 100, now=0.0)
    window.remember("", [key(1)], first=1, now=0.0)
    window.remember("", [key(2)], first=2, now=SECONDS)
    window.remember("", [key(3)], first=3, now=SECONDS + 0.1)
    assert knows(window, 2)
    window.remember("", [key(4)], first=4, now=2 * SECONDS)
    assert knows(window, 2), "it is exactly as old as the window"
    window.remember("", [key(5)], first=5, now=2 * SECONDS + 0.2)
    assert not knows(window, 1)
    assert not knows(window, 2)
    assert knows(window, 3), "generations are forgotten as a whole"


def test_the_floor_is_where_the_older_generation_begins() -> None:
    window = Window(SECONDS, 4, now=0.0, first=10)
    window.remember("", [key(10), key(11)], first=10, now=0.0)
    window.remember("", [key(12), key(13)], first=12, now=0.0)
    assert (window.oldest_seq, len(window)) == (10, 4)
    window.remember("", [key(14)], first=14, now=0.0)
    assert (window.oldest_seq, len(window)) == (12, 3)
    assert not knows(window, 11)
    assert knows(window, 12)


@given(
    limit=st.integers(1, 20),
    commits=st.lists(st.tuples(st.integers(0, 5), st.floats(0.0, 40.0)), max_size=40),
)
def test_it_holds_its_limits_whatever_comes(limit: int, commits: list[tuple[int, float]]) -> None:
    window, now, stored = Window(SECONDS, limit, now=0.0, first=1), 0.0, list[tuple[int, float]]()
    largest = 0
    for size, passed in commits:
        now += passed
        first = len(stored) + 1
        window.remember("", [key(first + i) for i in range(size)], first, now)
        stored += [(first + i, now) for i in range(size)]
        largest = max(largest, size)
        assert len(window) <= max(limit, 2) + 2 * largest
        for number, at in stored[-max(1, limit // 2) :]:
            assert now - at > SECONDS or knows(window, number), "neither too many nor too old"
        assert all(knows(window, number) == (number >= window.oldest_seq) for number, _ in stored)
