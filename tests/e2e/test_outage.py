"""Both brokers are away for long in the middle of one stream; the webhook and standard output get everything as it comes."""

import json
import time
import uuid
from collections.abc import Iterator
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
)
from tests.support.servers import kafka_broker, mosquitto
from tests.support.servers.kafka_broker import Broker, create_topic, read_topic
from tests.support.servers.mosquitto import Mosquitto, come_back, write_passwords
from tests.support.waiting import until

MISSING = kafka_broker.available() or mosquitto.available()

pytestmark = [pytest.mark.skipif(MISSING is not None, reason=str(MISSING)), pytest.mark.timeout(300)]

EVENTS = 20_000
RATE = 200
OUTAGE = 90.0
WINDOW = 5.0
"""Seconds between two looks."""
LAG = 15
"""Seconds within which the sinks that are well have to have what was sent, however busy this machine is."""
PATIENCE = 5
"""Seconds that the sinks wait for an acknowledgement."""
BACKOFF = {"max": "10s"}


@pytest.fixture
def kafka() -> Iterator[Broker]:
    broker = kafka_broker.shared()
    yield broker
    broker.restore()


def test_two_brokers_that_are_frozen_and_then_killed_are_away_for_long_and_miss_nothing(tmp_path: Path, kafka: Broker) -> None:
    topic = f"outage-{uuid.uuid4().hex[:8]}"
    create_topic(kafka.address(), topic)
    passwords = write_passwords(tmp_path, bridge="s3cret")
    simulated = SimulatorSettings(port=0, rate=RATE, count=EVENTS, seed=11, record=True, wait_for_clients=1)
    with (
        Mosquitto(tmp_path, listener=f"password_file {passwords}") as mqtt,
        mqtt.listening("docker/+/+/+", qos=0) as subscriber,
        Simulator(simulated) as simulator,
        Receiver() as receiver,
    ):
        sinks: dict[str, Any] = {
            "kafka": {
                "type": "kafka",
                "bootstrap_servers": kafka.address(),
                "topic": topic,
                "delivery_timeout": PATIENCE,
                "connect_timeout": PATIENCE,
                "backoff": BACKOFF,
            },
            "mqtt": {
                "type": "mqtt",
                "url": mqtt.url,
                "username": "bridge",
                "password": "s3cret",
                "timeout": PATIENCE,
                "backoff": BACKOFF,
            },
            "hook": {"type": "webhook", "url": receiver.url, "format": "batch"},
            "out": {"type": "stdout"},
        }
        with Bridge(tmp_path / "bridge", {"streams": {"acme": {"url": simulator.url}}, "sinks": sinks}) as bridge:
            until(lambda: len(subscriber.publications()) > 2 * RATE, "events arrive")
            began = time.monotonic()
            kafka.freeze()
            watch_the_others(bridge, simulator, receiver, began + 2 * WINDOW)
            mqtt.hang()
            watch_the_others(bridge, simulator, receiver, began + OUTAGE / 2)
            assert_both_say({"timeout"}, bridge)
            kafka.kill()
            mqtt.kill()
            watch_the_others(bridge, simulator, receiver, began + OUTAGE)
            assert_both_say({"timeout", "unreachable"}, bridge)
            assert simulator.generated < EVENTS, "the outage was in the middle"
            kafka.restore()
            come_back(mqtt, tmp_path, subscriber)
            until(lambda: simulator.generated == EVENTS, "everything is sent")
            until(lambda: bridge.pending() == 0, "everything is delivered", 40)
            metrics, lines = bridge.metrics(), bridge.lines()
            assert bridge.stop() == 0
        subscriber.sync()
        published = [json.loads(publication["payload"]) for publication in subscriber.publications()]

    sent = simulator.sent_uuids()
    stored = [json.loads(record) for _, record in read_topic(kafka.address(), topic)]
    assert len(sent) == EVENTS
    for arrived in (stored, published):
        assert set(uuids(arrived)) == set(sent)
        assert_order_per_resource(arrived, sent)
        # What was on its way when the broker froze may come twice, and nothing else.
        assert len(arrived) - EVENTS == len(repeated(arrived)) < 2 * RATE
    assert sorted(uuids(receiver.events())) == sorted(uuids(lines)) == sorted(sent)
    assert_books_balance(metrics)
    for sink in sinks:
        assert value(metrics, "sink_events_delivered_total", sink=sink) == EVENTS


def watch_the_others(bridge: Bridge, simulator: Simulator, receiver: Receiver, until_then: float) -> None:
    """Until then the sinks that are well get what is sent, at every look."""
    while time.monotonic() < until_then:
        sent = simulator.generated
        until(lambda sent=sent: receiver.count() >= sent, "the webhook gets what is sent", LAG)  # type: ignore[misc]
        until(lambda sent=sent: delivered(bridge, "out") >= sent, "standard output gets what is sent", LAG)  # type: ignore[misc]
        time.sleep(min(WINDOW, max(0.1, until_then - time.monotonic())))


def delivered(bridge: Bridge, sink: str) -> float:
    return value(bridge.metrics(), "sink_events_delivered_total", sink=sink)


def assert_both_say(reasons: set[str], bridge: Bridge) -> None:
    """The status tells the truth about both brokers."""
    status = bridge.status()["sinks"]
    for name in ("kafka", "mqtt"):
        assert not status[name]["up"]
        assert status[name]["reason"] in reasons, status[name]
        assert status[name]["pending"] > 0
    assert status["hook"]["up"]
    assert status["out"]["up"]
