"""Sessions that come and go, on clocks of the test's own."""

import pytest

from bridge.pipeline.gaps import GapTracker
from bridge.source import Ended

START = 1_000_000.0
BROKEN = Ended("connection reset", "network")
STOPPED = Ended("stopped by us", "closed")


class Bench:
    def __init__(self) -> None:
        self.now = 0.0
        self.changes: list[float] = []
        self.gaps = GapTracker(self.changes.append, lambda: START + self.now, lambda: self.now)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_gap_lasts_from_the_end_of_a_session_to_the_next(bench: Bench) -> None:
    gaps = bench.gaps
    bench.now = 3.0
    assert gaps.opened() == 3.0
    bench.now = 10.0
    gaps.closed(BROKEN, silent=0.0)
    bench.now = 12.0
    assert gaps.total_seconds() == 5.0
    gaps.failed(Ended("401", "unauthorized"))
    bench.now = 17.0
    assert gaps.opened() == 7.0

    (gap,) = gaps.latest
    assert (gap.start, gap.end, gap.reason, gap.error) == (START + 10.0, START + 17.0, "unauthorized", "401")
    assert gaps.total_seconds() == 10.0
    assert bench.changes == [1, 0, 1]


def test_a_silence_at_the_end_of_a_session_belongs_to_the_gap(bench: Bench) -> None:
    bench.gaps.opened()
    bench.now = 40.0
    bench.gaps.closed(BROKEN, silent=15.0)

    assert bench.gaps.total_seconds() == 15.0


def test_there_is_no_gap_while_one_session_takes_over_from_another(bench: Bench) -> None:
    gaps = bench.gaps
    gaps.opened()
    bench.now = 5.0
    gaps.failed(Ended("refused", "network"))
    bench.now = 6.0
    assert gaps.opened() == 0.0
    bench.now = 8.0
    gaps.closed(STOPPED, silent=0.0)
    bench.now = 100.0

    assert gaps.total_seconds() == 0.0
    assert not gaps.latest
    assert set(bench.changes) == {1}


def test_when_the_new_session_comes_too_late_there_is_one_gap_with_the_latest_reason(bench: Bench) -> None:
    gaps = bench.gaps
    gaps.opened()
    bench.now = 10.0
    gaps.failed(Ended("refused", "network"))
    gaps.closed(STOPPED, silent=0.0)
    bench.now = 11.0
    gaps.failed(Ended("401", "unauthorized"))
    bench.now = 30.0

    assert gaps.opened() == 20.0
    (gap,) = gaps.latest
    assert (gap.start, gap.end, gap.reason) == (START + 10.0, START + 30.0, "unauthorized")
    assert bench.changes == [1, 0, 1]


def test_the_time_in_which_the_bridge_did_not_run_is_a_gap(bench: Bench) -> None:
    bench.now = 100.0
    gaps = GapTracker(bench.changes.append, lambda: START + bench.now, lambda: bench.now, heard=START + 96.0)
    assert gaps.total_seconds() == 4.0
    bench.now = 101.0

    assert gaps.opened() == 5.0
    (gap,) = gaps.latest
    assert (gap.start, gap.end, gap.reason) == (START + 96.0, START + 101.0, "not_running")


def test_a_clock_that_was_set_back_while_the_bridge_did_not_run_makes_no_gap(bench: Bench) -> None:
    gaps = GapTracker(bench.changes.append, lambda: START, lambda: bench.now, heard=START + 3600.0)

    assert gaps.opened() == 0.0
    assert gaps.total_seconds() == 0.0


def test_a_stream_that_waits_for_the_journal_is_not_read(bench: Bench) -> None:
    gaps = bench.gaps
    gaps.opened()
    gaps.waits_since = 0.0
    bench.now = 0.9
    assert gaps.total_seconds() == 0.0
    gaps.waits_since = 0.9
    bench.now = 5.9
    assert gaps.total_seconds() == 5.0, "it can be seen while it lasts"
    gaps.waited()
    bench.now = 10.0

    assert gaps.total_seconds() == 5.0
    (gap,) = gaps.latest
    assert (gap.start, gap.reason) == (START + 0.9, "journal")
    assert gap.end - gap.start == pytest.approx(5.0)
