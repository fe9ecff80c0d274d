"""The Kafka sink and clusters of several brokers: leaders that move, brokers that are gone, replicas that are missing."""

import json
import tempfile
import threading
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bridge.sink import Entry, Unavailable
from sinks.kafka.settings import KafkaSettings
from sinks.kafka.sink import KafkaSink
from tests.contract.harness import make_entries
from tests.sinks.kafka import mock_kafka
from tests.sinks.kafka.mock_kafka import MockKafka
from tests.support.servers import kafka_broker
from tests.support.servers.kafka_broker import Broker, create_topic, read_topic
from tests.support.waiting import until

needs_mock = pytest.mark.skipif(mock_kafka.available() is not None, reason=str(mock_kafka.available()))
needs_kafka = pytest.mark.skipif(kafka_broker.available() is not None, reason=str(kafka_broker.available()))


@pytest.fixture
def mock(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockKafka]:
    """Three brokers; each leads one partition of `events`."""
    mock_kafka.speak_to_it(monkeypatch)
    with MockKafka(3) as mock:
        mock.create_topic("events", 3, 3)
        for partition in range(3):
            mock.lead("events", partition, partition + 1)
        yield mock


@pytest.fixture
def sinks() -> Iterator[list[KafkaSink]]:
    made: list[KafkaSink] = []
    yield made
    for sink in made:
        sink.close()


@pytest.fixture
def make(sinks: list[KafkaSink]) -> Any:
    def make(address: str, **settings: Any) -> KafkaSink:
        base = {"bootstrap_servers": address, "topic": "events", "delivery_timeout": 2, "connect_timeout": 3}
        sinks.append(KafkaSink("kafka", KafkaSettings.model_validate(base | settings)))
        return sinks[-1]

    return make


def trouble_with(sink: KafkaSink, entries: Sequence[Entry]) -> Unavailable:
    try:
        sink.open()
        sink.deliver(entries)
    except Unavailable as trouble:
        return trouble
    raise AssertionError("nothing is wrong")


def deliver_at_last(sink: KafkaSink, entries: Sequence[Entry]) -> list[Unavailable]:
    """Do as a forwarder does: close, open, offer again what is not acknowledged. The troubles on the way."""
    troubles: list[Unavailable] = []
    done: set[int] = set()

    def delivers() -> bool:
        try:
            sink.open()
            return list(sink.deliver([entry for entry in entries if entry.seq not in done])) == []
        except Unavailable as trouble:
            done.update(trouble.delivered)
            troubles.append(trouble)
            sink.close()
            return False

    until(delivers, "everything is delivered")
    return troubles


def lead_all(mock: MockKafka, broker: int) -> None:
    for partition in range(3):
        mock.lead("events", partition, broker)


def assert_all_in_order(arrived: Sequence[bytes], entries: Sequence[Entry]) -> None:
    """Everything is there; the first arrivals of each resource are in order."""
    lanes: dict[str, list[str]] = defaultdict(list)
    for event in map(json.loads, dict.fromkeys(arrived)):
        lanes[event["resource_uri"]].append(event["uuid"])
    expected: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        expected[entry.fields.resource_uri].append(entry.fields.uuid)
    assert lanes == expected


@needs_mock
def test_leaders_that_move_are_followed(mock: MockKafka, make: Any) -> None:
    sink = make(mock.address, delivery_timeout=10)
    entries = make_entries(400, resources=40)
    sink.open()

    for turn in range(4):
        assert sink.deliver(entries[100 * turn : 100 * turn + 100]) == []
        for partition in range(3):
            mock.lead("events", partition, (partition + turn) % 3 + 1)

    assert_all_in_order([value for _, value in read_topic(mock.address, "events")], entries)


@needs_mock
def test_a_partition_without_a_leader_is_waited_for(mock: MockKafka, make: Any) -> None:
    sink = make(mock.address, delivery_timeout=10)
    entries = make_entries(100, resources=40)
    sink.open()
    lead_all(mock, -1)
    election = threading.Timer(0.5, lead_all, (mock, 2))
    election.start()

    assert sink.deliver(entries) == []

    election.join()
    assert_all_in_order([value for _, value in read_topic(mock.address, "events")], entries)


@needs_mock
def test_one_broker_of_several_that_is_gone_costs_only_what_it_leads(mock: MockKafka, make: Any) -> None:
    sink = make(mock.address)
    entries = make_entries(300, resources=40)
    sink.open()
    assert sink.deliver(entries[:100]) == []
    mock.down(3)

    with pytest.raises(Unavailable) as unavailable:
        sink.deliver(entries[100:])
    delivered = unavailable.value.delivered
    assert unavailable.value.reason in {"unreachable", "timeout"}
    assert 0 < len(delivered) < 200

    mock.lead("events", 2, 1)
    deliver_at_last(sink, [entry for entry in entries[100:] if entry.seq not in delivered])

    arrived = [value for _, value in read_topic(mock.address.split(",")[0], "events")]
    assert len(arrived) == 300
    assert_all_in_order(arrived, entries)


@needs_mock
def test_addresses_that_are_dead_do_not_keep_it_from_the_one_that_lives(mock: MockKafka, make: Any) -> None:
    mock.down(1)
    mock.down(2)
    lead_all(mock, 3)
    sink = make(f"localhost:1,{mock.address}")
    entries = make_entries(50)

    deliver_at_last(sink, entries)

    alive = mock.address.split(",")[2]
    assert_all_in_order([value for _, value in read_topic(alive, "events")], entries)


@needs_kafka
@pytest.mark.timeout(120)
def test_a_replica_that_is_missing_is_the_brokers_trouble_and_passes(make: Any) -> None:
    # Not the broker that all tests share: it would remember the second one.
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as two,
        Broker(Path(one)) as first,
        Broker(Path(two), first=first) as second,
    ):
        topic = f"replicated-{uuid.uuid4().hex[:8]}"
        create_topic(first.address(), topic, 3, 2, min_insync_replicas="2")
        sink = make(f"{first.address()},{second.address()}", topic=topic)
        entries = make_entries(300, resources=40)
        deliver_at_last(sink, entries[:100])

        second.kill()
        troubles: set[str] = set()

        def is_told() -> bool:
            trouble = trouble_with(sink, entries[100:])
            troubles.add(str(trouble))
            return "fewer replicas in sync than `min.insync.replicas`" in str(trouble)

        until(is_told, f"too few replicas are named: {troubles}", 30)
        second.start()
        deliver_at_last(sink, entries[100:])

        assert_all_in_order([value for _, value in read_topic(first.address(), topic)], entries)
