"""The dedup window: what it must remember, and what it may forget."""

from hypothesis import given
from hypothesis import strategies as st

from bridge.event import Event
from bridge.journal.window import Window

SECONDS = 60.0


def event(number: int, json: bytes = b"{}") -> Event:
    return Event(number.to_bytes(16, "big"), json)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def knows(window: Window, number: int) -> bool:
    return not window.unseen([event(number)], {})


def test_what_was_remembered_is_seen_and_the_rest_comes_back_in_order() -> None:
    window = Window(SECONDS, 100, now=0.0)
    window.remember([key(2), key(4)], first=1, now=0.0)
    unseen = window.unseen([event(5, b"five"), event(4), event(3, b"three"), event(2)], {})
    assert list(unseen.items()) == [(key(5), b"five"), (key(3), b"three")]


def test_an_event_that_comes_twice_in_a_batch_is_taken_once() -> None:
    assert list(Window(SECONDS, 100, now=0.0).unseen([event(1), event(2), event(1)], {})) == [key(1), key(2)]


def test_what_an_earlier_batch_of_the_same_commit_brought_is_seen() -> None:
    assert list(Window(SECONDS, 100, now=0.0).unseen([event(1), event(2)], {key(1): b"{}"})) == [key(2)]


def test_a_uuid_is_remembered_for_the_whole_time_and_forgotten_at_last() -> None:
    window = Window(SECONDS, 100, now=0.0)
    window.remember([key(1)], first=1, now=0.0)
    window.remember([key(2)], first=2, now=SECONDS)
    window.remember([key(3)], first=3, now=SECONDS + 0.1)
    assert knows(window, 2)
    window.remember([key(4)], first=4, now=2 * SECONDS)
    assert knows(window, 2), "it is exactly as old as the window"
    window.remember([key(5)], first=5, now=2 * SECONDS + 0.2)
    assert not knows(window, 1)
    assert not knows(window, 2)
    assert knows(window, 3), "generations are forgotten as a whole"


def test_the_floor_is_where_the_older_generation_begins() -> None:
    window = Window(SECONDS, 4, now=0.0, first=10)
    window.remember([key(10), key(11)], first=10, now=0.0)
    window.remember([key(12), key(13)], first=12, now=0.0)
    assert (window.floor, len(window)) == (10, 4)
    window.remember([key(14)], first=14, now=0.0)
    assert (window.floor, len(window)) == (12, 3)
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
        window.remember([key(first + i) for i in range(size)], first, now)
        stored += [(first + i, now) for i in range(size)]
        largest = max(largest, size)
        assert len(window) <= max(limit, 2) + 2 * largest
        for number, at in stored[-max(1, limit // 2) :]:
            assert now - at > SECONDS or knows(window, number), "neither too many nor too old"
        assert all(knows(window, number) == (number >= window.floor) for number, _ in stored)
