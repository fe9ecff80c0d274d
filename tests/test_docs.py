"""Examples in the documents work: configurations load, commands exist, metrics are there, code runs."""

import re
import shlex
import subprocess
import time
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest
import yaml
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from bridge import logs
from bridge.admin.health import Health
from bridge.admin.routes import operation_routes
from bridge.admin.settings import HealthSettings
from bridge.cli import arguments, main
from bridge.event import Event, Malformed, Reception, fields_of, normalize
from bridge.journal import DeathReason, Journal, JournalSettings
from bridge.metrics import Metrics, SinkMetrics, StreamMetrics
from bridge.pipeline.supervisor import Running
from bridge.sink import Entry
from config.load import load
from tests.support.journal_samples import append, bury, event, opened

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shell(text: str) -> list[str]:
    """The lines of the shell blocks of a document, without their remarks."""
    return [line.split("#")[0].strip() for block in blocks(text, "sh") for line in block.splitlines()]


def commands(text: str) -> list[str]:
    """Every `event-bridge ...` in the shell blocks of a document, up to what it is piped to."""
    lines = [line[line.rindex("event-bridge ") :] for line in shell(text) if "event-bridge " in line]
    return [re.split(r" [|>] ", line)[0] for line in lines]


def test_the_readme_configures_all_four_sinks_and_loads(tmp_path: Path) -> None:
    (text,) = blocks(README, "yaml")
    for path in set(re.findall(r"/run/secrets/\w+", text)):
        secret = tmp_path / Path(path).name
        secret.write_text("secret\n")
        text = text.replace(path, str(secret))
    config = tmp_path / "bridge.yaml"
    config.write_text(text)

    settings = load(config, {})

    assert {sink.type for sink in settings.sinks.values()} == {"kafka", "mqtt", "webhook", "stdout"}
    assert {stream.type for stream in settings.streams.values()} == {"docker-cloud", "engine"}


@pytest.mark.parametrize("line", commands(README))
def test_commands_of_the_readme_exist(line: str) -> None:
    main.parser().parse_args(shlex.split(line)[1:])


def test_the_readme_names_every_command() -> None:
    documented = set(re.findall(r"^\| `event-bridge ([\w-]+)`", README, re.MULTILINE))

    assert documented == set(main.COMMANDS)


def test_the_readme_names_every_metric_of_ours(tmp_path: Path) -> None:
    metrics = Metrics("0")
    StreamMetrics(metrics, "acme")
    SinkMetrics(metrics, "log")
    journal = Journal(JournalSettings(path=tmp_path / "journal.db"))
    metrics.observe(Health(journal, Running, settings=HealthSettings(), version="0"))
    text = generate_latest(metrics.registry).decode()
    journal.close()

    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    documented = {f"event_bridge_{name}" for row in rows for name in re.findall(r"`(\w+)`", row)}
    exposed = {name + ("_total" if kind == "counter" and not name.endswith("_total") else "") for name, kind in families(text)}

    assert exposed - documented == set()


def families(text: str) -> list[tuple[str, str]]:
    """Names and types of our families in a scrape."""
    return re.findall(r"^# TYPE (event_bridge_\w+) (\w+)$", text, re.MULTILINE)


def test_the_readmes_event_is_what_we_make() -> None:
    (shown,) = blocks(README, "json")
    line = shown.strip().encode()

    again = normalize(line, Reception.at("acme", datetime.now(UTC)), 10_000)

    assert isinstance(again, Event)
    assert fields_of(line).uuid == fields_of(again.json).uuid
    assert fields_of(line).datetime == fields_of(again.json).datetime


def test_the_sink_of_the_guide_delivers(tmp_path: Path) -> None:
    code = blocks((ROOT / "docs" / "sinks.md").read_text(), "python")[0]
    found: dict[str, Any] = {}
    exec(compile(code, "docs/sinks.md", "exec"), found)
    sink = found["AppendSink"]("copy", found["AppendSettings"](path=tmp_path / "out"))

    sink.open()
    failures = sink.deliver([Entry(1, 0.0, b'{"a":1}'), Entry(2, 0.0, b'{"a":2}')])
    sink.close()

    assert list(failures) == []
    assert (tmp_path / "out").read_bytes() == b'{"a":1}\n{"a":2}\n'


def test_what_an_operator_is_shown_works_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the file of a bridge that is down, in the order of the document."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "")
    Path("bridge.yaml").write_text(
        "streams: {acme: {}}\nsinks: {alerts: {type: webhook, url: 'http://127.0.0.1:1'}}\njournal: {path: journal.db}\n"
    )
    with opened(Path("journal.db"), "alerts") as journal:
        events = [event(number) for number in range(1, 6)]
        append(journal, events, [Malformed("not_json", b"?")])
        bury(journal, "alerts", 1, events, reason="rejected", died=time.time())
    said = ""

    lines = [line for line in commands(OPERATIONS) if "--url" not in line]
    steps = iter(shell(OPERATIONS))
    for line in lines:
        for step in takewhile(lambda step, line=line: line not in step, steps):  # type: ignore[misc]
            if step.startswith(("mkdir ", "cp ")):
                subprocess.run(step, shell=True, check=True)
        with capture_logs():
            # Of all these, only that needs a running bridge.
            assert main.main(shlex.split(line)[1:]) == ("retry-now" in line), line
        said += capsys.readouterr().out

    assert {line.split()[1] for line in lines} == {*arguments.COMMANDS, "check"}
    assert {path.name for path in Path("before").iterdir()} >= {"journal.db", "journal.db.lock"}
    assert "alerts: 1 dead letter queued\nalerts: 4 dead letters queued\n" in said
    for header in re.findall(r"^SINK .*", OPERATIONS, re.MULTILINE):
        assert header.split() in [line.split() for line in said.splitlines()]


def test_the_reasons_of_dead_letters_are_all_told() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", OPERATIONS, re.MULTILINE)) == set(get_args(DeathReason))


def test_every_path_of_the_operations_is_told_with_its_method(tmp_path: Path) -> None:
    with opened(tmp_path / "journal.db") as journal:
        routes = operation_routes(journal)
        told = {}
        for line in shell(OPERATIONS):
            if line.startswith("curl"):
                path = urlsplit(shlex.split(line)[-1]).path
                told[path] = "POST" if "-X POST" in line else "GET"

        assert {path: route.method for path, route in routes.items()} == told


def test_links_in_the_documents_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_compose_gives_the_bridge_longer_than_its_grace_to_stop() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())

    assert set(compose["services"]) == {"bridge", "simulator", "prometheus", "alertmanager", "grafana"}
    assert int(compose["services"]["bridge"]["stop_grace_period"].removesuffix("s")) > load(None, NO_SINKS).shutdown.grace


NO_SINKS = {"DOCKERCLOUD_USER": "bob", "DOCKERCLOUD_APIKEY": "key", "BRIDGE_SECRETS_DIR": ""}


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    file = ""
    named = re.findall(r"`((?:[\w/]+\.py|…)(?:::\w+)?)`", (ROOT / "docs" / "security.md").read_text())
    for name in named:
        path, _, function = name.partition("::")
        file = file if path == "…" else path
        text = (ROOT / "tests" / file).read_text()
        assert f"def {function}" in text, name
    assert len(named) > 25
