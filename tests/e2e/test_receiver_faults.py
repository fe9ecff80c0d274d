"""Receivers are down, refuse and hang for a minute, as they would in a week."""

import time
from pathlib import Path
from typing import Any

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


@pytest.mark.timeout(240)
def test_receivers_that_are_down_or_refuse_or_hang_delay_nobody_and_get_everything(tmp_path: Path) -> None:
    simulated = SimulatorSettings(port=0, rate=50, seed=3, record=True, wait_for_clients=1)
    busy_until = time.monotonic() + MINUTE / 2

    def busy(_: list[dict[str, Any]]) -> tuple[int, dict[str, str]]:
        return (503, {"Retry-After": "7"}) if time.monotonic() < busy_until else (200, {})

    down, refusing, hanging = Receiver(), Receiver(), Receiver()
    refusing.answer = busy
    hanging.hang.set()
    hook: dict[str, Any] = {
        "type": "webhook",
        "timeout": "3s",
        "backoff": {"max": "10s"},
        "retry": {"first_delay": "500ms", "max_delay": "10s"},
    }
    with Simulator(simulated) as simulator, refusing, hanging:
        settings = {
            "streams": {"acme": {"url": simulator.url}},
            "sinks": {
                "down": {**hook, "url": down.url},
                "refusing": {**hook, "url": refusing.url},
                "hanging": {**hook, "url": hanging.url},
                "out": {"type": "stdout"},
            },
            "health": {"sink_grace": "20s"},
        }
        with Bridge(tmp_path, settings) as bridge:
            began = time.monotonic()
            worst_lag = 0.0
            while time.monotonic() - began < MINUTE:
                metrics = bridge.metrics()
                assert_books_balance(metrics)
                worst_lag = max(worst_lag, value(metrics, "sink_lag_seconds", sink="out"))
                time.sleep(0.5)
            # Times of events are whole seconds, and this machine is busy; those that wait for a receiver lag by half a minute.
            assert worst_lag < 5
            assert value(metrics, "sink_up", sink="down") == 0
            assert value(metrics, "sink_lag_seconds", sink="down") > MINUTE / 2
            assert value(metrics, "sink_failures_total", sink="refusing", reason="throttled") + value(
                metrics, "sink_failures_total", sink="refusing", reason="server_error"
            ) in range(1, 8)
            assert value(metrics, "sink_failures_total", sink="hanging", reason="timeout") > 0
            ready, why = bridge.get("/readyz")
            assert ready == 503
            assert "sink down: unavailable" in why
            assert "sink hanging: unavailable" in why
            with down:
                hanging.hang.clear()
                simulator.change(rate=0.001)
                wait_for_all(bridge, simulator)
                until(lambda: bridge.get("/readyz")[0] == 200, "the bridge is ready again")
                metrics = bridge.metrics()
                assert bridge.stop() == 0
        assert_books_balance(metrics)
        for receiver in (down, refusing, hanging):
            # A request that timed out may have been read by the receiver, but it was not answered and does not count.
            assert set(uuids(receiver.events())) == set(simulator.sent_uuids())
            assert_order_per_resource(receiver.events(), simulator.sent_uuids())
        assert repeated(down.events()) == set()
        assert repeated(refusing.events()) == set()
        assert sorted(uuids(bridge.lines())) == sorted(simulator.sent_uuids())
