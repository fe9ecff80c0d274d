"""The benchmarks run and report sensible figures; speed is not tested."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.servers import kafka_broker, mosquitto

_ROOT = Path(__file__).parent.parent
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_SCENARIOS = {
    "ways": ["An event", "Replay"],
    "machine": ["Date", "Processor", "System", "Python", "A loop", "Sync", "Load"],
    "throughput": ["The sender", "Stream", "… CPU", "… memory", "Stream", "… CPU", "… memory"],
    "sinks": [
        "Stream → journal → Kafka,",
        "… CPU",
        "Stream → journal → MQTT,",
        "… CPU",
        "Stream → journal → Kafka, MQTT",
        "… CPU",
    ],
    "latency": ["Socket", "Socket"],
    "memory": ["Memory, idle", "Start", "Memory", "Start"],
    "isolation": ["Socket", "… beside a dead sink", "Memory", "Webhook, a request per event", "… if every 50th event"],
    "restart": ["Restart", "… events/s", "… memory"],
    "stages": ["Stage"] * 9,
}


def bench(*arguments: str, path: str = os.environ["PATH"]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", *arguments]
    environment = {**os.environ, "PATH": path}
    return subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False)


def rows(markdown: str) -> list[tuple[str, list[float]]]:
    """Return each measurement and the numbers of its figure."""
    lines = [line.strip("|").split("|") for line in markdown.splitlines()]
    assert [cell.strip() for cell in lines[0]] == ["What", "Figure", "Target"]
    return [(what.strip(), [float(n.replace(",", "")) for n in _NUMBER.findall(figure)]) for what, figure, _ in lines[2:]]


@pytest.mark.parametrize("scenario", _SCENARIOS)
def test_every_scenario_runs_and_yields_a_table_of_figures(scenario: str) -> None:
    if scenario == "sinks" and (reason := kafka_broker.available() or mosquitto.available()):
        pytest.skip(reason)
    run = bench("--smoke", scenario)
    assert run.returncode == 0, run.stderr
    figures = rows(run.stdout)
    assert len(figures) == len(_SCENARIOS[scenario])
    for (what, numbers), beginning in zip(figures, _SCENARIOS[scenario], strict=True):
        assert what.startswith(beginning)
        if scenario == "machine":
            continue
        assert numbers, what
        assert all(number > 0 for number in numbers), (what, numbers)
        if "p50 / p99 / max" in what:
            assert numbers == sorted(numbers)


def test_without_brokers_the_figures_say_what_is_missing(tmp_path: Path) -> None:
    run = bench("--smoke", "sinks", path=str(tmp_path))
    assert run.returncode == 0, run.stderr
    lines = [line for line in run.stdout.splitlines() if line.startswith("| Stream")]
    assert len(lines) == 3
    for line in lines:
        assert "not measured: not installed: java, mvn" in line


def test_several_scenarios_run_one_after_the_other() -> None:
    run = bench("--smoke", "latency", "machine")
    assert run.returncode == 0, run.stderr
    assert len(rows(run.stdout)) == len(_SCENARIOS["latency"]) + len(_SCENARIOS["machine"])
    assert [line.split()[0] for line in run.stderr.splitlines()] == ["latency", "machine"]


def test_a_scenario_that_does_not_exist_is_told_with_those_that_do() -> None:
    run = bench("nonsense")
    assert run.returncode == 2
    assert run.stdout == ""
    for name in (*_SCENARIOS, "nonsense"):
        assert name in run.stderr
