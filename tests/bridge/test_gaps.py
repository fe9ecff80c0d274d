"""Sessions that come and go, on clocks of the test's own."""

import pytest

from bridge.gaps import Presence
from bridge.source import Ended

START = 1_000_000.0
BROKEN = Ended("connection reset", "network")
STOPPED = Ended("stopped by us", "closed")


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.told: list[float] = []
        self.presence = Presence(self.told.append, lambda: START + self.now, lambda: self.now)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_gap_lasts_from_the_end_of_a_session_to_the_next(bench: Bench) -> None:
    presence = bench.presence
    bench.now = 3.0
    assert presence.opened() == 3.0
    bench.now = 10.0
    presence.closed(BROKEN, silent=0.0)
    bench.now = 12.0
    assert presence.gap_seconds() == 5.0
    presence.failed(Ended("401", "unauthorized"))
    bench.now = 17.0
    assert presence.opened() == 7.0

    (gap,) = presence.gaps
    assert (gap.start, gap.end, gap.reason, gap.error) == (START + 10.0, START + 17.0, "unauthorized", "401")
    assert presence.gap_seconds() == 10.0
    assert bench.told == [1, 0, 1]


def test_a_silence_at_the_end_of_a_session_belongs_to_the_gap(bench: Bench) -> None:
    bench.presence.opened()
    bench.now = 40.0
    bench.presence.closed(BROKEN, silent=15.0)

    assert bench.presence.gap_seconds() == 15.0


def test_there_is_no_gap_while_one_session_takes_over_from_another(bench: Bench) -> None:
    presence = bench.presence
    presence.opened()
    bench.now = 5.0
    presence.failed(Ended("refused", "network"))
    bench.now = 6.0
    assert presence.opened() == 0.0
    bench.now = 8.0
    presence.closed(STOPPED, silent=0.0)
    bench.now = 100.0

    assert presence.gap_seconds() == 0.0
    assert not presence.gaps
    assert set(bench.told) == {1}


def test_when_the_new_session_comes_too_late_there_is_one_gap_with_the_latest_reason(bench: Bench) -> None:
    presence = bench.presence
    presence.opened()
    bench.now = 10.0
    presence.failed(Ended("refused", "network"))
    presence.closed(STOPPED, silent=0.0)
    bench.now = 11.0
    presence.failed(Ended("401", "unauthorized"))
    bench.now = 30.0

    assert presence.opened() == 20.0
    (gap,) = presence.gaps
    assert (gap.start, gap.end, gap.reason) == (START + 10.0, START + 30.0, "unauthorized")
    assert bench.told == [1, 0, 1]
