"""The MQTT sink against a real broker, read by a subscriber that is not ours."""

import os
import re
import socket
import threading
import time
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
from sinks.mqtt.settings import MqttSettings
from sinks.mqtt.sink import MqttSink
from tests.contract.harness import make_entries, make_entry
from tests.support.failures import outcomes
from tests.support.processes import open_descriptors
from tests.support.servers import mosquitto
from tests.support.servers.mosquitto import Broker, Certificates, Mosquitto, Subscriber, user_properties, write_passwords
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(mosquitto.any_available() is not None, reason=str(mosquitto.any_available()))
OF_OUR_OWN = pytest.mark.skipif(
    mosquitto.available() is not None, reason=f"must own the broker, to stop it or to set it up; {mosquitto.available()}"
)

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


@pytest.fixture
def anybody(tmp_path: Path) -> Iterator[Broker]:
    with mosquitto.anybody(tmp_path) as broker:
        yield broker


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
            until(partial(arrived, len(entries) - len(left)))
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


def test_a_subscriber_reads_payload_properties_and_retain(anybody: Broker, make_sink: MakeSink) -> None:
    entry = make_entry(1, state="Läuft\x00 🐳", action="up\x00date")
    topics = f"{anybody.prefix}/acme/#"
    with anybody.listening(topics) as subscriber:
        sink = make_sink(**anybody.settings, retain=True, expiry=3600)
        sink.open()
        assert sink.deliver([entry]) == []
        assert subscriber.payloads() == [entry.json]
        (publication,) = subscriber.publications()
        retained = anybody.retained(topics)

    fields = entry.fields
    assert publication["topic"] == f"{anybody.prefix}/acme/container/up_date"
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
    assert [(topic, found["retain"]) for topic, found in retained.items()] == [(publication["topic"], 1)]


@pytest.mark.parametrize(
    "settings", [{}, {"qos": 0}, {"qos": 2}, {"protocol": "3.1.1"}, {"protocol": "3.1.1", "qos": 2}], ids=str
)
def test_every_quality_of_service_and_version_delivers(anybody: Broker, make_sink: MakeSink, settings: dict[str, Any]) -> None:
    entries = make_entries(3000, resources=500)
    with anybody.listening(f"{anybody.prefix}/acme/#") as subscriber:
        failures, unavailable = deliver_all(make_sink(**anybody.settings, **settings), entries)
        payloads = subscriber.payloads()

    assert (failures, unavailable) == ([], [])
    assert len(payloads) == 3000
    assert_all_there_in_order(payloads, entries)


def test_the_last_state_of_each_resource_is_retained(anybody: Broker, make_sink: MakeSink) -> None:
    sink = make_sink(**anybody.settings, state_topic=anybody.prefix + "/state/{type}/{resource_uuid}")
    sink.open()
    states = [("a", "Starting"), ("b", "Starting"), ("a", "Running"), ("b", "Terminated")]
    entries = [make_entry(seq, name, state=state) for seq, (name, state) in enumerate(states, 1)]
    assert sink.deliver(entries) == []
    retained = anybody.retained(f"{anybody.prefix}/state/#")

    assert [publication["payload"].encode() for publication in retained.values()] == [entries[2].json]


def test_a_resource_that_is_gone_is_forgotten_by_an_empty_retained_publication(anybody: Broker, make_sink: MakeSink) -> None:
    topics = f"{anybody.prefix}/state/#"
    with anybody.listening(topics, options=["--retain-as-published"]) as subscriber:
        sink = make_sink(**anybody.settings, state_topic=anybody.prefix + "/state/{resource_uuid}", expiry=60)
        sink.open()
        running, gone = make_entry(1, state="Running"), make_entry(2, state="Terminated")
        assert sink.deliver([running, gone]) == []
        subscriber.sync()
        seen = subscriber.publications()
        retained = anybody.retained(topics)

    topic = f"{anybody.prefix}/state/{running.fields.resource_uri.split('/')[-2]}"
    assert [(found["topic"], found["payload"], found["retain"]) for found in seen] == [
        (topic, running.json.decode(), 1),
        (topic, None, 1),
    ]
    assert user_properties(seen[1])["state"] == "Terminated"
    assert ["message-expiry-interval" in found["properties"] for found in seen] == [False, False]
    assert retained == {}


@OF_OUR_OWN
def test_what_the_broker_can_not_do_is_told_with_what_to_set(tmp_path: Path, make_sink: MakeSink) -> None:
    without_retain = {"availability_topic": None}
    with Mosquitto(tmp_path, "retain_available false") as broker:
        with pytest.raises(Unavailable, match="retain not supported; set `retain: false`, `availability_topic: null`") as error:
            make_sink(broker.url).open()
        assert error.value.reason == "rejected"
        with pytest.raises(Unavailable, match="can't retain; set `retain: false`"):
            make_sink(broker.url, state_topic="state/{resource_uuid}", **without_retain).open()
        assert deliver_all(make_sink(broker.url, **without_retain), make_entries(10)) == ([], [])
    for most, qos in ((0, 1), (0, 2), (1, 2)):
        with Mosquitto(tmp_path, listener=f"allow_anonymous true\nmax_qos {most}") as broker:
            with pytest.raises(
                Unavailable, match=r"QoS not supported; set a smaller `qos`|can't do QoS .; set `qos: .`"
            ) as error:
                make_sink(broker.url, qos=qos).open()
            assert error.value.reason == "rejected"
            assert deliver_all(make_sink(broker.url, qos=most), make_entries(10)) == ([], [])


def test_availability_is_retained_and_the_will_tells_when_we_die(anybody: Broker, make_sink: MakeSink) -> None:
    topic = f"{anybody.prefix}/home"
    with anybody.listening(topic) as subscriber:
        sink = make_sink(**anybody.settings)
        sink.open()
        assert subscriber.payloads() == [b"online"]
        sink.close()
        assert subscriber.payloads() == [b"online", b"offline"]
        sink.open()
        assert subscriber.payloads()[2:] == [b"online"]
        assert [found["payload"] for found in anybody.retained(topic).values()] == ["online"]
        abort_connections_to(int(anybody.url.rpartition(":")[2]))
        until(lambda: subscriber.payloads()[3:] == [b"offline"])
        assert [found["payload"] for found in anybody.retained(topic).values()] == ["offline"]


@OF_OUR_OWN
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


@OF_OUR_OWN
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

    assert Counter(outcomes(failures).values()) == {("retry", "unauthorized"): 1, ("held", "held"): 24}
    assert "docker/acme/service/update: not authorized" in failures[0].error
    assert_all_there_in_order(payloads, [entry for entry in entries if entry.seq % 4])


@OF_OUR_OWN
def test_with_mqtt_3_1_1_nobody_is_told_that_a_topic_is_denied(tmp_path: Path, make_sink: MakeSink) -> None:
    """A limit of that version, which is why 5 is the default: the broker acknowledges what it throws away."""
    acl = tmp_path / "acl"
    acl.write_text("topic write docker/bridge/#\n")
    with (
        Mosquitto(tmp_path, listener=f"allow_anonymous true\nacl_file {acl}") as broker,
        broker.listening("docker/acme/#") as subscriber,
    ):
        sink = make_sink(broker.url, protocol="3.1.1")
        sink.open()
        assert sink.deliver(make_entries(10)) == []
        assert subscriber.payloads() == []


@OF_OUR_OWN
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


@OF_OUR_OWN
@pytest.mark.parametrize("limit", ["message_size_limit 1000", "max_packet_size 1000"])
def test_an_event_that_is_too_large_is_rejected_alone(tmp_path: Path, make_sink: MakeSink, limit: str) -> None:
    entries = [make_entry(seq, environment="x" * 2000 if seq == 7 else "") for seq in range(1, 20)]
    with Mosquitto(tmp_path, limit) as broker, broker.listening("docker/acme/#") as subscriber:
        failures, unavailable = deliver_all(make_sink(broker.url), entries)
        payloads = subscriber.payloads()

    assert outcomes(failures) == {7: ("rejected", "too_large")}
    assert unavailable == []
    assert_all_there_in_order(payloads, [entry for entry in entries if entry.seq != 7])


@OF_OUR_OWN
def test_an_old_broker_that_hangs_up_on_a_large_event_gets_all_others(tmp_path: Path, make_sink: MakeSink) -> None:
    entries = [make_entry(seq, f"web-{seq}", environment="x" * 2000 if seq == 7 else "") for seq in range(1, 20)]
    with Mosquitto(tmp_path, "max_packet_size 1000") as broker, broker.listening("docker/acme/#") as subscriber:
        failures, _ = deliver_all(make_sink(broker.url, protocol="3.1.1"), entries)
        payloads = subscriber.payloads()

    assert outcomes(failures) == {7: ("retry", "server_error")}
    assert_all_there_in_order(payloads, [entry for entry in entries if entry.seq != 7])


@OF_OUR_OWN
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


@OF_OUR_OWN
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


@OF_OUR_OWN
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


def test_two_with_the_same_client_id_are_told(anybody: Broker, make_sink: MakeSink) -> None:
    sinks = [make_sink(**anybody.settings), make_sink(**anybody.settings)]
    words = ""
    for turn in range(10):
        sinks[turn % 2].open()
        with suppress(Unavailable):
            sinks[turn % 2].deliver(make_entries(1))
        try:
            sinks[1 - turn % 2].check_connection()
        except Unavailable as error:
            words = str(error)

    assert re.search("another client with (the|this) `client_id`", words)


@OF_OUR_OWN
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


@OF_OUR_OWN
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
            until(lambda: len(subscriber.publications()) >= 4000 * (outages + 1))
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
        if getattr(connection.raddr, "port", None) == port:
            with socket.socket(fileno=os.dup(connection.fd)) as same:
                same.shutdown(socket.SHUT_RDWR)


def reached(subscriber: Subscriber, count: int) -> bool:
    return len(subscriber.publications()) >= count


@OF_OUR_OWN
def test_a_broker_of_3_1_1_that_closes_at_large_packets_takes_all_others(tmp_path: Path, make_sink: MakeSink) -> None:
    entries = [make_entry(seq, f"web-{seq}", environment="x" * (3000 if seq % 10 == 9 else 0)) for seq in range(300)]
    with Mosquitto(tmp_path, "max_packet_size 2000") as broker, broker.listening("docker/acme/#") as subscriber:
        sink = make_sink(broker.url, protocol="3.1.1")

        failures, unavailable = deliver_all(sink, entries)
        again = sink.deliver(entries[-20:])
        arrived = set(subscriber.payloads())

    assert arrived == {entry.json for entry in entries if entry.seq % 10 != 9}
    assert outcomes(failures) == dict.fromkeys(range(9, 300, 10), ("retry", "server_error"))
    assert outcomes(again) == dict.fromkeys((289, 299), ("retry", "server_error"))
    assert "the connection breaks over events of" in again[0].error
    assert len(unavailable) <= 1


@OF_OUR_OWN
def test_a_broker_of_3_1_1_without_retained_messages_gets_a_hint(tmp_path: Path, make_sink: MakeSink) -> None:
    with Mosquitto(tmp_path, "retain_available false") as broker:
        with pytest.raises(Unavailable, match="perhaps the broker does not take our will, which is retained"):
            make_sink(broker.url, protocol="3.1.1").open()

        sink = make_sink(broker.url, protocol="3.1.1", availability_topic=None)
        sink.open()

        assert sink.deliver(make_entries(5)) == []
