"""A real Prometheus scrapes a running bridge."""

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import Bridge
from tests.support.servers.prometheus import prometheus
from tests.support.waiting import until


def ask(port: int, query: str) -> float | None:
    """The value of an instant query; None if there is none yet."""
    try:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        ) as answer:
            found = json.load(answer)["data"]["result"]
    except OSError:
        return None
    return float(found[0]["value"][1]) if found else None


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="not installed: prometheus")
def test_prometheus_sees_books_that_balance(tmp_path: Path) -> None:
    simulated = SimulatorSettings(port=0, rate=200, duplicates=0.1, malformed=0.1, wait_for_clients=1)
    with (
        Simulator(simulated) as simulator,
        Bridge(tmp_path / "bridge", {"streams": {"acme": {"url": simulator.url}}}) as bridge,
    ):
        jobs = [{"job_name": "event-bridge", "static_configs": [{"targets": [f"127.0.0.1:{bridge.port}"]}]}]
        config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}
        with prometheus(tmp_path / "prometheus", config) as port:
            until(lambda: (ask(port, "event_bridge_events_accepted_total") or 0) > 200, "Prometheus has seen events")
            door = "event_bridge_events_accepted_total + event_bridge_events_duplicate_total"
            malformed = "sum without (reason) (event_bridge_events_malformed_total)"

            assert ask(port, 'up{job="event-bridge"}') == 1
            assert ask(port, f"event_bridge_events_received_total - ({door} + {malformed})") == 0
            assert (ask(port, "sum(event_bridge_events_malformed_total)") or 0) > 0
            assert ask(port, "event_bridge_stream_connected") == 1
            assert ask(port, "event_bridge_sink_up") == 1
        text = bridge.get("/metrics")[1]
        assert bridge.stop() == 0

    if shutil.which("promtool"):
        lint = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
        assert lint.stdout + lint.stderr == ""
