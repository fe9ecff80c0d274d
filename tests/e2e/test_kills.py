"""A bridge that is killed in the middle of deliveries, and what the next one repeats and counts."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bridge.event import Event, Reception, normalize
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
    path = tmp_path / "bridge" / "journal.db"
    path.parent.mkdir()
    with closing(Journal(JournalSettings(path=path))) as journal:
        reception = Reception.at("acme", RECEIVED)
        events = [normalize(message(number), reception, 10_000) for number in range(EVENTS)]
        journal.append(Batch("acme", RECEIVED.timestamp(), [event for event in events if isinstance(event, Event)], []))
    hook = {"type": "webhook", "url": receiver.url, "start_at": "earliest", "batch": {"max_events": 1000}}
    nobody = f"ws://127.0.0.1:{free_port()}"
    receiver.answer = paced(RATE)
    bridge = Bridge(tmp_path / "bridge", {"streams": {"acme": {"url": nobody}}, "sinks": {"hook": hook}})
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
