"""The process is killed again and again, in the middle of everything."""

import random
import time
from pathlib import Path

import pytest

from bridge.simulator import Simulator, SimulatorSettings
from tests.e2e.harness import (
    Bridge,
    Receiver,
    assert_books_balance,
    assert_order_per_resource,
    repeated,
    until,
    uuids,
    value,
)

KILLS = 50
RATE = 2000


@pytest.mark.timeout(300)
def test_what_was_committed_arrives_though_the_bridge_is_killed_fifty_times(tmp_path: Path) -> None:
    dice = random.Random(1)
    simulated = SimulatorSettings(port=0, rate=RATE, seed=1, record=True, wait_for_clients=1)
    with Simulator(simulated) as simulator, Receiver() as receiver:
        bridge = Bridge(
            tmp_path,
            {
                "streams": {"acme": {"url": simulator.url, "backoff": {"first": "50ms", "max": "200ms"}}},
                "sinks": {"hook": {"type": "webhook", "url": receiver.url, "format": "batch"}},
            },
        )
        for _ in range(KILLS):
            bridge.start()
            receiver.wait_for_more()
            time.sleep(dice.uniform(0.0, 0.8))
            bridge.kill()
        with bridge:
            receiver.wait_for_more()
            simulator.stop()  # So that nothing can arrive between the last count and the end.
            until(lambda: not bridge.status()["streams"]["acme"]["connected"], "all that was sent is heard")
            until(lambda: bridge.pending() == 0, "everything is delivered")
            metrics = bridge.metrics()
            assert bridge.stop() == 0

        arrived = receiver.events()
        assert len(set(uuids(arrived))) == value(metrics, "events_accepted_total")
        assert value(metrics, "sink_events_delivered_total", sink="hook") == value(metrics, "events_accepted_total")
        assert_books_balance(metrics)
        assert set(uuids(arrived)) <= set(simulator.sent_uuids())
        assert_order_per_resource(arrived, simulator.sent_uuids())
        assert repeated(arrived) <= in_flight_at_a_kill(receiver)
        assert value(metrics, "events_accepted_total") > KILLS * 100


def in_flight_at_a_kill(receiver: Receiver) -> set[str]:
    """The uuids of the last request of each connection: its answer may have been on the way when the process died."""
    last = dict(receiver.requests)
    return {uuid for events in last.values() for uuid in uuids(events)}
