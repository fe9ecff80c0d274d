"""The example configuration as it is, but for addresses: all its streams and all four types of sinks at once."""

import contextlib
import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import pytest
from kafka.errors import TopicAlreadyExistsError  # type: ignore[import-untyped]

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import (
    EVENT_BRIDGE,
    Bridge,
    assert_books_balance,
    assert_order_per_resource,
    clean_environment,
    uuids,
    value,
)
from tests.support.ports import free_port
from tests.support.servers import dockerd, kafka_broker, mosquitto
from tests.support.servers.receiver import Receiver
from tests.support.waiting import until

EXAMPLE = Path(__file__).parent.parent.parent / "config" / "bridge.example.yaml"
REMARK = "sink audit: topic docker-events exists, and we may write to it"
"""Remarks of a check on the Kafka of these tests."""

NO_KAFKA = kafka_broker.any_available()
EVENTS = 600
BOXES = 3
ALARMS = {
    "a node that went": ("node", "terminate", "Terminated", "0d0c"),
    "a node that can't be reached": ("node", "update", "Unreachable", "0d0d"),
    "a service that failed": ("service", "update", "Start failed", "1e5a8fcc"),
}
NO_ALARMS = {
    "the service that always fails": ("service", "update", "Start failed", "1e5a8fcb"),
    "a node that comes": ("node", "create", "Deploying", "0d0e"),
    "a service that went": ("service", "terminate", "Terminated", "1e5a8fcd"),
}
"""Events of the account's own namespace: type, action, state, and how the resource's id begins."""

pytestmark = [
    pytest.mark.skipif(NO_KAFKA is not None, reason=str(NO_KAFKA)),
    pytest.mark.skipif(mosquitto.any_available() is not None, reason=str(mosquitto.any_available())),
    pytest.mark.skipif(dockerd.available() is not None, reason=str(dockerd.available())),
    pytest.mark.timeout(120),
]


class Surroundings:
    """Everything that the example is about, and the variables that say where it is."""

    def __init__(self, folder: Path) -> None:
        self.closing = contextlib.ExitStack()
        start = self.closing.enter_context
        self.cloud = start(Simulator(SimulatorSettings(port=0, rate=400, count=0, seed=11, record=True)))
        self.account = start(Simulator(SimulatorSettings(port=0, count=0, replay=[line(name) for name in ALARMS | NO_ALARMS])))
        self.engine = start(dockerd.Dockerd(folder))
        self.engine.import_image()
        self.kafka = kafka_broker.any_address()
        with contextlib.suppress(TopicAlreadyExistsError):
            kafka_broker.create_topic(self.kafka, "docker-events")
        self.before = self._records()
        self.broker = start(mosquitto.anybody(folder))
        self.subscriber = start(self.broker.listening("docker/+/+/+"))
        self.alerts, self.archive = Receiver(), Receiver()
        self.closing.callback(self.alerts.stop)
        self.closing.callback(self.archive.stop)
        self.variables = {
            "BRIDGE_STREAMS__ACME__URL": self.cloud.url,
            "BRIDGE_STREAMS__OWN__URL": self.account.url,
            "BRIDGE_STREAMS__LOCAL__URL": self.engine.url,
            "BRIDGE_SINKS__AUDIT__BOOTSTRAP_SERVERS": self.kafka,
            "BRIDGE_SINKS__HOME__URL": self.broker.url,
            "BRIDGE_SINKS__ALERTS__URL": self.alerts.url,
            "BRIDGE_SINKS__ARCHIVE__URL": self.archive.url,
            "BRIDGE_JOURNAL__PATH": str(folder / "journal.db"),
        }

    def audited(self) -> list[dict[str, Any]]:
        """Return the records that came since the beginning."""
        return [json.loads(record) for record in (self._records() - self.before).elements()]

    def at_home(self) -> list[dict[str, Any]]:
        """Return the publications of the subscriber."""
        return [json.loads(payload) for payload in self.subscriber.payloads()]

    def _records(self) -> Counter[bytes]:
        return Counter(record for _, record in kafka_broker.read_topic(self.kafka, "docker-events"))


def line(name: str) -> str:
    """One of the account's events, as the stream has it."""
    kind, action, state, beginning = (ALARMS | NO_ALARMS)[name]
    resource = f"{beginning:0<8}-0000-4000-8000-000000000000"
    event = {"type": kind, "action": action, "state": state, "resource_uri": f"/api/infra/v1/{kind}/{resource}/", "parents": []}
    return json.dumps({**event, "uuid": uuid_of(name), "datetime": "Mon, 01 Feb 2016 16:47:28 +0000"})


def uuid_of(name: str) -> str:
    return str(uuid5(NAMESPACE_OID, name))


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Surroundings]:
    around = Surroundings(tmp_path)
    with around.closing:
        yield around


def events_of(receiver: Receiver) -> list[dict[str, Any]]:
    return [event for request in list(receiver.requests) for event in request.events]


def check(variables: Mapping[str, str]) -> tuple[int, list[str]]:
    """`check --connect`: its exit status, and what it says."""
    command = [EVENT_BRIDGE, "check", "--config", str(EXAMPLE), "--connect"]
    environment = clean_environment(**variables)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stdout.splitlines()


def is_alarming(event: Mapping[str, Any]) -> bool:
    """Return True if the comments of the example promise an event to `alerts`."""
    state = event["state"].lower()
    bad = fnmatchcase(state, "*failed*") or state in {"not running", "unreachable"}
    gone = (event["type"], event["action"]) == ("node", "terminate")
    return (bad or gone) and "/service/1e5a8fcb-" not in event["resource_uri"]


def is_logged(event: Mapping[str, Any]) -> bool:
    return event["state"] not in {"Starting", "Stopping", "Terminating", "Redeploying", "Scaling"}


def test_every_sink_of_the_example_gets_what_it_is_said_to_get(tmp_path: Path, around: Surroundings) -> None:
    names = [
        "journal",
        "http",
        "stream acme",
        "stream own",
        "stream local",
        *[f"sink {n}" for n in ("audit", "home", "alerts", "archive", "log")],
    ]
    said = check(around.variables)[1][1:]
    assert [line for line in said if line.endswith(": ok")] == [f"{name}: ok" for name in names]
    assert set(said) - {f"{name}: ok" for name in names} == {REMARK}

    bridge = Bridge(tmp_path / "bridge", {})
    bridge.config = EXAMPLE
    bridge.variables = {**around.variables, "BRIDGE_HTTP__LISTEN": f"127.0.0.1:{bridge.port}"}
    with bridge:
        streams = ("acme", "own", "local")
        until(lambda: all(bridge.status()["streams"][name]["connected"] for name in streams), "all streams are there")
        around.cloud.change(count=EVENTS)
        around.account.change(count=None)
        for number in range(BOXES):
            around.engine.run(f"box-{number}")
            around.engine.kill(f"box-{number}")
            around.engine.wait(f"box-{number}")
            around.engine.remove(f"box-{number}")
        until(lambda: around.cloud.generated == EVENTS, "everything was sent")
        account, expected = len(ALARMS | NO_ALARMS), len(around.cloud.sent_uuids())
        until(lambda: accepted(bridge, "acme") == expected and accepted(bridge, "own") == account, "everything is received")
        until(lambda: sum(event.get("state") == "Terminated" for event in boxes(around)) == BOXES, "the boxes are gone")
        until(lambda: bridge.pending() == 0, "everything is delivered")
        metrics = bridge.metrics()
        assert bridge.stop() == 0

    archived = events_of(around.archive)
    of = {name: [event for event in archived if event["namespace"] == name] for name in ("acme", "", "local")}
    assert sorted(uuids(of["acme"])) == sorted(around.cloud.sent_uuids())
    assert_order_per_resource(of["acme"], around.cloud.sent_uuids())
    assert {event["type"] for event in of["acme"]} == {"container", "service", "stack"}
    assert sorted(uuids(of[""])) == sorted(map(uuid_of, ALARMS | NO_ALARMS))
    assert len(archived) == sum(map(len, of.values()))
    for number in range(BOXES):
        states = [event["state"] for event in boxes(around) if event["name"] == f"box-{number}"]
        assert states == ["Starting", "Running", "Stopping", "Stopped", "Terminated"]
    place = uuids(archived)
    for found in (around.audited(), around.at_home()):
        assert sorted(uuids(found)) == sorted(place)
    assert_order_per_resource(around.at_home(), place)
    assert {*uuids(events_of(around.alerts))} & {*uuids(of[""])} == {*map(uuid_of, ALARMS)}
    alarming, logged = [[event for event in archived if wanted(event)] for wanted in (is_alarming, is_logged)]
    assert sorted(uuids(events_of(around.alerts))) == sorted(uuids(alarming))
    assert_order_per_resource(events_of(around.alerts), place)
    assert uuids(bridge.lines()) == uuids(logged)
    assert 0 < len(alarming) < len(logged) < len(archived)
    assert_books_balance(metrics)
    for sink, wanted_by in {
        "audit": archived,
        "home": archived,
        "alerts": alarming,
        "archive": archived,
        "log": logged,
    }.items():
        assert value(metrics, "sink_events_delivered_total", sink=sink) == len(wanted_by)
        assert value(metrics, "sink_events_filtered_total", sink=sink) == len(archived) - len(wanted_by)


def accepted(bridge: Bridge, stream: str) -> float:
    return value(bridge.metrics(), "events_accepted_total", stream=stream)


def boxes(around: Surroundings) -> list[dict[str, Any]]:
    """Return the events of the engine's containers in the archive."""
    return [event for event in events_of(around.archive) if event["namespace"] == "local" and event["type"] == "container"]


@pytest.mark.parametrize(
    ("name", "variable", "words"),
    [
        ("audit", "BRIDGE_SINKS__AUDIT__BOOTSTRAP_SERVERS", "unreachable: "),
        ("home", "BRIDGE_SINKS__HOME__URL", "unreachable: 127.0.0.1:{port}: Connection refused"),
    ],
    ids=["audit", "home"],
)
def test_a_check_of_the_example_names_the_broker_that_is_missing(
    around: Surroundings, name: str, variable: str, words: str
) -> None:
    port = free_port()
    nowhere = f"127.0.0.1:{port}" if name == "audit" else f"mqtt://127.0.0.1:{port}"

    status, said = check({**around.variables, variable: nowhere})

    assert status == 1
    bad = [line for line in said[1:] if not line.endswith(": ok") and line != REMARK]
    assert len(bad) == 1
    assert bad[0].startswith(f"sink {name}: " + words.format(port=port))
    assert str(port) in bad[0]
