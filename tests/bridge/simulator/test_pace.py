import pytest

from bridge.simulator.pace import TICK_SECONDS, Pace
from bridge.simulator.settings import SimulatorSettings


def test_events_are_due_at_the_rate_once_enough_clients_are_there() -> None:
    settings, pace = SimulatorSettings(rate=10, wait_for_clients=2), Pace()

    assert pace.due(0.0, settings, 1, ready=False)[0] == 0
    assert pace.due(100.0, settings, 2, ready=False)[0] == 0, "the time before counts for nothing"
    assert pace.due(100.25, settings, 0, ready=False)[0] == 2
    assert pace.due(100.3125, settings, 0, ready=False)[0] == 1


def test_a_pause_is_made_good_by_one_second_of_events_at_most() -> None:
    settings, pace = SimulatorSettings(rate=10), Pace()
    pace.due(0.0, settings, 0, ready=False)

    assert pace.due(60.0, settings, 0, ready=False)[0] == 10


def test_at_full_speed_a_batch_is_due_whenever_the_clients_are_ready() -> None:
    settings, pace = SimulatorSettings(rate=0), Pace()

    assert pace.due(0.0, settings, 1, ready=False) == (0, TICK_SECONDS)
    assert pace.due(0.0, settings, 1, ready=True) == (512, 0.0)


@pytest.mark.parametrize(("rate", "expected"), [(1.0, TICK_SECONDS), (100.0, 0.01), (100_000.0, 0.001)])
def test_the_wait_ends_when_the_next_event_is_due(rate: float, expected: float) -> None:
    settings, pace = SimulatorSettings(rate=rate), Pace()

    assert pace.due(0.0, settings, 0, ready=False)[1] == pytest.approx(expected)
