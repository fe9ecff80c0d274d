"""Twenty incidents, each brought about: what the table in docs/operations.md says of them is there within fifteen seconds."""

import re
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e import harness
from tests.e2e.harness import Bridge, Receiver
from tests.support.alerts import ALERTS, RULES, firing, names_in, run_promtool
from tests.support.ports import free_port
from tests.support.servers.receiver import make_certificate

SECONDS = 15.0
OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
ROW = re.compile(
    r"^\| (?P<name>[^|]+?) \| `(?P<status>[^`]+)` \| (?:`(?P<backlog>[^`]+)`)? ?\| `(?P<log>[^`]+)` \| `(?P<metric>[^`]+)` \|"
    r" `(?P<alert>\w+)` \|",
    re.MULTILINE,
)


class Expected(NamedTuple):
    """A row of the table: a place in the status with a part of its value, and parts of what else is shown."""

    name: str
    status: str
    backlog: str | None
    log: str
    metric: str
    alert: str


TABLE = [Expected(*row.groups()) for row in ROW.finditer(OPERATIONS[OPERATIONS.index("## Incidents") :])]


class Rig:
    """A bridge with one stream of a simulator and one webhook, and what an incident needs to go wrong."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.stack = stack
        self.simulator = stack.enter_context(
            Simulator(SimulatorSettings(port=0, rate=50, username="bob", api_key="key", wait_for_clients=1))
        )
        self.receiver = stack.enter_context(Receiver())
        self.stream: dict[str, Any] = {
            "url": self.simulator.url,
            "username": "bob",
            "api_key": "key",
            "backoff": {"max": "1s"},
            "ping_interval": "1s",
            "ping_timeout": "1s",
        }
        self.sink: dict[str, Any] = {"type": "webhook", "url": self.receiver.url, "timeout": "2s", "backoff": {"max": "1s"}}
        self.others: dict[str, Any] = {}
        self.bridge = Bridge(directory, self.settings())

    def settings(self) -> dict[str, Any]:
        return {"streams": {"acme": self.stream}, "sinks": {"hook": self.sink}, **self.others}

    def start(self) -> None:
        self.bridge.configure(self.settings())
        self.stack.enter_context(self.bridge)


Incident = Callable[[Rig], None]
INCIDENTS: dict[str, Incident] = {}


def incident(name: str) -> Callable[[Incident], Incident]:
    def register(bring_about: Incident) -> Incident:
        INCIDENTS[name] = bring_about
        return bring_about

    return register


def answering(status: int, **headers: str) -> Incident:
    def bring_about(rig: Rig) -> None:
        rig.receiver.answer = lambda _: (status, headers)
        rig.start()

    return bring_about


incident("the receiver fails (500)")(answering(500))
incident("the receiver refuses our credentials (401)")(answering(401))
incident("the receiver asks for a pause (429)")(answering(429, **{"Retry-After": "60"}))
incident("the receiver refuses events (422)")(answering(422))
incident("the receiver's path is wrong (404)")(answering(404))


@incident("the receiver does not answer")
def _(rig: Rig) -> None:
    rig.receiver.hang.set()
    rig.start()


@incident("the receiver is gone")
def _(rig: Rig) -> None:
    rig.sink["url"] = f"http://127.0.0.1:{free_port()}/hook"
    rig.start()


@incident("the receiver's name does not exist")
def _(rig: Rig) -> None:
    rig.sink["url"] = "http://receiver.invalid/hook"
    rig.start()


@incident("the receiver's certificate is not trusted")
def _(rig: Rig) -> None:
    certificate, _ = make_certificate(rig.directory)
    rig.sink["ca_file"] = str(certificate)
    rig.stack.enter_context(tls_server(rig))
    rig.start()


@contextmanager
def tls_server(rig: Rig) -> Iterator[None]:
    """A receiver with a certificate of its own, which the sink has not been given."""
    other = rig.directory / "other"
    other.mkdir()
    certificate, key = make_certificate(other)
    port = free_port()
    command = ["openssl", "s_server", "-quiet", "-accept", str(port), "-cert", str(certificate), "-key", str(key), "-www"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        rig.sink["url"] = f"https://localhost:{port}/hook"
        try:
            yield
        finally:
            server.kill()


@incident("Kafka is gone")
def _(rig: Rig) -> None:
    rig.sink = {"type": "kafka", "bootstrap_servers": f"127.0.0.1:{free_port()}", "topic": "t", "connect_timeout": "2s"}
    rig.start()


@incident("the MQTT broker is gone")
def _(rig: Rig) -> None:
    rig.sink = {"type": "mqtt", "url": f"mqtt://127.0.0.1:{free_port()}"}
    rig.start()


@incident("the stream's server is gone")
def _(rig: Rig) -> None:
    rig.stream["url"] = f"ws://127.0.0.1:{free_port()}"
    rig.start()


@incident("the stream's credentials are refused")
def _(rig: Rig) -> None:
    rig.stream["api_key"] = "expired"
    rig.start()


@incident("the stream falls silent")
def _(rig: Rig) -> None:
    rig.simulator.change(silence_after=0.5)
    rig.start()


@incident("the stream flaps")
def _(rig: Rig) -> None:
    rig.simulator.change(disconnect_every=0.2)
    rig.start()


@incident("messages are no events")
def _(rig: Rig) -> None:
    rig.simulator.change(malformed=1.0)
    rig.start()


@incident("the journal is full")
def _(rig: Rig) -> None:
    rig.simulator.change(rate=0)
    rig.others["journal"] = {"path": str(rig.directory / "journal.db"), "max_bytes": "16MiB"}
    rig.sink["url"] = f"http://127.0.0.1:{free_port()}/hook"
    rig.start()


@incident("a process reads the journal for ever")
def _(rig: Rig) -> None:
    rig.simulator.change(rate=0)
    rig.others["journal"] = {"path": str(rig.directory / "journal.db"), "max_bytes": "64MiB"}
    rig.start()
    reader = rig.stack.enter_context(closing(sqlite3.connect(rig.directory / "journal.db")))
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM sinks").fetchone()


@incident("the journal was damaged")
def _(rig: Rig) -> None:
    rig.start()
    rig.bridge.stop()
    path = rig.directory / "journal.db"
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 8192)
    rig.bridge.start()


@incident("a reload fails")
def _(rig: Rig) -> None:
    rig.start()
    rig.bridge.configure({**rig.settings(), "nonsense": 1})
    rig.bridge.signal(signal.SIGHUP)


def test_the_table_and_the_incidents_are_the_same() -> None:
    assert [row.name for row in TABLE] == list(INCIDENTS)
    assert len(TABLE) >= 20


def test_every_alert_belongs_to_an_incident_or_is_named_beside_the_table() -> None:
    (beside,) = re.findall(r"^No row above names (.*?): they", OPERATIONS, re.MULTILINE | re.DOTALL)
    assert {row.alert for row in TABLE} | set(re.findall(r"`(\w+)`", beside)) == ALERTS.keys()
    assert {row.alert for row in TABLE} & set(re.findall(r"`(\w+)`", beside)) == set()


@pytest.mark.timeout(90)
@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_within_fifteen_seconds_an_incident_is_seen_everywhere(tmp_path: Path, row: Expected) -> None:
    with ExitStack() as stack:
        rig = Rig(tmp_path, stack)
        INCIDENTS[row.name](rig)
        until, missing = time.monotonic() + SECONDS, [""]
        while missing and time.monotonic() < until:
            time.sleep(0.3)
            missing = [what for what, is_there in looks(rig, row) if not is_there()]
        assert missing == [], rig.bridge.get("/status")[1] + rig.bridge.log.read_text()[-3000:]


def looks(rig: Rig, row: Expected) -> Iterator[tuple[str, Callable[[], bool]]]:
    """What has to be seen, each with a look at it."""
    place, _, part = row.status.partition(" = ")
    yield f"status: {row.status}", lambda: part in str(at(rig.bridge.status(), place))
    if row.backlog:
        shown = row.backlog.lower()
        yield f"backlog: {row.backlog}", lambda: shown in backlog(rig.bridge).lower()
    yield f"log: {row.log}", lambda: bool(rig.bridge.said(row.log))
    yield f"metric: {row.metric}", lambda: is_measured(rig.bridge, row.metric)
    if shutil.which("promtool"):
        yield f"alert: {row.alert}", lambda: would_fire(rig.bridge, row.alert)


def at(value: Any, place: str) -> Any:
    for key in place.split("."):
        value = value.get(key, "") if isinstance(value, dict) else value
    return value


def backlog(bridge: Bridge) -> str:
    done = harness.command("backlog", "--interval", "100ms", "--config", str(bridge.config), cwd=bridge.directory, seconds=30)
    return " ".join(done.stdout.split())


def is_measured(bridge: Bridge, wanted: str) -> bool:
    """Whether a sample is there, like `sink_up{sink="hook"} = 0` or `… > 0`."""
    match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (=|>) ([\d.]+)", wanted)
    assert match, wanted
    labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
    found = harness.value(bridge.metrics(), match[1], **labels)
    return found == float(match[4]) if match[3] == "=" else found > float(match[4])


def would_fire(bridge: Bridge, alert: str) -> bool:
    """Return True if an alert fires when all goes on like in this second: counters rise at this pace, gauges repeat it."""
    known = set().union(*(names_in(rule["expr"]) for rule in RULES))
    scrapes, began = [bridge.metrics()], time.monotonic()
    for _ in range(4):
        time.sleep(0.25)
        scrapes.append(bridge.metrics())
    a_minute = 60 / (time.monotonic() - began)
    values = {}
    for (name, labels), last in scrapes[-1].items():
        if name in known:
            shown = ",".join(f'{label}="{value}"' for label, value in labels)
            seen = [scrape.get((name, labels), last) for scrape in scrapes]
            points = f"{last}+{(last - seen[0]) * a_minute}x40" if name.endswith("_total") else " ".join(map(str, seen * 8))
            values[f"{name.removeprefix('event_bridge_')}{{{shown}}}"] = points
    return run_promtool(bridge.directory, values, [firing(alert, 35)]) == ""
