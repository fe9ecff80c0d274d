"""The rules of `deploy/alerts.yaml`: each alert fires when it should, and leads to its section of the runbook."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.alerts import ALERTS, FILE, RULES, firing, names_in, run_promtool

ROOT: Final = Path(__file__).parents[2]
OPERATIONS: Final = (ROOT / "docs" / "operations.md").read_text()

needs_promtool: Final = pytest.mark.skipif(shutil.which("promtool") is None, reason="not installed: prometheus")

DOWN: Final = {'sink_up{sink="hook"}': "1x9 0x90"}
LIMITS: Final = {"journal_limit_bytes": "1e9+0x600"}
FIRES: Final[dict[str, tuple[dict[str, str], int, int]]] = {
    "EventBridgeDown": ({"up": "1x9 0x90"}, 11, 13),
    "EventBridgeNotReady": ({"ready": "1x9 0x90"}, 19, 21),
    "EventBridgeStreamDown": ({'stream_connected{stream="acme"}': "1x9 0x90"}, 14, 16),
    "EventBridgeStreamGap": ({'stream_gap_seconds_total{stream="acme"}': "0x9 0+30x90"}, 10, 13),
    "EventBridgeStreamFlapping": (
        {
            'stream_reconnects_total{stream="acme",reason="closed"}': "0x9 0+1x90",
            'stream_connected{stream="acme"}': "1x9 0 1 0 1 1 0 1 0 1 0 1 0 1 0 1 0 1",
        },
        14,
        25,
    ),
    "EventBridgeMalformedMessages": ({'events_malformed_total{stream="acme",reason="not_json"}': "0x9 1x90"}, 9, 11),
    "EventBridgeSinkDown": ({'sink_up{sink="hook"}': "1x9 0x90"}, 14, 16),
    "EventBridgeSinkLate": ({'sink_lag_seconds{sink="hook"}': "0x59 61x90"}, 60, 71),
    "EventBridgeSinkOftenLate": ({'sink_lag_seconds{sink="hook"}': "0x359 61x90"}, 370, 384),
    "EventBridgeRetryQueueFull": (
        {'sink_paused{sink="hook",reason="retry_queue_full"}': "0x9 1 0 1 0 0 1 1 0 0 0 1 0"} | DOWN,
        14,
        16,
    ),
    "EventBridgeDeadLettersFull": ({'sink_paused{sink="hook",reason="dead_letters_full"}': "0x9 1x90"} | DOWN, 10, 12),
    "EventBridgeDeadLetters": ({'sink_events_dead_total{sink="hook"}': "7x9 8x90"}, 9, 11),
    "EventBridgeEventsDropped": ({'sink_events_dropped_total{sink="hook"}': "7x9 8x90"}, 9, 11),
    "EventBridgeBacklogWillFillJournal": (
        {
            'sink_pending_events{sink="hook"}': "0x9 0+1000x90",
            'sink_lag_seconds{sink="hook"}': "0x9 0+60x90",
            "journal_bytes": "1e8x9 1e8+4e6x90",
            **LIMITS,
        },
        18,
        40,
    ),
    "EventBridgeJournalNearlyFull": (
        {"journal_bytes": "1e8x9 8e8x90", 'sink_lag_seconds{sink="hook"}': "0x9 61x90", **LIMITS},
        14,
        16,
    ),
    "EventBridgeJournalInTrouble": ({"journal_in_trouble": "0x9 1x90"}, 10, 12),
    "EventBridgeJournalDamaged": ({"journal_damaged_files": "0x9 1x90"}, 9, 10),
    "EventBridgeReloadFailed": ({"config_last_reload_successful": "1x9 0x90"}, 9, 10),
    "EventBridgeThreadRestarts": ({"thread_restarts_total": "0x9 1x90"}, 9, 11),
    "EventBridgeWrongTokens": ({"http_wrong_tokens_total": "0x9 0+1x90"}, 12, 20),
}
"""For each alert, series in which it begins to fire: a minute at which it does not yet, and one at which it does."""

QUIET: Final[list[tuple[str, dict[str, str]]]] = [
    # Down, and tried again and again: that is no flapping.
    (
        "EventBridgeStreamFlapping",
        {
            'stream_reconnects_total{stream="acme",reason="network"}': "0x9 0+5x90",
            'stream_connected{stream="acme"}': "1x9 0x90",
        },
    ),
    # Delivered events are kept, and nothing waits.
    ("EventBridgeJournalNearlyFull", {"journal_bytes": "8e8x90", 'sink_lag_seconds{sink="hook"}': "0x90", **LIMITS}),
    # Late for a moment.
    ("EventBridgeSinkLate", {'sink_lag_seconds{sink="hook"}': "0x59 90x4 0x90"}),
    # The backlog grows, and a day passes before it fills anything.
    (
        "EventBridgeBacklogWillFillJournal",
        {
            'sink_pending_events{sink="hook"}': "0+10x90",
            'sink_lag_seconds{sink="hook"}': "0+60x90",
            "journal_bytes": "1e8+1e4x90",
            **LIMITS,
        },
    ),
    # The journal fills for another reason than the backlog.
    (
        "EventBridgeBacklogWillFillJournal",
        {
            'sink_pending_events{sink="hook"}': "1000-10x90",
            'sink_lag_seconds{sink="hook"}': "90x90",
            "journal_bytes": "1e8+4e6x90",
            **LIMITS,
        },
    ),
]
"""Series in which an alert does not fire, though it might seem so."""


@needs_promtool
def test_promtool_takes_the_rules_and_prometheus_loads_them() -> None:
    for command in (["check", "rules", FILE], ["check", "config", ROOT / "deploy" / "prometheus.yaml"]):
        done = subprocess.run(["promtool", *map(str, command)], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_every_alert_is_tried() -> None:
    assert list(FIRES.keys() ^ ALERTS.keys()) == []


@needs_promtool
@pytest.mark.parametrize("alert", FIRES)
def test_an_alert_fires_when_it_should_and_not_before(alert: str, tmp_path: Path) -> None:
    values, quiet, then = FIRES[alert]
    assert run_promtool(tmp_path, values, [firing(alert, quiet, expected=False), firing(alert, then, expected=True)]) == ""


@needs_promtool
@pytest.mark.parametrize(("alert", "values"), QUIET)
def test_an_alert_is_quiet_when_it_should_be(alert: str, values: dict[str, str], tmp_path: Path) -> None:
    assert run_promtool(tmp_path, values, [firing(alert, minute, expected=False) for minute in range(100)]) == ""


def test_every_metric_and_label_of_the_rules_is_scraped(scraped: dict[str, set[str]]) -> None:
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    for rule in RULES:
        assert names_in(rule["expr"]) - scraped.keys() - recorded - {"up"} == set()
        labels = set(re.findall(r"\$labels\.(\w+)", str(rule.get("annotations", ""))))
        used = set().union(*(scraped.get(name, set()) for name in names_in(rule["expr"])))
        if "late" not in rule["expr"]:
            assert labels - used - {"job", "instance"} == set()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_is_wrong_and_where_the_help_is(name: str) -> None:
    alert = ALERTS[name]
    path, _, anchor = alert["annotations"]["runbook_url"].partition("#")

    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert (ROOT / path).read_text() == OPERATIONS
    assert anchor == name.lower()
    assert f"\n### {name}\n" in OPERATIONS


def test_every_section_of_the_runbook_belongs_to_an_alert() -> None:
    assert sorted(re.findall(r"^### (EventBridge\w+)$", OPERATIONS, re.MULTILINE)) == sorted(ALERTS)
