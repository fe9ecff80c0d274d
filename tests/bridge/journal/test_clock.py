"""The clock is set by an hour, back and forth, while the journal is open and between two starts: nobody is confused."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.event import Event
from bridge.journal import Appended, Batch, Journal
from tests.support.journal_samples import journal_settings

HOUR = 3600.0
DAY = 24 * HOUR
NOON = 1_000_000.0


class Clock:
    """Real time passes; the clock on the wall is set."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.wrong = 0.0

    def wall(self) -> float:
        return NOON + self.passed + self.wrong

    def monotonic(self) -> float:
        return self.passed


class Bench:
    def __init__(self, path: Path) -> None:
        self.clock = Clock()
        self._path = path
        self.restart()

    def restart(self) -> None:
        """As after a start of the process."""
        options = journal_settings(self._path, durability="normal", window=DAY)
        self.journal = Journal(options, clock=self.clock.wall, monotonic=self.clock.monotonic)

    def restart_closed(self) -> None:
        self.journal.close()
        self._path.unlink()
        self.restart()

    def is_new(self, number: int) -> bool:
        """Append an event; tell whether its uuid was not remembered."""
        event = Event(number.to_bytes(16, "big"), b"event %d" % number)
        return self.journal.append(Batch("s", self.clock.wall(), [event], [])) == Appended(1, 0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "journal.db")
    yield made
    made.journal.close()


Jump = Callable[[Bench, float], None]


def while_running(bench: Bench, seconds: float) -> None:
    bench.clock.wrong += seconds


def between_two_starts(bench: Bench, seconds: float) -> None:
    bench.journal.close()
    bench.clock.wrong += seconds
    bench.restart()


@pytest.mark.parametrize("jump", [while_running, between_two_starts])
@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_no_uuid_is_forgotten_early_because_the_clock_was_set(bench: Bench, jump: Jump, seconds: float) -> None:
    assert bench.is_new(1)
    bench.clock.passed = DAY - HOUR / 2
    jump(bench, seconds)
    assert not bench.is_new(1)
    jump(bench, -seconds)
    assert not bench.is_new(1)


@pytest.mark.parametrize("jump", [while_running, between_two_starts])
@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_no_uuid_is_remembered_for_ever_because_the_clock_was_set(bench: Bench, jump: Jump, seconds: float) -> None:
    assert bench.is_new(1)
    jump(bench, seconds)
    # Two generations of a day each, the second of which begins with the first event after the first.
    for number, passed in enumerate((1, 2, 3), 10):
        bench.clock.passed = passed * (DAY + HOUR)
        assert bench.is_new(number)
    assert bench.is_new(1)


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_start_with_a_clock_that_is_wrong_forgets_what_is_older_than_the_window(bench: Bench, seconds: float) -> None:
    assert bench.is_new(1)
    bench.clock.passed = DAY + 3 * HOUR
    between_two_starts(bench, seconds)
    assert bench.is_new(1)


def test_what_was_received_in_the_future_is_remembered_after_the_clock_was_corrected(bench: Bench) -> None:
    bench.clock.wrong = 80 * 365 * DAY
    assert bench.is_new(1)
    between_two_starts(bench, -bench.clock.wrong)
    assert not bench.is_new(1)
    for number, passed in enumerate((1, 2, 3), 10):
        bench.clock.passed = passed * (DAY + HOUR)
        bench.is_new(number)
    assert bench.is_new(1), "not for ever"


@pytest.mark.parametrize("years", [-50, 50])
def test_a_clock_that_was_years_wrong_and_is_put_right_makes_nothing_forgotten(bench: Bench, years: int) -> None:
    """As on a machine without a clock of its own, which asks the network after it has started."""
    bench.clock.wrong = years * 365 * DAY
    bench.restart_closed()
    assert bench.is_new(1)
    bench.clock.passed = HOUR
    bench.clock.wrong = 0.0
    bench.journal.prune()
    between_two_starts(bench, 0.0)
    assert not bench.is_new(1)
    between_two_starts(bench, -50 * 365 * DAY)
    assert not bench.is_new(1), "behind again, until the network has answered"
