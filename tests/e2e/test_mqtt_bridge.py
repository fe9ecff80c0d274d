"""From the websocket to a real MQTT broker that is killed, refuses us and hangs, while a webhook gets everything in time."""

import json
import re
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import (
    EVENT_BRIDGE,
    Bridge,
    Receiver,
    assert_books_balance,
    assert_order_per_resource,
    clean_environment,
    repeated,
    uuids,
    value,
)
from tests.support.servers import mosquitto
from tests.support.servers.mosquitto import Certificates, Mosquitto, Subscriber, come_back, write_passwords
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(
        mosquitto.available() is not None, reason=f"must own the broker, to stop it or to set it up; {mosquitto.available()}"
    ),
    pytest.mark.timeout(180),
]

COUNT = 20_000
OUTAGE = 5.0


@pytest.mark.parametrize("outage", ["stopped", "kill -9", "SIGSTOP"])
def test_a_broker_that_goes_away_in_the_middle_misses_nothing_and_delays_nobody(tmp_path: Path, outage: str) -> None:
    passwords = write_passwords(tmp_path, bridge="s3cret")
    simulated = SimulatorSettings(port=0, rate=2500, count=COUNT, seed=7, record=True, wait_for_clients=1)
    with (
        Mosquitto(tmp_path, "log_type all", listener=f"password_file {passwords}") as broker,
        broker.listening("docker/+/+/+", qos=0) as subscriber,
        Simulator(simulated) as simulator,
        Receiver() as receiver,
    ):
        settings: dict[str, Any] = {
            "streams": {"acme": {"url": simulator.url}},
            "sinks": {
                "home": {
                    "type": "mqtt",
                    "url": broker.url,
                    "username": "bridge",
                    "password": "s3cret",
                    "timeout": "1s",
                    "backoff": {"max": "5s"},
                },
                "hook": {"type": "webhook", "url": receiver.url, "format": "batch"},
            },
        }
        with Bridge(tmp_path / "bridge", settings) as bridge:
            until(lambda: bridge.answers() and len(subscriber.publications()) > 5000, "a quarter has arrived")
            if outage == "kill -9":
                broker.kill()
                watch_the_other(receiver, OUTAGE)
                come_back(broker, tmp_path, subscriber, partial(see_that_we_are_refused, bridge))
            elif outage == "stopped":
                broker.terminate()
                watch_the_other(receiver, OUTAGE)
                assert bridge.status()["sinks"]["home"]["reason"] == "unreachable"
                come_back(broker, tmp_path, subscriber)
            else:
                broker.hang()
                watch_the_other(receiver, OUTAGE)
                status = bridge.status()["sinks"]["home"]
                assert status["reason"] == "timeout"
                assert "within 1 s" in status["error"]
                broker.go_on()
            until(lambda: value(bridge.metrics(), "events_accepted_total") == COUNT, "everything is received")
            until(lambda: bridge.pending() == 0, "everything is delivered", 40)
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
    if outage != "kill -9":  # What that leaves between an event and its acknowledgement, nobody can know.
        assert len(events) == acknowledged(tmp_path)
    assert sorted(uuids(receiver.events())) == sorted(sent)
    assert_books_balance(metrics)
    assert value(metrics, "sink_events_delivered_total", sink="home") == COUNT
    assert availability == "offline"
    assert "s3cret" not in bridge.log.read_text()


def test_a_broker_that_went_while_nothing_happened_is_told_that_we_are_online(tmp_path: Path) -> None:
    def available() -> str | None:
        found = broker.retained("docker/bridge/home")
        return found["docker/bridge/home"]["payload"] if found else None

    def is_known(reason: str | None) -> bool:
        status = bridge.status()["sinks"]["home"]
        up = value(bridge.metrics(), "sink_up", sink="home")
        return status["up"] is (reason is None) and up == float(reason is None) and status["reason"] == reason

    with Mosquitto(tmp_path) as broker, Simulator(SimulatorSettings(port=0, count=0)) as simulator:
        home = {"type": "mqtt", "url": broker.url, "timeout": "1s", "keepalive": "2s"}
        settings = {"streams": {"acme": {"url": simulator.url}}, "sinks": {"home": home}}
        with Bridge(tmp_path / "bridge", settings) as bridge:
            until(lambda: is_known(None), "it is up")
            assert available() == "online"

            broker.kill()
            until(lambda: is_known("unreachable"), "the status knows that the broker is gone", 5)
            broker.start()  # It has forgotten everything.
            until(lambda: available() == "online", "it is told again that we are there")
            assert is_known(None)

            broker.hang()
            until(lambda: is_known("timeout"), "the status knows that the broker hangs", 10)
            broker.go_on()
            until(lambda: is_known(None), "it is up again")
            until(lambda: available() == "online", "what the will has told meanwhile is put right")
            assert value(bridge.metrics(), "events_received_total") == 0

            with broker.listening("docker/bridge/#") as subscriber:
                bridge.kill()
                until(lambda: payloads(subscriber)[-1:] == ["offline"], "the will tells that we are dead")
            assert available() == "offline"


def test_a_check_beside_a_running_bridge_does_not_get_in_its_way(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker, Simulator(SimulatorSettings(port=0, rate=50)) as simulator:
        settings = {"streams": {"acme": {"url": simulator.url}}, "sinks": {"home": {"type": "mqtt", "url": broker.url}}}
        with Bridge(tmp_path / "bridge", settings) as bridge:
            until(lambda: bridge.status()["sinks"]["home"]["delivered"] > 0, "events arrive")
            before = bridge.status()["sinks"]["home"]
            command = [EVENT_BRIDGE, "check", "--connect", "--config", str(bridge.config)]
            said = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True, timeout=30)
            until(lambda: bridge.status()["sinks"]["home"]["delivered"] > before["delivered"] + 20, "events go on arriving")
            after = bridge.status()["sinks"]["home"]
            availability = broker.retained("docker/bridge/home")["docker/bridge/home"]["payload"]

    assert "sink home: ok" in said.stdout
    assert (after["up"], after["since"], after["failures"]) == (True, before["since"], 0)
    assert availability == "online"


def payloads(subscriber: Subscriber) -> list[str]:
    return [publication["payload"] for publication in subscriber.publications()]


SECRETS = ("right-s3cret", "wrong-s3cret", "key-s3cret")


def test_status_and_log_say_in_words_what_is_wrong_and_no_secret_shows(tmp_path: Path) -> None:
    passwords, acl = write_passwords(tmp_path, bridge="right-s3cret"), tmp_path / "acl"
    acl.write_text("user bridge\ntopic write docker/acme/container/#\ntopic write docker/bridge/#\n")
    trusted, others = Certificates(tmp_path / "ca"), Certificates(tmp_path / "other", "another CA")
    ours, our_key = trusted.issue("bridge", password="key-s3cret")
    tls = {"ca_file": str(trusted.authority), "cert_file": str(ours), "key_file": str(our_key), "key_password": "key-s3cret"}
    with (
        Mosquitto(made(tmp_path / "plain"), listener=f"password_file {passwords}\nacl_file {acl}") as plain,
        Mosquitto(made(tmp_path / "strange"), listener=tls_listener(*others.issue("server"))) as strange,
        Mosquitto(made(tmp_path / "late"), listener=tls_listener(*trusted.issue("server", days=0))) as late,
        plain.listening("docker/acme/#") as subscriber,
        Simulator(SimulatorSettings(port=0, rate=0, count=300, seed=5, record=True, wait_for_clients=1)) as simulator,
    ):
        login = {"type": "mqtt", "url": plain.url, "username": "bridge", "password": "right-s3cret"}
        sinks = {
            "password": {**login, "password": "wrong-s3cret"},
            "authority": {"type": "mqtt", "url": strange.url.replace("mqtt:", "mqtts:"), **tls},
            "expired": {"type": "mqtt", "url": late.url.replace("mqtt:", "mqtts:"), **tls},
            "denied": {**login, "retry": {"max_attempts": 2, "first_delay": "100ms"}},
        }
        expected = {
            "password": ("unauthorized", "the broker refused the connection: not authorized"),
            "authority": ("tls", "the certificate is not accepted: "),
            "expired": ("tls", "the certificate is not accepted: certificate has expired"),
        }
        with Bridge(tmp_path / "bridge", {"streams": {"acme": {"url": simulator.url}}, "sinks": sinks}) as bridge:
            until(lambda: value(bridge.metrics(), "events_accepted_total") == 300, "everything is received")
            until(lambda: bridge.status()["sinks"]["denied"]["pending"] == 0, "what is not denied arrives")
            until(lambda: all(bridge.status()["sinks"][name]["reason"] for name in expected), "the others say why not")
            status, metrics = bridge.status()["sinks"], bridge.metrics()
            said = bridge.get("/metrics")[1] + bridge.get("/status")[1]
            assert bridge.stop() == 0
        arrived = [json.loads(payload) for payload in subscriber.payloads()]

    log = bridge.log.read_text()
    for name, (reason, words) in expected.items():
        assert status[name]["reason"] == reason
        assert words in status[name]["error"]
        assert words in log
    assert {event["type"] for event in arrived} == {"container"}
    assert status["denied"]["up"]
    assert value(metrics, "sink_events_delivered_total", sink="denied") == len(arrived) > 0
    assert value(metrics, "sink_events_dead_total", sink="denied") == 300 - len(arrived) > 0
    assert re.search(r"the broker refused it on the topic docker/acme/\w+/\w+: not authorized", log)
    assert_books_balance(metrics)
    assert not [secret for secret in SECRETS if secret in log + said]


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def tls_listener(certificate: Path, key: Path) -> str:
    return f"certfile {certificate}\nkeyfile {key}\nallow_anonymous true"


def acknowledged(folder: Path) -> int:
    """Count the events that the broker has acknowledged, by its own log."""
    log = (folder / "mosquitto.log").read_text()
    availability = re.findall(r"Received PUBLISH from event-bridge-.*'docker/bridge/home'", log)
    return log.count("Sending PUBACK to event-bridge-") - len(availability)


def watch_the_other(receiver: Receiver, seconds: float) -> None:
    """The other sink gets events all the time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = receiver.count()
        if before == COUNT:
            time.sleep(0.1)
            continue
        until(lambda before=before: receiver.count() > before, "the other sink goes on", 2)  # type: ignore[misc]


def see_that_we_are_refused(bridge: Bridge) -> None:
    """Wait until the status says what is wrong."""

    def told() -> bool:
        status = bridge.status()["sinks"]["home"]
        return status["reason"] == "unauthorized" and "the broker refused the connection: not authorized" in status["error"]

    until(told, "the status says that we are refused", 60)
