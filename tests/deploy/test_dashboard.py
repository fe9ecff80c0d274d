"""The dashboard of `deploy/grafana-dashboard.json`: every expression finds something in what a running bridge shows."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import Bridge
from tests.e2e.test_prometheus import ask
from tests.support.alerts import ALERTS, RULES, names_in
from tests.support.servers.prometheus import prometheus
from tests.support.waiting import until

ROOT: Final = Path(__file__).parents[2]
DASHBOARD: Final[dict[str, Any]] = json.loads((ROOT / "deploy" / "grafana-dashboard.json").read_text())
PANELS: Final[list[dict[str, Any]]] = DASHBOARD["panels"]
QUERIES: Final = [(panel, target) for panel in PANELS for target in panel.get("targets", ())]
MAY_BE_EMPTY: Final = ("Ended sessions", "Failures")
"""Panels that show only what is not zero."""


def filled_in(expression: str) -> str:
    """Return an expression with what Grafana puts in the place of its variables."""
    for variable, value in (("$__rate_interval", "5s"), ("$job", ".+"), ("$instance", ".+")):
        expression = expression.replace(variable, value)
    return expression


def test_every_metric_and_label_of_the_dashboard_is_scraped(scraped: dict[str, set[str]]) -> None:
    for _, target in QUERIES:
        names = names_in(target["expr"])
        labels = set().union(*(scraped[name] for name in names)) | {"job", "instance", "le"}
        grouped = {label for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(", ")}
        assert grouped <= labels
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= grouped


@pytest.mark.skipif(shutil.which("promtool") is None, reason="not installed: prometheus")
def test_promtool_can_read_every_expression(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": filled_in(target["expr"])} for number, (_, target) in enumerate(QUERIES)]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))

    done = subprocess.run(["promtool", "check", "rules", str(path)], check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Yield the port of a Prometheus that knows a bridge with a stream and a sink."""
    directory = tmp_path_factory.mktemp("dashboard")
    jobs = [{"job_name": "event-bridge", "static_configs": [{"targets": []}]}]
    config: dict[str, Any] = {"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"}, "scrape_configs": jobs}
    with (
        Simulator(SimulatorSettings(port=0, rate=50, wait_for_clients=1)) as simulator,
        Bridge(directory / "bridge", {"streams": {"acme": {"url": simulator.url}}}) as bridge,
    ):
        jobs[0]["static_configs"] = [{"targets": [f"127.0.0.1:{bridge.port}"]}]
        with prometheus(directory / "prometheus", config) as port:
            until(lambda: (ask(port, "rate(event_bridge_sink_events_delivered_total[5s])") or 0) > 0, "events are seen")
            yield port


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="not installed: prometheus")
def test_every_expression_finds_something(asked: int) -> None:
    for panel, target in QUERIES:
        found = ask(asked, filled_in(target["expr"]))
        assert found is not None or panel["title"] in MAY_BE_EMPTY, target["expr"]


def test_panels_are_whole_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"].endswith(".")
            assert panel["datasource"]["uid"] == "${datasource}"
    areas = [{(x, y) for x in _span(panel, "x", "w") for y in _span(panel, "y", "h")} for panel in PANELS]
    assert all(x < 24 for area in areas for x, _ in area)
    assert not any(one & other for one, other in combinations(areas, 2))


def _span(panel: dict[str, Any], start: str, length: str) -> range:
    place = panel["gridPos"]
    return range(place[start], place[start] + place[length])


def test_what_an_alert_is_about_can_be_seen() -> None:
    shown = set().union(*(names_in(target["expr"]) for _, target in QUERIES))
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for name, alert in ALERTS.items():
        assert names_in(alert["expr"]) - recorded - {"up", "event_bridge_sink_paused"} <= shown, name
