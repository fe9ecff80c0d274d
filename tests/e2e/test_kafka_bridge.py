"""A real Kafka broker goes away in the middle of everything, refuses, and lacks a topic; nothing is lost, nobody else waits."""

import json
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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
from tests.support.servers import kafka_broker
from tests.support.servers.kafka_broker import Broker, create_topic, read_topic
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(kafka_broker.any_available() is not None, reason=str(kafka_broker.any_available()))

EVENTS = 20_000
OUTAGE = 5.0


@pytest.fixture
def broker() -> Iterator[Broker]:
    if reason := kafka_broker.available():
        pytest.skip(reason)
    broker = kafka_broker.shared()
    yield broker
    broker.restore()


@pytest.fixture
def topic(broker: Broker) -> str:
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    create_topic(broker.address(), name)
    return name


def settings(simulator: Simulator, **kafka: Any) -> dict[str, Any]:
    return {
        "streams": {"acme": {"url": simulator.url}},
        "sinks": {"broker": {"type": "kafka", "backoff": {"max": "5s"}, **kafka}, "out": {"type": "stdout"}},
    }


def simulated(count: int, rate: float) -> Simulator:
    return Simulator(SimulatorSettings(port=0, rate=rate, count=count, seed=5, record=True, wait_for_clients=1))


def unavailable(bridge: Bridge) -> tuple[str, str]:
    """Wait until the Kafka sink is not available; why, as a label and in words."""
    until(lambda: bridge.status()["sinks"]["broker"]["reason"] is not None, "the sink is called unavailable")
    sink = bridge.status()["sinks"]["broker"]
    return sink["reason"], sink["error"]


@pytest.mark.parametrize("outage", ["stopped", "killed with requests in flight", "frozen with requests in flight"])
@pytest.mark.timeout(90)
def test_a_broker_that_was_away_has_everything_in_order_when_it_is_back(
    tmp_path: Path, broker: Broker, topic: str, outage: str
) -> None:
    patience = "30s" if outage == "stopped" else "1500ms"
    with simulated(EVENTS, 2000) as simulator:
        kafka = {"bootstrap_servers": broker.address(), "topic": topic, "delivery_timeout": patience, "connect_timeout": "2s"}
        with Bridge(tmp_path, settings(simulator, **kafka)) as bridge:
            until(lambda: value(bridge.metrics(), "sink_events_delivered_total", sink="broker") > 1000, "events arrive")
            # Stopping takes so long that everything may have been sent when it is done.
            before = value(bridge.metrics(), "sink_events_delivered_total", sink="out")
            {"stopped": broker.stop, "killed": broker.kill, "frozen": broker.freeze}[outage.split(maxsplit=1)[0]]()
            time.sleep(OUTAGE)
            assert value(bridge.metrics(), "sink_events_delivered_total", sink="out") > before + 5000
            assert value(bridge.metrics(), "sink_pending_events", sink="broker") > 5000
            if outage != "stopped":
                assert unavailable(bridge)[0] in {"unreachable", "timeout"}
            broker.restore()
            until(lambda: len(simulator.sent_uuids()) == EVENTS, "everything was sent")
            until(lambda: bridge.pending() == 0, "everything is delivered", 40)
            metrics, lines = bridge.metrics(), bridge.lines()
            assert bridge.stop() == 0

    sent = simulator.sent_uuids()
    arrived = [json.loads(record) for _, record in read_topic(broker.address(), topic)]
    assert len(sent) == EVENTS
    assert set(uuids(arrived)) == set(sent)
    assert_order_per_resource(arrived, sent)
    assert len(arrived) - EVENTS <= 3 * 1000, "more was repeated than can have been under way"
    assert sorted(uuids(lines)) == sorted(sent)
    assert_books_balance(metrics)
    assert value(metrics, "sink_events_dead_total", sink="broker") == 0


SECRETS = ("wrong-secret", "admin-secret", "alice-secret")


@pytest.mark.timeout(60)
def test_status_and_log_say_in_words_what_is_wrong_and_no_secret_shows(tmp_path: Path, broker: Broker, topic: str) -> None:
    login = {"type": "kafka", "sasl": "SCRAM-SHA-256", "bootstrap_servers": broker.address("SASL"), "topic": topic}
    sinks = {
        "password": {**login, "username": "admin", "password": "wrong-secret"},
        "forbidden": {**login, "username": "alice", "password": "alice-secret"},
        "missing": {**login, "username": "admin", "password": "admin-secret", "topic": f"missing-{topic}"},
        "authority": {**login, "sasl": None, "bootstrap_servers": broker.address("TLS"), "tls": True},
        "fine": {**login, "username": "admin", "password": "admin-secret", "batch": {"max_events": 50}},
    }
    expected = {
        "password": ("unauthorized", "login refused: user admin with SCRAM-SHA-256 is not accepted"),
        "forbidden": ("unauthorized", "we are not allowed to write to the topic"),
        "missing": ("not_found", "the topic does not exist; create it"),
        "authority": ("tls", "the broker's certificate is not accepted: self-signed certificate"),
    }
    with simulated(500, 0) as simulator:
        settings = {"streams": {"acme": {"url": simulator.url}}, "sinks": sinks}
        with Bridge(tmp_path, settings) as bridge:
            until(lambda: value(bridge.metrics(), "sink_events_delivered_total", sink="fine") == 500, "the fine one has all")
            until(
                lambda: all(bridge.status()["sinks"][name]["reason"] for name in expected), "the others say why they have not"
            )
            status = bridge.status()["sinks"]
            create_topic(broker.address(), f"missing-{topic}")
            until(lambda: bridge.status()["sinks"]["missing"]["pending"] == 0, "the topic is found when it is there")
            metrics, everything = bridge.metrics(), bridge.get("/metrics")[1] + bridge.get("/status")[1]
            assert bridge.stop() == 0

    log = (tmp_path / "log.jsonl").read_text()
    for name, (reason, words) in expected.items():
        assert status[name]["reason"] == reason
        assert words in status[name]["error"]
        assert words in log
    assert len(read_topic(broker.address(), f"missing-{topic}")) == 500
    assert not [secret for secret in SECRETS if secret in log + everything]
    assert_books_balance(metrics)


def test_a_forbidden_topic_and_records_that_are_too_large_are_named_and_the_rest_arrives(
    tmp_path: Path, broker: Broker, topic: str
) -> None:
    login = {"type": "kafka", "sasl": "PLAIN", "bootstrap_servers": broker.address("SASL")}
    for action in ("create", "update", "delete"):
        create_topic(broker.address(), f"{topic}.{action}")
        broker.allow("bob", f"{topic}.{action}", "DESCRIBE", *([] if action == "update" else ["WRITE"]))
    create_topic(broker.address(), f"{topic}.small", max_message_bytes="420")
    sinks = {
        "some": {**login, "username": "bob", "password": "bob-secret", "topic": topic + ".{action}"},
        "small": {**login, "username": "admin", "password": "admin-secret", "topic": f"{topic}.small"},
    }
    with simulated(400, 0) as simulator:
        settings = {"streams": {"acme": {"url": simulator.url}}, "sinks": sinks}
        with Bridge(tmp_path, settings) as bridge:
            until(lambda: bridge.status()["sinks"]["some"]["delivered"] > 0, "what is allowed arrives")
            until(lambda: bridge.status()["sinks"]["small"]["pending"] == 0, "what is too large is given up")
            until(lambda: bridge.status()["sinks"]["some"]["waiting"], "the rest waits")
            status, everything = bridge.status()["sinks"], bridge.get("/metrics")[1] + bridge.get("/status")[1]
            broker.allow("bob", f"{topic}.update", "WRITE")
            until(lambda: bridge.status()["sinks"]["some"]["pending"] == 0, "what was forbidden arrives when it is allowed")
            assert bridge.status()["sinks"]["some"]["waiting"] == {}
            metrics = bridge.metrics()
            assert bridge.stop() == 0

    log = (tmp_path / "log.jsonl").read_text()
    forbidden = f"topic {topic}.update: we are not allowed to write to the topic"
    assert status["some"]["up"]
    assert status["some"]["waiting"] == {"unauthorized": forbidden}
    assert status["small"]["dead"] > 0
    assert forbidden in log
    assert "the record is larger than the topic's `max.message.bytes`" in log
    assert value(metrics, "sink_events_delivered_total", sink="some") == 400
    dead = value(metrics, "sink_events_dead_total", sink="small")
    assert len(read_topic(broker.address(), f"{topic}.small")) == 400 - dead
    assert_books_balance(metrics)
    assert not [secret for secret in ("bob-secret", *SECRETS) if secret in log + everything]


def test_a_quota_slows_its_sink_down_and_is_named(tmp_path: Path, broker: Broker, topic: str) -> None:
    client = f"slow-{topic}"
    # Kafka looks at the last ten seconds: so much passes at once, and then nothing for a while.
    broker.configure("clients", client, {"producer_byte_rate": "100000"})
    kafka: dict[str, Any] = {
        "bootstrap_servers": broker.address(),
        "topic": topic,
        "client_id": client,
        "delivery_timeout": "2s",
    }
    kafka["batch"] = {"max_events": 500}
    said: set[tuple[str, str]] = set()
    with simulated(3_000, 0) as simulator, Bridge(tmp_path, settings(simulator, **kafka)) as bridge:

        def done() -> bool:
            sink = bridge.status()["sinks"]["broker"]
            said.update({(sink["reason"], sink["error"])} if sink["reason"] and sink["failures"] else ())
            return bool(sink["pending"] == 0 and value(bridge.metrics(), "events_accepted_total") == 3_000)

        until(lambda: value(bridge.metrics(), "sink_events_delivered_total", sink="out") == 3_000, "nobody else waits", 10)
        until(done, "everything is delivered", 60)
        metrics = bridge.metrics()
        assert bridge.stop() == 0

    arrived = [json.loads(record) for _, record in read_topic(broker.address(), topic)]
    assert said == {("throttled", f"{broker.address()}: our quota is used up")}
    assert sorted(uuids(arrived)) == sorted(simulator.sent_uuids())
    assert_order_per_resource(arrived, simulator.sent_uuids())
    assert_books_balance(metrics)


def test_check_connect_says_what_will_not_work(tmp_path: Path) -> None:
    address, topic = kafka_broker.any_address(), f"check-{uuid.uuid4().hex[:8]}"
    create_topic(address, topic, max_message_bytes="1048588")
    create_topic(address, f"small-{topic}", max_message_bytes="5000")
    config = tmp_path / "bridge.yaml"
    where = {"type": "kafka", "bootstrap_servers": address}
    sinks = {"good": {**where, "topic": topic}, "small": {**where, "topic": f"small-{topic}"}}
    sinks["missing"] = {**where, "topic": f"missing-{topic}"}
    create_topic(address, f"old-{topic}", cleanup_policy="compact", message_timestamp_before_max_ms="3600000")
    sinks["old"] = {**where, "topic": f"old-{topic}", "key": ""}
    if detour := None if kafka_broker.available() else kafka_broker.shared().address("DETOUR"):
        sinks["detour"] = {"type": "kafka", "bootstrap_servers": detour, "topic": topic}
    command = [EVENT_BRIDGE, "check", "--config", str(config), "--connect"]
    with simulated(0, 1) as simulator:
        config.write_text(
            yaml.safe_dump(
                {"streams": {"acme": {"url": simulator.url}}, "sinks": sinks, "journal": {"max_event_bytes": 1_200_000}}
            )
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=clean_environment())

    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert f"topic missing-{topic}: the topic does not exist" in said
    assert [line for line in said.splitlines() if line.startswith("sink good: ")] == [
        "sink good: ok",
        f"sink good: topic {topic} exists, and we may write to it",
        (
            f"sink good: large events will become dead letters: topic {topic}'s `max.message.bytes` is 1048588, and events may "
            "have 1200000 bytes; set it to 1201024 or more, or `journal.max_event_bytes` to 1047564 or less"
        ),
    ]
    assert f"sink small: large events will become dead letters: topic small-{topic}'s `max.message.bytes` is 5000" in said
    assert f"sink old: every event will become a dead letter: topic old-{topic}'s `cleanup.policy` is `compact`" in said
    assert (
        f"sink old: events that wait too long will become dead letters: topic old-{topic}'s `message.timestamp.before" in said
    )
    assert (
        detour is None or f"sink detour: unreachable: {detour}: localhost:{kafka_broker.shared().detour}, the address" in said
    )
    assert read_topic(address, topic) == []
