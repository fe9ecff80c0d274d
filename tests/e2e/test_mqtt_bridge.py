"""From the websocket to a real MQTT broker that is killed, refuses us and hangs, while a webhook gets everything in time."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bridge.simulator import Simulator, SimulatorSettings
from tests import mosquitto
from tests.e2e.harness import Bridge, Receiver, assert_books_balance, assert_order_per_resource, repeated, until, uuids, value
from tests.mosquitto import Mosquitto, Subscriber, write_passwords

pytestmark = [
    pytest.mark.skipif(mosquitto.available() is not None, reason=str(mosquitto.available())),
    pytest.mark.timeout(180),
]

COUNT = 20_000
OUTAGE = 5.0


@pytest.mark.parametrize("outage", ["kill -9", "SIGSTOP"])
def test_a_broker_that_goes_away_in_the_middle_misses_nothing_and_delays_nobody(tmp_path: Path, outage: str) -> None:
    passwords = write_passwords(tmp_path, bridge="s3cret")
    simulated = SimulatorSettings(port=0, rate=2500, count=COUNT, seed=7, record=True, wait_for_clients=1)
    with (
        Mosquitto(tmp_path, listener=f"password_file {passwords}") as broker,
        broker.listening("docker/+/+/+", qos=0) as subscriber,
        Simulator(simulated) as simulator,
        Receiver() as receiver,
    ):
        settings: dict[str, Any] = {
            "streams": {"acme": {"url": simulator.url}},
            "sinks": {
                "home": {"type": "mqtt", "url": broker.url, "username": "bridge", "password": "s3cret", "timeout": "1s"},
                "hook": {"type": "webhook", "url": receiver.url, "format": "batch"},
            },
        }
        with Bridge(tmp_path / "bridge", settings) as bridge:
            until(lambda: len(subscriber.publications()) > 5000, "a quarter has arrived")
            if outage == "kill -9":
                broker.kill()
                watch_the_other(receiver, OUTAGE)
                refuse_for_a_while(broker, tmp_path, subscriber, bridge)
            else:
                broker.hang()
                watch_the_other(receiver, OUTAGE)
                status = bridge.status()["sinks"]["home"]
                assert status["reason"] == "timeout"
                assert "within 1 s" in status["error"]
                broker.go_on()
            until(lambda: simulator.generated == COUNT, "everything is sent")
            until(lambda: bridge.pending() == 0, "everything is delivered", 90)
            metrics = bridge.metrics()
            assert bridge.stop() == 0
        subscriber.sync()
        availability = broker.retained("docker/bridge/home")["docker/bridge/home"]["payload"]
        events = [json.loads(publication["payload"]) for publication in subscriber.publications()]

    sent = simulator.sent_uuids()
    assert len(sent) == COUNT
    assert set(uuids(events)) == set(sent)
    assert_order_per_resource(events, sent)
    # What was on its way at the moment of an outage may come twice, and nothing else.
    assert len(repeated(events)) <= 100
    assert sorted(uuids(receiver.events())) == sorted(sent)
    assert_books_balance(metrics)
    assert value(metrics, "sink_events_delivered_total", sink="home") == COUNT
    assert availability == "offline"
    assert "s3cret" not in bridge.log.read_text()


def watch_the_other(receiver: Receiver, seconds: float) -> None:
    """The other sink gets events all the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = receiver.count()
        if before == COUNT:
            time.sleep(0.1)
            continue
        until(lambda before=before: receiver.count() > before, "the other sink goes on", 2)  # type: ignore[misc]


def refuse_for_a_while(broker: Mosquitto, folder: Path, subscriber: Subscriber, bridge: Bridge) -> None:
    """Start the broker without our user; it knows us again when the subscriber is back and the status says what is wrong."""
    write_passwords(folder)
    broker.start()
    subscriber.sync()

    def told() -> bool:
        status = bridge.status()["sinks"]["home"]
        return status["reason"] == "unauthorized" and "the broker refused the connection: not authorized" in status["error"]

    until(told, "the status says that we are refused", 60)
    write_passwords(folder, bridge="s3cret")
    broker.reload()
