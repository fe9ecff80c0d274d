"""The stream breaks and repeats itself for a minute, as it would in a week."""

import time
from pathlib import Path

import pytest

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import (
    Bridge,
    Receiver,
    assert_books_balance,
    assert_order_per_resource,
    repeated,
    uuids,
    value,
    wait_for_all,
)
from tests.support.waiting import until

MINUTE = 60.0


@pytest.mark.timeout(180)
def test_a_stream_that_disconnects_and_repeats_itself_loses_and_doubles_nothing(tmp_path: Path) -> None:
    simulated = SimulatorSettings(
        port=0, rate=500, seed=2, record=True, wait_for_clients=1, disconnect_every=2.0, duplicates=0.1, malformed=0.01
    )
    with Simulator(simulated) as simulator, Receiver() as receiver:
        settings = {
            "streams": {"acme": {"url": simulator.url, "backoff": {"first": "100ms", "max": "1s"}}},
            "sinks": {"hook": {"type": "webhook", "url": receiver.url, "format": "batch"}, "out": {"type": "stdout"}},
        }
        with Bridge(tmp_path, settings) as bridge:
            end = time.monotonic() + MINUTE
            while time.monotonic() < end:
                assert_books_balance(bridge.metrics())
                time.sleep(0.5)
            simulator.change(rate=0.001, disconnect_every=None)
            until(lambda: bridge.status()["streams"]["acme"]["connected"], "the stream is connected")
            wait_for_all(bridge, simulator)
            metrics, status = bridge.metrics(), bridge.status()
            assert bridge.stop() == 0

        sent = simulator.sent_uuids()
        arrived = receiver.events()
        # What the simulator sends before it ends a connection has reached this machine, so the bridge has heard all of it.
        assert sorted(set(sent)) == sorted(uuids(arrived))
        assert repeated(arrived) == set()
        assert sorted(uuids(bridge.lines())) == sorted(uuids(arrived))
        assert_order_per_resource(arrived, sent)
        assert_books_balance(metrics)
        assert value(metrics, "events_duplicate_total") > 0.05 * len(sent)
        assert value(metrics, "events_malformed_total") > 0
        assert value(metrics, "stream_reconnects_total") >= 20
        assert value(metrics, "stream_gap_seconds_total") > 0
        assert {"start", "end", "reason", "error"} == status["streams"]["acme"]["gaps"][0].keys()
