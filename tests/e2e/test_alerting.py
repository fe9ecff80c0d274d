"""A stream is cut: a real Prometheus with our rules notices, and a real Alertmanager tells a webhook; also of the repair."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import Bridge, Receiver
from tests.e2e.test_prometheus import ask
from tests.support.ports import free_port
from tests.support.servers.prometheus import alertmanager, prometheus
from tests.support.waiting import until

DEPLOY = Path(__file__).parents[2] / "deploy"


def hasty(rules: Any) -> Any:
    """Return the rules with alerts that fire after a second."""
    for group in rules["groups"]:
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "1s"
    return rules


def alerts_of(directory: Path, targets: list[str], managers: list[str]) -> dict[str, Any]:
    """Return the configuration of `deploy/prometheus.yaml` with these targets, and put its rules beside it, which are hasty."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    (rules,) = config["rule_files"]
    directory.mkdir()
    (directory / rules).write_text(yaml.safe_dump(hasty(yaml.safe_load((DEPLOY / rules).read_text()))))
    config["global"] = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
    config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": managers}]}]}
    return config


@pytest.mark.skipif(
    not all(map(shutil.which, ("prometheus", "prometheus-alertmanager"))), reason="not installed: prometheus, alertmanager"
)
def test_a_cut_stream_raises_an_alert_and_its_repair_ends_it(tmp_path: Path) -> None:
    simulated = SimulatorSettings(port=free_port(), rate=5)
    stream = {"url": f"ws://127.0.0.1:{simulated.port}", "backoff": {"max": "1s"}}
    route = {"receiver": "pager", "group_wait": "0s", "group_interval": "1s", "repeat_interval": "1h"}
    with Receiver() as pager, Bridge(tmp_path / "bridge", {"streams": {"acme": stream}}) as bridge:
        receivers = [{"name": "pager", "webhook_configs": [{"url": pager.url}]}]

        def told(status: str) -> list[dict[str, Any]]:
            alerts = [alert for message in pager.events() for alert in message["alerts"] if alert["status"] == status]
            return [alert for alert in alerts if alert["labels"]["alertname"] == "EventBridgeStreamDown"]

        def is_scraped(port: int) -> bool:
            return ask(port, "event_bridge_stream_connected") == 1 and ask(port, "event_bridge:sink_late") == 0

        with alertmanager(tmp_path / "alertmanager", {"route": route, "receivers": receivers}) as manager:
            config = alerts_of(tmp_path / "prometheus", [f"127.0.0.1:{bridge.port}"], [f"127.0.0.1:{manager}"])
            with prometheus(tmp_path / "prometheus", config) as port:
                with Simulator(simulated):
                    until(lambda: is_scraped(port), "Prometheus sees a connected stream")
                    before = told("resolved")
                until(lambda: told("firing"), "the pager rings", 30)
                (first, *_) = told("firing")
                assert (first["labels"]["stream"], first["labels"]["severity"]) == ("acme", "critical")
                assert first["annotations"]["summary"] == "Stream acme is not connected"
                with Simulator(simulated):
                    until(lambda: len(told("resolved")) > len(before), "the pager says that it is over", 30)
        assert bridge.stop() == 0
