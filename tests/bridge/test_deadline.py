"""A time limit for a call."""

import threading

import pytest

from bridge.deadline import call_within


def unexpected(*_: object) -> None:
    pytest.fail("not to be called")


def test_the_result_of_a_call_in_time_is_returned() -> None:
    assert call_within(10, lambda: 5, cut=unexpected, discard=unexpected) == 5


@pytest.mark.parametrize("error", [ValueError("refused"), TimeoutError("its own")])
def test_the_error_of_a_call_in_time_is_raised(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        call_within(10, fail, cut=unexpected, discard=unexpected)

    assert raised.value is error


def test_a_late_call_is_cut_and_its_result_discarded() -> None:
    cut, discarded = threading.Event(), threading.Event()
    results: list[str] = []

    def late() -> str:
        assert cut.wait(10)
        return "late"

    def discard(result: str) -> None:
        results.append(result)
        discarded.set()

    with pytest.raises(TimeoutError):
        call_within(0.01, late, cut=cut.set, discard=discard)

    assert discarded.wait(10)
    assert results == ["late"]


def test_the_error_of_a_late_call_is_dropped() -> None:
    cut, over = threading.Event(), threading.Event()

    def late() -> None:
        assert cut.wait(10)
        over.set()
        raise ValueError("cut")

    with pytest.raises(TimeoutError):
        call_within(0.01, late, cut=cut.set, discard=unexpected)

    assert over.wait(10)
