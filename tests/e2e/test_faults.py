"""A bridge that is killed in the middle of deliveries, one that did not run, and receivers that some events do harm to."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bridge.event import normalize_all
from bridge.journal import Batch, Journal, JournalSettings
from bridge.simulator.server import Simulator, SimulatorSettings
from tests.contract.harness import RECEIVED
from tests.e2e.harness import Bridge, Receiver, repeated, uuids, value
from tests.support.messages import message
from tests.support.ports import free_port
from tests.support.waiting import until

EVENTS = 6_000
KILLS = 8
RATE = 2_000


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def backlogged(directory: Path, messages: Sequence[bytes], **hook: Any) -> Bridge:
    """A bridge that finds events in its journal, for a webhook with these settings."""
    directory.mkdir()
    with closing(Journal(JournalSettings(path=directory / "journal.db"))) as journal:
        events, _, _ = normalize_all(messages, "acme", RECEIVED, 10_000)
        journal.append(Batch("acme", RECEIVED.timestamp(), events, []))
    nobody = f"ws://127.0.0.1:{free_port()}"
    sink = {"type": "webhook", "start_at": "earliest", **hook}
    return Bridge(directory, {"streams": {"acme": {"url": nobody}}, "sinks": {"hook": sink}})


def paced(rate: float) -> Callable[[object], tuple[int, dict[str, str]]]:
    """Answer requests, so many a second at most."""
    lock, due = threading.Lock(), [0.0]

    def answer(_: object) -> tuple[int, dict[str, str]]:
        with lock:
            due[0] = max(due[0] + 1 / rate, time.monotonic() - 0.01)
            wait = due[0] - time.monotonic()
        time.sleep(max(0.0, wait))
        return 200, {}

    return answer


@pytest.mark.timeout(120)
def test_a_kill_repeats_what_was_acknowledged_in_the_last_moment_and_no_whole_delivery(
    tmp_path: Path, receiver: Receiver
) -> None:
    receiver.answer = paced(RATE)
    bridge = backlogged(tmp_path / "bridge", [message(number) for number in range(EVENTS)], url=receiver.url)
    for kill in range(1, KILLS + 1):
        bridge.launch()
        until(lambda: receiver.count() >= kill * 500 + 250, "events arrive")  # noqa: B023 - called at once
        bridge.kill()
    with bridge:
        until(lambda: bridge.pending() == 0, "all are delivered", 60)
        assert bridge.stop() == 0

    assert len(set(uuids(receiver.events()))) == EVENTS
    # What was acknowledged within the 20 ms before a kill, and the requests that were under way.
    assert len(uuids(receiver.events())) - EVENTS <= KILLS * 60
    assert len(repeated(receiver.events())) > 0


@pytest.mark.timeout(120)
def test_the_time_in_which_no_bridge_ran_is_a_gap(tmp_path: Path) -> None:
    with Simulator(SimulatorSettings(port=0, rate=20)) as simulator:
        settings = {"streams": {"acme": {"url": simulator.url}}, "sinks": {"out": {"type": "stdout"}}}
        with Bridge(tmp_path / "bridge", settings) as bridge:
            until(lambda: value(bridge.metrics(), "events_accepted_total") > 0, "events arrive")
            killed = time.time()
            bridge.kill()
            time.sleep(4.0)
            bridge.start()
            until(lambda: bool(bridge.status()["streams"]["acme"]["connected"]), "it is connected")
            away = time.time() - killed
            (gap,) = bridge.status()["streams"]["acme"]["gaps"]
            assert gap["reason"] == "not_running"
            assert 4.0 <= value(bridge.metrics(), "stream_gap_seconds_total") <= away + 1.0
            assert bridge.stop() == 0


def number_of(event: dict[str, Any]) -> int:
    return int(event["uuid"][-12:])


@pytest.mark.timeout(120)
def test_an_event_at_which_the_receiver_ends_the_connection_is_found_and_set_aside(tmp_path: Path, receiver: Receiver) -> None:
    def answer(events: list[dict[str, Any]]) -> tuple[int, dict[str, str]]:
        if any(number_of(event) in {37, 38, 500} for event in events):
            raise ConnectionAbortedError
        return 200, {}

    receiver.answer = answer
    quick = {"format": "batch", "connections": 1, "backoff": {"first": "20ms", "max": "100ms"}, "retry": {"first_delay": "10s"}}
    bridge = backlogged(tmp_path / "bridge", [message(number) for number in range(1000)], url=receiver.url, **quick)
    with bridge:
        until(lambda: len(set(uuids(receiver.events()))) == 997, "all others arrive", 60)
        sink = bridge.status()["sinks"]["hook"]
        assert (sink["retrying"], sink["pending"], sink["dead_letters"]) == (3, 3, 0)
        assert bridge.stop() == 0


@pytest.mark.timeout(120)
def test_an_event_that_gets_500_for_ever_and_a_busy_resource_do_not_stop_the_others(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answer = lambda events: (500 if number_of(events[0]) == 0 else 200, {})
    busy = {"resource_uri": "/api/app/v1/acme/container/busy/"}
    messages = [message(number, **(busy if number % 2 == 0 else {})) for number in range(2000)]
    retry = {"max_pending": 20, "first_delay": "50ms", "max_delay": "1s"}
    with backlogged(tmp_path / "bridge", messages, url=receiver.url, batch={"max_events": 100}, retry=retry) as bridge:
        until(lambda: bridge.pending() == 0, "everything is over", 60)
        sink = bridge.status()["sinks"]["hook"]
        assert (sink["delivered"], sink["dead_letters"]) == (1999, 1)
        assert bridge.stop() == 0
    even = [number_of(event) for event in receiver.events() if number_of(event) % 2 == 0]
    assert list(dict.fromkeys(even)) == list(range(2, 2000, 2)), "in order"
