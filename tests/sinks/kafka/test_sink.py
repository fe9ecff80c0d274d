"""The Kafka sink against a real broker: what it writes, and what it says when the broker refuses."""

import base64
import json
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from kafka.admin import KafkaAdminClient  # type: ignore[import-untyped]

from bridge.sink import Entry, Failure, Unavailable
from sinks.kafka.client import Client
from sinks.kafka.settings import KafkaSettings
from sinks.kafka.sink import KafkaSink
from tests.contract.harness import make_entries, make_entry
from tests.support.servers import kafka_broker
from tests.support.servers.kafka_broker import USERS, Broker, create_topic, has_topic, read_topic
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(kafka_broker.any_available() is not None, reason=str(kafka_broker.any_available()))


@pytest.fixture
def address() -> str:
    """Any broker."""
    return kafka_broker.any_address()


@pytest.fixture
def broker() -> Broker:
    """Our own broker."""
    if reason := kafka_broker.available():
        pytest.skip(reason)
    return kafka_broker.shared()


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic where the test is: of our own broker if it asks for that, else of any."""
    name = f"sink-{uuid.uuid4().hex[:8]}"
    create_topic(where(request), name)
    return name


def where(request: pytest.FixtureRequest) -> str:
    if "broker" in request.fixturenames:
        broker: Broker = request.getfixturevalue("broker")
        return broker.address()
    return kafka_broker.any_address()


@pytest.fixture
def sinks() -> Iterator[list[KafkaSink]]:
    opened: list[KafkaSink] = []
    yield opened
    for sink in opened:
        sink.close()


@pytest.fixture
def make(request: pytest.FixtureRequest, topic: str, sinks: list[KafkaSink]) -> Any:
    def make(**settings: Any) -> KafkaSink:
        base = {"bootstrap_servers": where(request), "topic": topic, "delivery_timeout": 3, "connect_timeout": 3}
        sink = KafkaSink("kafka", KafkaSettings.model_validate(base | settings))
        sinks.append(sink)
        return sink

    return make


Rounds = list[dict[Any, Any]]


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """What is handed over to the library in each round."""
    handed_over: Rounds = []
    produce = Client.produce

    def produce_and_note(client: Client, batches: Any) -> Any:
        handed_over.append(batches)
        return produce(client, batches)

    monkeypatch.setattr(Client, "produce", produce_and_note)
    return handed_over


def trouble_of(sink: KafkaSink, entries: list[Entry] | None = None) -> Unavailable:
    try:
        sink.open()
        sink.deliver(entries or make_entries(3))
    except Unavailable as trouble:
        return trouble
    raise AssertionError("nothing is wrong")


def unsecured_token(subject: str) -> str:
    parts = ({"alg": "none"}, {"sub": subject, "iat": int(time.time()) - 5, "exp": int(time.time()) + 600})
    return ".".join([base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]) + "."


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")
@pytest.mark.parametrize("compression", ["none", "gzip", "lz4", "snappy", "zstd"])
def test_kcat_reads_key_headers_and_value(make: Any, address: str, topic: str, compression: str) -> None:
    package = {"lz4": "lz4", "snappy": "snappy", "zstd": "zstandard"}.get(compression)
    if package is not None:
        pytest.importorskip(package)
    entries = [make_entry(1, state="Läuft 🐳"), make_entry(2, resource="other")]
    sink = make(compression=compression)
    sink.open()
    assert sink.deliver(entries) == []

    form = json.dumps({"key": "%k", "headers": "%h", "partition": "%p", "time": "%T"}) + "\n%s\n"
    command = ["kcat", "-b", address, "-C", "-t", topic, "-e", "-q", "-f", form]
    lines = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout.splitlines()
    found = {value: json.loads(about) for about, value in zip(lines[::2], lines[1::2], strict=True)}

    assert set(found) == {entry.json for entry in entries}
    for entry in entries:
        event, record = entry.fields, found[entry.json]
        assert record["key"] == event.resource_uri
        expected = f"uuid={event.uuid},namespace=acme,type=container,action=update,content-type=application/json"
        assert record["headers"] == expected
        assert record["time"] == str(int(entry.received * 1000))


def test_topic_and_key_are_made_of_the_event(make: Any, address: str) -> None:
    prefix = uuid.uuid4().hex[:8]
    sink = make(topic=prefix + ".{type}.{action}", key="{namespace}", allow_auto_create_topics=True)
    sink.open()

    assert sink.deliver([make_entry(1), make_entry(2, action="create"), make_entry(3)]) == []

    assert [key for key, _ in read_topic(address, f"{prefix}.container.update")] == [b"acme", b"acme"]
    assert len(read_topic(address, f"{prefix}.container.create")) == 1


def test_without_a_key_a_delivery_stays_together(make: Any, address: str, topic: str) -> None:
    sink = make(key="")
    sink.open()

    entries = make_entries(30)
    assert sink.deliver(entries) == []

    # In one partition of three, or they could not be in this order.
    assert read_topic(address, topic) == [(None, entry.json) for entry in entries]


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_it_logs_in_with_a_password(make: Any, broker: Broker, topic: str, mechanism: str) -> None:
    login = {"sasl": mechanism, "username": "admin", "password": USERS["admin"]}
    sink = make(bootstrap_servers=broker.address("SASL"), **login)
    sink.open()

    assert sink.deliver(make_entries(3)) == []
    assert len(read_topic(broker.address(), topic)) == 3


def test_it_logs_in_with_a_token(make: Any, broker: Broker) -> None:
    sink = make(bootstrap_servers=broker.address("SASL"), sasl="OAUTHBEARER", token=unsecured_token("admin"))
    sink.open()

    assert sink.deliver(make_entries(3)) == []


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_is_named_and_not_shown(make: Any, broker: Broker, mechanism: str) -> None:
    login = {"sasl": mechanism, "username": "admin", "password": "wrong-secret"}
    with structlog.testing.capture_logs() as logs:
        trouble = trouble_of(make(bootstrap_servers=broker.address("SASL"), **login))

    assert trouble.reason == "unauthorized"
    assert str(trouble) == f"{broker.address('SASL')}: login refused: user admin with {mechanism} is not accepted"
    assert "wrong-secret" not in repr(trouble.__cause__) + str(logs)


def test_a_wrong_token_is_named_and_not_shown(make: Any, broker: Broker) -> None:
    trouble = trouble_of(make(bootstrap_servers=broker.address("SASL"), sasl="OAUTHBEARER", token="wrong.secret.token"))

    assert trouble.reason == "unauthorized"
    assert str(trouble).endswith("login refused: our token with OAUTHBEARER is not accepted")


def test_a_login_that_is_missing_or_not_expected_is_named(make: Any, broker: Broker) -> None:
    assert "does it expect TLS or a login?" in str(trouble_of(make(bootstrap_servers=broker.address("SASL"))))
    trouble = trouble_of(make(sasl="PLAIN", username="admin", password=USERS["admin"]))
    assert "the broker expects no login at this port" in str(trouble)


def test_tls_with_a_private_authority_works_and_an_unknown_one_is_named(make: Any, broker: Broker, topic: str) -> None:
    sink = make(bootstrap_servers=broker.address("TLS"), ca_file=str(broker.directory / "localhost.crt"))
    sink.open()
    assert sink.deliver(make_entries(3)) == []
    assert len(read_topic(broker.address(), topic)) == 3

    trouble = trouble_of(make(bootstrap_servers=broker.address("TLS"), tls=True))
    assert trouble.reason == "tls"
    assert str(trouble).endswith("the broker's certificate is not accepted: self-signed certificate")


def test_a_certificate_of_ours_is_shown_and_missed(make: Any, broker: Broker, topic: str) -> None:
    files = {"ca_file": str(broker.directory / "localhost.crt")}
    broker.allow("CN=localhost", topic, "WRITE", "DESCRIBE")

    trouble = trouble_of(make(bootstrap_servers=broker.address("MTLS"), **files))
    assert trouble.reason == "tls"
    assert "the broker does not accept our certificate" in str(trouble)

    files |= {"cert_file": files["ca_file"], "key_file": str(broker.directory / "localhost.key")}
    sink = make(bootstrap_servers=broker.address("MTLS"), **files)
    sink.open()
    assert sink.deliver(make_entries(3)) == []


def test_tls_where_there_is_none_and_none_where_there_is_are_named(make: Any, broker: Broker) -> None:
    assert "does it speak TLS at this port?" in str(trouble_of(make(tls=True)))
    assert "does the broker expect TLS at this port?" in str(trouble_of(make(bootstrap_servers=broker.address("TLS"))))


def test_a_broker_that_is_not_there_is_unreachable(make: Any) -> None:
    trouble = trouble_of(make(bootstrap_servers="localhost:1"))

    assert (trouble.reason, str(trouble)) == ("unreachable", "localhost:1: connection refused")
    assert trouble_of(make(bootstrap_servers="nowhere.invalid")).reason == "unreachable"


def test_one_broker_of_the_list_is_enough(make: Any, address: str) -> None:
    sink = make(bootstrap_servers=["localhost:1", address, "localhost:2"])

    def delivers() -> bool:
        """Try as a forwarder does: the library may ask one of the others first, and not have the time for the right one."""
        try:
            sink.open()
            return list(sink.deliver(make_entries(3))) == []
        except Unavailable:
            sink.close()
            return False

    assert any(delivers() for _ in range(5))


def test_a_frozen_broker_is_a_timeout_when_opening_and_when_delivering(make: Any, broker: Broker) -> None:
    sink = make(delivery_timeout=1, connect_timeout=1)
    sink.open()
    broker.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(Unavailable) as delivering:
            sink.deliver(make_entries(3))
        opening = trouble_of(make(connect_timeout=1))
        assert time.monotonic() - began < 8
    finally:
        broker.thaw()

    assert delivering.value.reason == opening.reason == "timeout"
    assert not delivering.value.delivered


def test_a_missing_topic_is_named_until_it_is_there(make: Any, address: str) -> None:
    name = f"late-{uuid.uuid4().hex[:8]}"
    sink = make(topic=name)

    trouble = trouble_of(sink)
    assert trouble.reason == "not_found"
    assert f"topic {name}: the topic does not exist; create it, or set `allow_auto_create_topics: true`" in str(trouble)

    create_topic(address, name)
    sink.open()
    assert sink.deliver(make_entries(3)) == []


def test_one_missing_topic_of_several_does_not_stop_the_others(make: Any, address: str) -> None:
    prefix = uuid.uuid4().hex[:8]
    create_topic(address, f"{prefix}.update")
    sink = make(topic=prefix + ".{action}")
    sink.open()
    entries = [make_entry(1), make_entry(2, action="create"), make_entry(3), make_entry(4, resource="other")]

    failures = sink.deliver(entries)

    words = f"topic {prefix}.create: the topic does not exist; create it, or set `allow_auto_create_topics: true`"
    assert failures == [Failure.retry(entries[1], "not_found", words), Failure.held(entries[2])]
    assert len(read_topic(address, f"{prefix}.update")) == 2


def test_a_topic_that_we_may_not_write_to_does_not_stop_the_others(make: Any, broker: Broker) -> None:
    prefix = uuid.uuid4().hex[:8]
    for action in ("update", "create", "delete"):
        create_topic(broker.address(), f"{prefix}.{action}")
    broker.allow("bob", f"{prefix}.update", "WRITE", "DESCRIBE")
    broker.allow("bob", f"{prefix}.create", "DESCRIBE")
    login = {"sasl": "PLAIN", "username": "bob", "password": USERS["bob"]}
    sink = make(bootstrap_servers=broker.address("SASL"), topic=prefix + ".{action}", **login)
    sink.open()
    entries = [make_entry(seq, f"r{seq}", action=("update", "create", "delete")[seq % 3]) for seq in range(30)]

    failures = sink.deliver(entries)

    assert {failure.seq for failure in failures} == {entry.seq for entry in entries if entry.seq % 3}
    assert {(failure.outcome, failure.reason) for failure in failures} == {("retry", "unauthorized")}
    assert failures[0].error.endswith("we are not allowed to write to the topic")
    assert len(read_topic(broker.address(), f"{prefix}.update")) == 10


def test_the_only_topic_being_forbidden_is_the_sinks_trouble_and_known_when_opening(
    make: Any, broker: Broker, topic: str
) -> None:
    login = {"sasl": "PLAIN", "username": "alice", "password": USERS["alice"]}
    where = {"bootstrap_servers": broker.address("SASL")}
    assert trouble_of(make(**where, **login)).reason == "unauthorized"

    broker.allow("alice", topic, "DESCRIBE")
    sink = make(**where, **login)
    for _ in range(2):
        with pytest.raises(Unavailable, match="we are not allowed to write to the topic") as unavailable:
            sink.open()
        assert unavailable.value.reason == "unauthorized"

    broker.allow("alice", topic, "WRITE")
    sink.open()
    assert sink.deliver(make_entries(3)) == []


def test_events_that_are_too_large_are_rejected_one_by_one(make: Any, address: str) -> None:
    name = f"small-{uuid.uuid4().hex[:8]}"
    create_topic(address, name, max_message_bytes="5000")
    sink = make(topic=name)
    large = {17, 18, 120}
    entries = [make_entry(seq, f"r{seq % 5}", more="x" * (6000 if seq in large else 0)) for seq in range(200)]
    sink.open()

    failures = sink.deliver(entries)

    assert {failure.seq for failure in failures} == large
    assert {(failure.outcome, failure.reason) for failure in failures} == {("rejected", "too_large")}
    assert "the record is larger than the topic's `max.message.bytes`" in failures[0].error
    arrived = [json.loads(value)["uuid"] for _, value in read_topic(address, name)]
    assert sorted(arrived) == sorted(entry.fields.uuid for entry in entries if entry.seq not in large)


def test_records_that_the_topic_refuses_are_rejected_one_by_one(make: Any, address: str) -> None:
    name = f"compact-{uuid.uuid4().hex[:8]}"
    create_topic(address, name, cleanup_policy="compact")
    sink = make(topic=name, key="")
    sink.open()

    failures = sink.deliver(make_entries(20))

    assert [(failure.seq, failure.outcome, failure.reason) for failure in failures] == [
        (seq, "rejected", "rejected") for seq in range(1, 21)
    ]
    assert "Compacted topic cannot accept message without key" in failures[0].error


def test_one_record_with_an_impossible_time_waits_and_the_others_arrive(make: Any, address: str, topic: str) -> None:
    entries = make_entries(50)
    for entry in entries:
        entry.received = time.time()
    entries[17].received += 30 * 24 * 3600
    sink = make()
    sink.open()

    failures = sink.deliver(entries)

    assert [(failure.seq, failure.outcome) for failure in failures if failure.outcome != "held"] == [(18, "retry")]
    assert "compare the clocks" in failures[0].error
    assert len(read_topic(address, topic)) >= 43


def test_several_records_with_an_impossible_time_wait_and_the_others_arrive_in_order(
    make: Any, address: str, topic: str, rounds: Rounds
) -> None:
    # All in one partition, and thus in one batch.
    sink = make(key="")
    entries = make_entries(200, resources=20)
    for entry in entries:
        entry.received = time.time()
    wrong = {7, 48, 49, 150, 181}
    for entry in entries:
        entry.received += 30 * 24 * 3600 * (entry.seq in wrong)
    sink.open()

    failures = sink.deliver(entries)

    waiting = {seq % 20: seq for seq in sorted(wrong, reverse=True)}
    expected = {entry.seq for entry in entries if entry.seq >= waiting.get(entry.seq % 20, 1000)}
    assert {failure.seq for failure in failures} == expected
    assert {failure.seq for failure in failures if failure.outcome == "retry"} == set(waiting.values())
    assert {failure.outcome for failure in failures} == {"retry", "held"}
    assert len(rounds) <= 4 * len(wrong)
    arrived = [value for _, value in read_topic(address, topic)]
    assert len(arrived) == len(entries) - len(expected)
    for resource in range(20):
        mine = [entry.json for entry in entries if entry.seq % 20 == resource and entry.seq not in expected]
        assert [value for value in arrived if value in mine] == mine


def test_records_that_are_too_old_become_dead_letters_at_once_and_the_others_arrive(
    make: Any, address: str, rounds: Rounds
) -> None:
    name = f"young-{uuid.uuid4().hex[:8]}"
    create_topic(address, name, message_timestamp_before_max_ms="3600000")
    # All in one partition, and thus in one batch.
    sink = make(topic=name, key="")
    entries = make_entries(200, resources=20)
    old = {7, 48, 49, 150, 181}
    for entry in entries:
        entry.received = time.time() - 7200 * (entry.seq in old)
    sink.open()

    failures = sink.deliver(entries)

    assert {failure.seq for failure in failures} == old
    assert {(failure.outcome, failure.reason) for failure in failures} == {("rejected", "rejected")}
    assert "is out of range. The timestamp should be within" in failures[0].error
    assert len(rounds) == 2
    assert [value for _, value in read_topic(address, name)] == [entry.json for entry in entries if entry.seq not in old]

    with_time_of_sending = make(topic=name, timestamp="sent")
    with_time_of_sending.open()
    assert with_time_of_sending.deliver([entry for entry in entries if entry.seq in old]) == []


def test_new_partitions_are_used_when_metadata_is_older_than_it_may_be(make: Any, address: str, rounds: Rounds) -> None:
    name = f"grows-{uuid.uuid4().hex[:8]}"
    create_topic(address, name, partitions=1)
    sink = make(topic=name, metadata_max_age=1)
    sink.open()
    with KafkaAdminClient(bootstrap_servers=address) as admin:
        admin.create_partitions({name: 3})

    def uses_new_ones() -> bool:
        assert sink.deliver(make_entries(60, resources=40)) == []
        return len(rounds[-1]) == 3

    until(uses_new_ones, "records go to new partitions")


def test_batches_are_cut_to_the_wanted_size_and_keep_their_order(make: Any, address: str, topic: str) -> None:
    # Of sizes so different that a small one would often fit where the one before it did not.
    entries = [make_entry(seq, f"web-{seq % 3}", more="x" * (seq * 997 % 2500)) for seq in range(1, 501)]
    sink = make(record_batch_bytes=4096)
    sink.open()

    assert sink.deliver(entries) == []

    arrived = [value for _, value in read_topic(address, topic)]
    for resource in {entry.fields.resource_uri for entry in entries}:
        mine = [entry.json for entry in entries if entry.fields.resource_uri == resource]
        assert [value for value in arrived if resource.encode() in value] == mine


def test_a_certificate_file_that_can_not_be_read_is_named(make: Any, tmp_path: Path) -> None:
    trouble = trouble_of(make(ca_file=str(tmp_path / "missing.pem")))

    assert trouble.reason == "tls"
    assert "missing.pem: No such file" in str(trouble)


def test_remarks_say_that_a_topic_is_there_and_too_small(make: Any, address: str, topic: str) -> None:
    name = f"small-{uuid.uuid4().hex[:8]}"
    create_topic(address, name, max_message_bytes="5000")
    good, small = make(record_batch_bytes=1_000_000), make(topic=name)
    good.open()
    small.open()

    assert good.remarks(1_000_000) == [f"topic {topic} exists, and we may write to it"]
    assert small.remarks(1_000_000) == [
        f"topic {name} exists, and we may write to it",
        (
            f"large events will become dead letters: topic {name}'s `max.message.bytes` is 5000, and events may have 1000000 "
            "bytes; set it to 1001024 or more, or `journal.max_event_bytes` to 3976 or less"
        ),
        (
            f"full batches will be refused and sent again in halves: topic {name}'s `max.message.bytes` is 5000; "
            "set `record_batch_bytes` (1000000) to that or less"
        ),
    ]
    assert len(small.remarks(3976)) == 2
    assert read_topic(address, topic) == []


def test_remarks_say_that_a_topic_is_compacted_and_takes_no_old_records(make: Any, address: str) -> None:
    name = f"compact-{uuid.uuid4().hex[:8]}"
    create_topic(address, name, cleanup_policy="compact", message_timestamp_before_max_ms="3600000")
    sink = make(topic=name, key="")
    sink.open()

    _, keys, age = sink.remarks(1_000)

    assert keys == (
        f"every event will become a dead letter: topic {name}'s `cleanup.policy` is `compact`, so records need a key; set `key`"
    )
    assert age.startswith(
        f"events that wait too long will become dead letters: topic {name}'s `message.timestamp.before.max.ms`"
    )


def test_looking_creates_no_topic_and_the_first_event_does(make: Any, address: str) -> None:
    name = f"later-{uuid.uuid4().hex[:8]}"
    sink = make(topic=name, allow_auto_create_topics=True)
    sink.open()

    first, *more = sink.remarks(2_000_000)
    assert "does not exist; with `allow_auto_create_topics` its first event creates it" in first
    assert [line for line in more if "the brokers' `message.max.bytes`" in line and "set it to 2001024 or more" in line]
    assert not has_topic(address, name)

    assert sink.deliver(make_entries(3)) == []
    assert len(read_topic(address, name)) == 3


def test_remarks_on_topics_that_events_make_say_what_can_not_be_checked(make: Any) -> None:
    sink = make(topic="docker.{type}")
    sink.open()

    (line,) = sink.remarks(1000)

    assert "(`docker.{type}`), so that it can't be checked whether they exist" in line


def test_remarks_of_somebody_who_may_only_write_say_what_is_not_known(make: Any, broker: Broker, topic: str) -> None:
    broker.allow("alice", topic, "WRITE")
    login = {"sasl": "PLAIN", "username": "alice", "password": USERS["alice"]}
    sink = make(bootstrap_servers=broker.address("SASL"), **login)
    sink.open()

    existence, size = sink.remarks(1_000_000)

    assert existence == f"topic {topic} exists, and we may write to it"
    assert "could not be read; allow us DescribeConfigs there, or see to it that it is 1001024 or more" in size
