"""The MQTT sink against a real broker, read by a subscriber that is not ours."""

import os
import re
import socket
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from bridge.sink import Entry, Failure, Unavailable
from sinks.mqtt import MqttSink
from sinks.mqtt_settings import MqttSettings
from tests import mosquitto
from tests.contract.harness import make_entries, make_entry
from tests.contract.receiver import wait_until
from tests.mosquitto import Certificates, Mosquitto, Subscriber, user_properties, write_passwords

pytestmark = pytest.mark.skipif(mosquitto.available() is not None, reason=str(mosquitto.available()))

MakeSink = Callable[..., MqttSink]


@pytest.fixture
def make_sink() -> Iterator[MakeSink]:
    sinks: list[MqttSink] = []

    def make(url: str, **settings: Any) -> MqttSink:
        sinks.append(MqttSink("home", MqttSettings(**{"url": url, "timeout": 5.0, **settings})))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close()


def fates(failures: Sequence[Failure]) -> dict[int, tuple[str, str]]:
    return {failure.seq: (failure.fate, failure.reason) for failure in failures}


def deliver_all(
    sink: MqttSink,
    entries: Sequence[Entry],
    repair: Callable[[], None] = lambda: None,
    arrived: Callable[[int], bool] = lambda _: True,
) -> tuple[list[Failure], list[Unavailable]]:
    """Offer entries in batches until the sink has taken all of them, as the forwarder does it.

    What a broker that is killed has acknowledged, but not passed on to the subscriber, is lost by the broker; so the next batch
    waits until the ones before have `arrived`.
    """
    left = list(entries)
    failures: list[Failure] = []
    unavailable: list[Unavailable] = []
    deadline, is_open = time.monotonic() + 30, False
    while left:
        assert time.monotonic() < deadline, f"not delivered in time: {unavailable[-1:]}"
        try:
            if not is_open:
                sink.open()
                is_open = True
            failures += sink.deliver(left[:200])
            left = left[200:]
            wait_until(partial(arrived, len(entries) - len(left)))
        except Unavailable as error:
            unavailable.append(error)
            left = [entry for entry in left if entry.seq not in error.delivered]
            sink.close()
            is_open = False
            repair()
    return failures, unavailable


def assert_all_there_in_order(payloads: Sequence[bytes], entries: Sequence[Entry]) -> None:
    """Every event is there at least once, and the first arrivals are in order per resource."""
    places = {entry.json: entry.seq for entry in entries}
    assert set(payloads) == set(places)
    arrived = defaultdict(list)
    for payload in dict.fromkeys(payloads):
        arrived[Entry(0, 0.0, payload).fields.resource_uri].append(places[payload])
    assert all(seqs == sorted(seqs) for seqs in arrived.values())


def test_a_subscriber_reads_payload_properties_and_retain(tmp_path: Path, make_sink: MakeSink) -> None:
    entry = make_entry(1, state="Läuft\x00 🐳", action="up\x00date")
    with Mosquitto(tmp_path) as broker, broker.listening("docker/acme/#") as subscriber:
        sink = make_sink(broker.url, retain=True, expiry=3600)
        sink.open()
        assert sink.deliver([entry]) == []
        assert subscriber.payloads() == [entry.json]
        (publication,) = subscriber.publications()
        retained = broker.retained("docker/acme/#")

    fields = entry.fields
    assert publication["topic"] == "docker/acme/container/up_date"
    assert publication["qos"] == 1
    assert user_properties(publication) == {
        "uuid": fields.uuid,
        "namespace": "acme",
        "type": "container",
        "action": "up_date",
        "state": "Läuft_ 🐳",
    }
    assert publication["properties"]["content-type"] == "application/json"
    assert publication["properties"]["payload-format-indicator"] == 1
    assert 3590 <= publication["properties"]["message-expiry-interval"] <= 3600
    assert list(retained) == ["docker/acme/container/up_date"]


@pytest.mark.skipif(mosquitto.given() is None, reason="EVENT_BRIDGE_TEST_MQTT does not name a broker")
@pytest.mark.parametrize("settings", [{"qos": 1}, {"qos": 2}, {"protocol": "3.1.1"}], ids=str)
def test_a_broker_of_somebody_else_gets_everything(make_sink: MakeSink, settings: dict[str, Any]) -> None:
    broker = mosquitto.given()
    assert broker is not None
    prefix = f"event-bridge-test/{uuid.uuid4()}"
    entries = make_entries(1000, resources=200)
    with broker.listening(f"{prefix}/#") as subscriber:
        url = f"mqtt://{broker.host}:{broker.plain}"
        sink = make_sink(url, topic=f"{prefix}/{{type}}", availability_topic=None, **settings)
        failures, unavailable = deliver_all(sink, entries)
        payloads = subscriber.payloads()

    assert (failures, unavailable) == ([], [])
    assert_all_there_in_order(payloads, entries)


@pytest.mark.parametrize("settings", [{"qos": 0}, {"qos": 2}, {"protocol": "3.1.1"}, {"protocol": "3.1.1", "qos": 2}], ids=str)
def test_every_quality_of_service_and_version_delivers(tmp_path: Path, make_sink: MakeSink, settings: dict[str, Any]) -> None:
    entries = make_entries(3000, resources=500)
    with Mosquitto(tmp_path) as broker, broker.listening("docker/acme/#") as subscriber:
        failures, unavailable = deliver_all(make_sink(broker.url, **settings), entries)
        payloads = subscriber.payloads()

    assert (failures, unavailable) == ([], [])
    assert len(payloads) == 3000
    assert_all_there_in_order(payloads, entries)


def test_the_last_state_of_each_resource_is_retained(tmp_path: Path, make_sink: MakeSink) -> None:
    with Mosquitto(tmp_path) as broker:
        sink = make_sink(broker.url, state_topic="docker/{namespace}/state/{type}/{id}")
        sink.open()
        states = [("a", "Starting"), ("b", "Starting"), ("a", "Running"), ("b", "Terminated")]
        entries = [make_entry(seq, name, state=state) for seq, (name, state) in enumerate(states, 1)]
        assert sink.deliver(entries) == []
        retained = broker.retained("docker/acme/state/#")

    assert [publication["payload"].encode() for publication in retained.values()] == [entries[2].json]


def test_availability_is_retained_and_the_will_tells_when_we_die(tmp_path: Path, make_sink: MakeSink) -> None:
    def available() -> str:
        return str(broker.retained("docker/bridge/home")["docker/bridge/home"]["payload"])

    with Mosquitto(tmp_path) as broker:
        sink = make_sink(broker.url)
        sink.open()
        assert available() == "online"
        sink.close()
        assert available() == "offline"
        sink.open()
        assert available() == "online"
        abort_connections_to(broker.port)
        wait_until(lambda: available() == "offline")


def test_a_wrong_password_is_told_and_the_right_one_is_not(tmp_path: Path, make_sink: MakeSink) -> None:
    passwords = write_passwords(tmp_path, bridge="right-s3cret")
    with Mosquitto(tmp_path, listener=f"password_file {passwords}") as broker:
        with pytest.raises(Unavailable, match=r"not authorized|bad user name or password") as unavailable:
            make_sink(broker.url, username="bridge", password="wrong-s3cret").open()
        assert unavailable.value.reason == "unauthorized"
        assert "s3cret" not in str(unavailable.value)
        with pytest.raises(Unavailable, match=r"not authorized|bad user name or password"):
            make_sink(broker.url, username="bridge", password="wrong-s3cret", protocol="3.1.1").open()

        sink = make_sink(broker.url, username="bridge", password="right-s3cret")
        sink.open()
        assert sink.deliver(make_entries(10)) == []


@pytest.mark.parametrize("qos", [1, 2])
def test_a_denied_topic_leaves_the_other_topic_alone(tmp_path: Path, make_sink: MakeSink, qos: int) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic write docker/acme/container/#\ntopic write docker/bridge/#\n")
    entries = [make_entry(seq, f"web-{seq % 4}", type="service" if seq % 4 == 0 else "container") for seq in range(1, 101)]
    with (
        Mosquitto(tmp_path, listener=f"allow_anonymous true\nacl_file {acl}") as broker,
        broker.listening("docker/acme/#") as subscriber,
    ):
        sink = make_sink(broker.url, qos=qos)
        sink.open()
        failures = sink.deliver(entries)
        payloads = subscriber.payloads()

    assert Counter(fates(failures).values()) == {("retry", "unauthorized"): 1, ("held", "held"): 24}
    assert "docker/acme/service/update: not authorized" in failures[0].error
    assert_all_there_in_order(payloads, [entry for entry in entries if entry.seq % 4])


def test_a_denied_availability_topic_is_logged_and_stops_nothing(tmp_path: Path, make_sink: MakeSink) -> None:
    acl = tmp_path / "acl"
    acl.write_text("topic write docker/acme/#\n")
    with Mosquitto(tmp_path, listener=f"allow_anonymous true\nacl_file {acl}") as broker:
        sink = make_sink(broker.url)
        with capture_logs() as logs:
            sink.open()
            sink.open()
        assert sink.deliver(make_entries(10)) == []

    assert [(line["event"], line["topic"], line["error"]) for line in logs] == [
        ("availability can't be published", "docker/bridge/home", "not authorized")
    ]


@pytest.mark.parametrize("limit", ["message_size_limit 1000", "max_packet_size 1000"])
def test_an_event_that_is_too_large_is_rejected_alone(tmp_path: Path, make_sink: MakeSink, limit: str) -> None:
    entries = [make_entry(seq, environment="x" * 2000 if seq == 7 else "") for seq in range(1, 20)]
    with Mosquitto(tmp_path, limit) as broker, broker.listening("docker/acme/#") as subscriber:
        failures, unavailable = deliver_all(make_sink(broker.url), entries)
        payloads = subscriber.payloads()

    assert fates(failures) == {7: ("rejected", "too_large")}
    assert unavailable == []
    assert_all_there_in_order(payloads, [entry for entry in entries if entry.seq != 7])


def test_an_old_broker_that_hangs_up_on_a_large_event_gets_all_others(tmp_path: Path, make_sink: MakeSink) -> None:
    entries = [make_entry(seq, f"web-{seq}", environment="x" * 2000 if seq == 7 else "") for seq in range(1, 20)]
    with Mosquitto(tmp_path, "max_packet_size 1000") as broker, broker.listening("docker/acme/#") as subscriber:
        failures, _ = deliver_all(make_sink(broker.url, protocol="3.1.1"), entries)
        payloads = subscriber.payloads()

    assert fates(failures) == {7: ("retry", "server_error")}
    assert_all_there_in_order(payloads, [entry for entry in entries if entry.seq != 7])


@pytest.mark.parametrize("protocol", ["mqtts", "wss"])
def test_both_sides_prove_who_they_are_over_tls(tmp_path: Path, make_sink: MakeSink, protocol: str) -> None:
    certificates = Certificates(tmp_path / "ca")
    certificate, key = certificates.issue("server")
    ours, our_key = certificates.issue("bridge", password="key-s3cret")
    listener = [f"cafile {certificates.authority}", f"certfile {certificate}", f"keyfile {key}", "allow_anonymous true"]
    listener += ["require_certificate true"] + (["protocol websockets"] if protocol == "wss" else [])
    files = {"ca_file": str(certificates.authority), "cert_file": str(ours), "key_file": str(our_key)}
    entries = make_entries(200)
    with Mosquitto(tmp_path, listener="\n".join(listener)) as broker, broker.listening("docker/acme/#") as subscriber:
        url = f"{protocol}://localhost:{broker.port}"
        failures, unavailable = deliver_all(make_sink(url, **files, key_password="key-s3cret"), entries)
        payloads = subscriber.payloads()
        with pytest.raises(Unavailable, match=r"cert_file .*not usable with its key") as wrong:
            make_sink(url, **files, key_password="wrong").open()
        with pytest.raises(Unavailable) as missing:
            make_sink(url, ca_file=files["ca_file"]).open()

    assert (failures, unavailable) == ([], [])
    assert_all_there_in_order(payloads, entries)
    assert wrong.value.reason == "tls"
    assert re.search("CERTIFICATE_REQUIRED|wants a certificate of ours", str(missing.value))


def test_a_certificate_that_can_not_be_trusted_is_told(tmp_path: Path, make_sink: MakeSink) -> None:
    certificates, others = Certificates(tmp_path / "ca"), Certificates(tmp_path / "other", "another CA")
    good, expired = certificates.issue("server"), certificates.issue("expired", days=0)
    for (certificate, key), trusted, words in (
        (good, others, "self.signed certificate|unable to get local issuer|certificate signature failure"),
        (expired, certificates, "certificate has expired"),
    ):
        folder = tmp_path / words[:4]
        folder.mkdir()
        with Mosquitto(folder, listener=f"certfile {certificate}\nkeyfile {key}\nallow_anonymous true") as broker:
            sink = make_sink(f"mqtts://localhost:{broker.port}", ca_file=str(trusted.authority))
            with pytest.raises(Unavailable, match=words) as unavailable:
                sink.open()
            assert unavailable.value.reason == "tls"


def test_events_go_through_a_websocket(tmp_path: Path, make_sink: MakeSink) -> None:
    entries = [*make_entries(500), make_entry(501, environment="x" * 300_000)]
    with (
        Mosquitto(tmp_path, listener="protocol websockets\nallow_anonymous true") as broker,
        broker.listening("docker/acme/#") as subscriber,
    ):
        failures, unavailable = deliver_all(make_sink(f"ws://127.0.0.1:{broker.port}/mqtt"), entries)
        payloads = subscriber.payloads()

    assert (failures, unavailable) == ([], [])
    assert_all_there_in_order(payloads, entries)


def test_two_with_the_same_client_id_are_told(tmp_path: Path, make_sink: MakeSink) -> None:
    with Mosquitto(tmp_path) as broker:
        sinks = [make_sink(broker.url, client_id="same"), make_sink(broker.url, client_id="same")]
        words = ""
        for turn in range(10):
            sinks[turn % 2].open()
            with suppress(Unavailable):
                sinks[turn % 2].deliver(make_entries(1))
            try:
                sinks[1 - turn % 2].deliver([])
            except Unavailable as error:
                words = str(error)

    assert re.search("another client with (the|this) `client_id`", words)


def test_nothing_is_on_the_wire_or_in_a_file_descriptor_after_many_failures(tmp_path: Path, make_sink: MakeSink) -> None:
    with Mosquitto(tmp_path) as broker:
        sink = make_sink(broker.url)
        sink.open()
        broker.kill()
        before = open_descriptors()
        for _ in range(10):
            with suppress(Unavailable):
                sink.deliver(make_entries(1))
            sink.close()
            with pytest.raises(Unavailable, match=re.escape(f"127.0.0.1:{broker.port}: Connection refused")):
                sink.open()
        assert open_descriptors() <= before


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("outage", ["kill", "hang"])
def test_a_broker_that_goes_away_in_the_middle_gets_everything(
    tmp_path: Path, make_sink: MakeSink, outage: str, qos: int
) -> None:
    entries = make_entries(20_000, resources=200)
    with Mosquitto(tmp_path) as broker, broker.listening("docker/acme/#", qos=0) as subscriber:
        sink = make_sink(broker.url, timeout=0.5, qos=qos)
        outages = 0

        def cause_trouble() -> None:
            wait_until(lambda: len(subscriber.publications()) >= 4000 * (outages + 1), 30)
            if outage == "kill":
                broker.kill()
            else:
                broker.hang()

        troubles = [threading.Thread(target=cause_trouble)]

        def repair() -> None:
            nonlocal outages
            troubles[-1].join(30)
            outages += 1
            if outage == "kill":
                broker.start()
                subscriber.sync()
            else:
                broker.go_on()
            if outages < 3:
                troubles.append(threading.Thread(target=cause_trouble))
                troubles[-1].start()

        troubles[0].start()
        failures, unavailable = deliver_all(sink, entries, repair, lambda count: reached(subscriber, count))
        for trouble in troubles:
            trouble.join(30)
        payloads = subscriber.payloads()

    assert failures == []
    assert outages == 3
    assert {error.reason for error in unavailable} == {"unreachable" if outage == "kill" else "timeout"}
    assert_all_there_in_order(payloads, entries)


def abort_connections_to(port: int) -> None:
    """End our connections as the end of the process would."""
    for connection in psutil.Process().net_connections("tcp"):
        if connection.raddr == ("127.0.0.1", port):
            with socket.socket(fileno=os.dup(connection.fd)) as same:
                same.shutdown(socket.SHUT_RDWR)


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def reached(subscriber: Subscriber, count: int) -> bool:
    return len(subscriber.publications()) >= count
