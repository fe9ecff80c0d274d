"""Threads that keep stepping; their order and their replacement are tried in test_supervisor.py."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from bridge.journal import Closed
from bridge.pipeline.availability import SinkStatus
from bridge.pipeline.threads import ProgressThread, SinkThread, StreamThread
from tests.support.waiting import until

DEADLINE = 20.0


class Count:
    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        self.value += 1


class Steps:
    """Both a stream and a forwarder: notes what is called, and each step returns what the test puts in."""

    def __init__(self) -> None:
        self.name = "acme"
        self.busy = False
        self.status = SinkStatus(up=True, since=0.0)
        self.notes: list[str] = []
        self.entered: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.returns: queue.SimpleQueue[Callable[[], float]] = queue.SimpleQueue()

    def step(self) -> float:
        self.notes.append("step")
        self.entered.put(None)
        return self.returns.get(timeout=DEADLINE)()

    def stop(self) -> None:
        self.notes.append("stop")

    def close(self) -> None:
        self.notes.append("close")


def closed() -> float:
    raise Closed


def sink_thread(steps: Steps, at_end: Callable[[], None] = lambda: None) -> SinkThread:
    forwarder: Any = steps
    return SinkThread(forwarder, Count(), at_end)


def join(thread: threading.Thread) -> None:
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_a_stream_that_waits_for_its_next_session_ends_at_once() -> None:
    steps: Any = Steps()
    thread = StreamThread(steps, Count(), lambda: steps.notes.append("told"))
    thread.start()
    steps.entered.get(timeout=DEADLINE)
    steps.returns.put(lambda: 3600.0)
    thread.stop()
    join(thread)

    assert steps.notes == ["step", "stop", "told"]


def test_a_sink_that_is_told_to_end_finishes_its_step_and_takes_no_other_though_it_is_busy() -> None:
    steps = Steps()
    steps.busy = True
    thread = sink_thread(steps)
    thread.start()
    steps.entered.get(timeout=DEADLINE)
    thread.stop()
    assert not thread.ended
    steps.returns.put(lambda: 0.0)
    join(thread)

    assert steps.notes == ["step", "close"]


def test_a_sink_that_waits_for_its_next_try_ends_at_once() -> None:
    steps = Steps()
    thread = sink_thread(steps)
    thread.start()
    steps.entered.get(timeout=DEADLINE)
    steps.returns.put(lambda: 3600.0)
    thread.stop()
    join(thread)

    assert steps.notes == ["step", "close"]


def test_progress_is_recorded_while_a_delivery_goes_on_and_not_all_day() -> None:
    looks: queue.SimpleQueue[None] = queue.SimpleQueue()
    under_way = threading.Event()

    class Delivering(Steps):
        def record_progress(self) -> bool:
            looks.put(None)
            return under_way.is_set()

    thread = ProgressThread(lambda: [sink_thread(Delivering())], Count())
    thread.start()
    looks.get(timeout=DEADLINE)
    with pytest.raises(queue.Empty):
        looks.get(timeout=0.1)
    under_way.set()
    thread.wanted.set()
    for _ in range(5):
        looks.get(timeout=DEADLINE)
    under_way.clear()
    thread.stop()
    join(thread)


def test_the_end_of_a_sink_is_told_when_it_is_closed() -> None:
    steps = Steps()
    told: list[tuple[bool, str]] = []
    thread = sink_thread(steps, lambda: told.append((thread.ended, steps.notes[-1])))
    thread.start()
    steps.returns.put(closed)
    join(thread)

    assert told == [(True, "close")]


@pytest.mark.parametrize("make", [sink_thread, lambda steps: StreamThread(steps, Count(), lambda: None)])
def test_a_wait_has_an_end_that_is_told_and_can_come_sooner(make: Callable[[Any], StreamThread | SinkThread]) -> None:
    steps = Steps()
    thread = make(steps)
    thread.start()
    steps.entered.get(timeout=DEADLINE)
    assert thread.pause.until is None
    now = time.time()
    steps.returns.put(lambda: 3600.0)
    until(lambda: thread.pause.until is not None, "the thread waits")
    assert thread.pause.until is not None
    assert 3600 <= thread.pause.until - now < 3600 + DEADLINE

    thread.pause.end()
    steps.entered.get(timeout=DEADLINE)
    assert thread.pause.until is None
    steps.returns.put(lambda: 3600.0)
    thread.stop()
    join(thread)
