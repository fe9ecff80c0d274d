"""The Kafka sink and its client, with errors that no real broker gives on demand."""

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError  # type: ignore[import-untyped]
from kafka.future import Future  # type: ignore[import-untyped]

from bridge.sink import Failure, Unavailable
from sinks.kafka.client import Client
from sinks.kafka.connections import Connections
from sinks.kafka.settings import KafkaSettings
from sinks.kafka.sink import KafkaSink
from tests.contract.harness import make_entries, make_entry
from tests.sinks.kafka import mock_kafka
from tests.sinks.kafka.mock_kafka import MockKafka
from tests.support.servers.kafka_broker import read_topic
from tests.support.waiting import until

pytestmark = [
    pytest.mark.skipif(mock_kafka.available() is not None, reason=str(mock_kafka.available())),
]


@pytest.fixture(autouse=True)
def old_client(monkeypatch: pytest.MonkeyPatch) -> None:
    mock_kafka.speak_to_it(monkeypatch)


@pytest.fixture
def mock() -> Iterator[MockKafka]:
    with MockKafka() as mock:
        mock.create_topic("events")
        yield mock


@pytest.fixture
def make(mock: MockKafka) -> Iterator[Any]:
    made: list[KafkaSink] = []

    def make(**settings: Any) -> KafkaSink:
        base = {"bootstrap_servers": mock.address, "topic": "events", "delivery_timeout": 1, "connect_timeout": 3}
        made.append(KafkaSink("kafka", KafkaSettings.model_validate(base | settings), interval=0.1))
        made[-1].open()
        return made[-1]

    yield make
    for sink in made:
        sink.close()


def arrived(mock: MockKafka) -> list[str]:
    return [json.loads(value)["uuid"] for _, value in read_topic(mock.address, "events")]


@pytest.mark.parametrize(
    ("codes", "what"),
    [
        ([6, 6], "the leader changes"),
        ([19, 20, 19], "too few replicas for a moment"),
        ([7], "the replicas are slow"),
        ([-195], "the connection breaks"),
        ([89], "the quota is used up for a moment"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_passes_is_not_even_noticed(mock: MockKafka, make: Any, codes: list[int], what: str) -> None:
    sink = make(delivery_timeout=10)
    entries = make_entries(20)
    mock.answer(codes)

    assert sink.deliver(entries) == [], what

    assert arrived(mock) == [entry.fields.uuid for entry in entries]


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (19, "server_error", "there are fewer replicas in sync than `min.insync.replicas`"),
        # Whose words they are depends on who gives up first: the batch, or the look-up of the leader.
        (6, "server_error", r"(the broker says NotLeaderForPartition|.*a partition's leader is changing)"),
        (56, "server_error", "the broker says KafkaStorage"),
        (89, "throttled", "our quota is used up"),
    ],
)
def test_what_lasts_too_long_is_said_in_words_and_the_next_client_works(
    mock: MockKafka, make: Any, code: int, reason: str, words: str
) -> None:
    sink = make()
    entries = make_entries(20)
    mock.answer([code] * 1000)

    with pytest.raises(Unavailable) as unavailable:
        sink.deliver(entries)
    mock.answer_well()
    sink.open()

    assert unavailable.value.reason == reason
    assert re.fullmatch(rf"{mock.address}(: |, topic events: ){words}", str(unavailable.value))
    assert sink.deliver(entries) == []


def test_a_broker_that_dies_with_a_request_in_flight_does_not_wedge_the_sink(mock: MockKafka, make: Any) -> None:
    """The idempotent producer of kafka-python hangs for ever after this."""
    sink = make()
    mock.delay(5)
    breaking = threading.Timer(0.3, mock.down)
    breaking.start()
    with pytest.raises(Unavailable):
        sink.deliver(make_entries(1))
    breaking.join()
    mock.delay(0)
    mock.up()

    deadline = time.monotonic() + 20
    while True:
        try:
            sink.open()
            assert sink.deliver(make_entries(3)) == []
            break
        except Unavailable:
            assert time.monotonic() < deadline
    assert len(arrived(mock)) >= 3


def test_what_was_acknowledged_before_things_broke_is_told(mock: MockKafka, make: Any) -> None:
    sink = make(record_batch_bytes=5000)
    entries = make_entries(100)
    mock.answer([0, 0, *[31] * 1000])

    with pytest.raises(Unavailable) as unavailable:
        sink.deliver(entries)
    delivered = set(unavailable.value.delivered)
    mock.answer_well()
    sink.open()

    assert unavailable.value.reason == "unauthorized"
    assert 0 < len(delivered) < 100
    assert sorted(arrived(mock)) == sorted(entry.fields.uuid for entry in entries if entry.seq in delivered)
    assert sink.deliver([entry for entry in entries if entry.seq not in delivered]) == []
    assert arrived(mock) == [entry.fields.uuid for entry in entries]


@pytest.mark.parametrize(
    ("code", "fate"), [(10, "rejected"), (2, "rejected"), (44, "rejected"), (87, "rejected"), (-1, "retry")]
)
def test_one_refused_record_does_not_end_the_producer(mock: MockKafka, make: Any, code: int, fate: str) -> None:
    sink = make()
    entries = make_entries(4, resources=4)
    # The batch of four, its first half, the first record.
    mock.answer([code] * 3)

    failures = sink.deliver(entries)

    assert [(failure.seq, failure.outcome) for failure in failures] == [(1, fate)]
    assert sink.deliver(make_entries(3)) == []
    assert arrived(mock)[:3] == [entry.fields.uuid for entry in entries[1:]]


def test_a_broker_that_fails_with_every_record_lets_each_wait_and_keeps_order(mock: MockKafka, make: Any) -> None:
    sink = make()
    entries = make_entries(6, resources=2)
    mock.answer([-1] * 1000)

    failures = sink.deliver(entries)

    assert {failure.seq: failure.outcome for failure in failures} == {
        1: "retry",
        2: "retry",
        **dict.fromkeys(range(3, 7), "held"),
    }
    assert arrived(mock) == []


def test_a_topic_that_became_forbidden_is_the_sinks_trouble_if_it_is_the_only_one(mock: MockKafka, make: Any) -> None:
    mock.answer([29] * 10)

    with pytest.raises(Unavailable, match="topic events: we are not allowed to write to the topic"):
        make().deliver(make_entries(3))


def test_a_topic_that_became_forbidden_holds_up_its_own_events_only(mock: MockKafka, make: Any) -> None:
    sink = make(topic="{state}")
    mock.create_topic("Running")
    entries = make_entries(3)
    mock.answer([29])

    failures = sink.deliver(entries)

    words = "topic Running: we are not allowed to write to the topic"
    assert failures == [Failure.retry(entry, "unauthorized", words) for entry in entries]
    assert sink.deliver(entries) == []


def test_a_topic_that_is_missing_is_waited_for_once_and_found_some_time_after_it_was_made(
    mock: MockKafka, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock.create_topic("Running")
    sink = make(topic="{state}")
    entries = [make_entry(1, "here"), make_entry(2, "there", state="Missing")]
    words = "topic Missing: the topic does not exist; create it, or set `allow_auto_create_topics: true`"
    assert sink.deliver(entries) == [Failure.retry(entries[1], "not_found", words)]

    with monkeypatch.context() as asking:
        asking.setattr(Client, "ask", lambda *_: pytest.fail("the brokers are asked again"))
        for _ in range(3):
            assert sink.deliver(entries) == [Failure.retry(entries[1], "not_found", words)]

    mock.create_topic("Missing")
    monkeypatch.setattr("sinks.kafka.metadata._MISSING_SECONDS", 0.0)
    assert sink.deliver(entries) == []


def test_a_topic_that_we_may_not_see_is_asked_for_each_time_and_found_when_we_may(mock: MockKafka, make: Any) -> None:
    mock.create_topic("Running")
    mock.refuse_topic("Running", 29)
    sink = make(topic="{state}")
    entries = make_entries(3)
    words = "topic Running: we are not allowed to write to the topic"
    for _ in range(2):
        assert sink.deliver(entries) == [Failure.retry(entry, "unauthorized", words) for entry in entries]

    mock.refuse_topic("Running", 0)

    assert sink.deliver(entries) == []


def test_a_topic_that_we_may_not_see_is_not_the_reason_why_the_brokers_do_not_answer(mock: MockKafka, make: Any) -> None:
    mock.create_topic("Running")
    mock.refuse_topic("Running", 29)
    sink = make(topic="{state}")
    sink.deliver(make_entries(3))
    mock.down()

    with pytest.raises(Unavailable) as unavailable:
        sink.deliver(make_entries(3))

    assert (unavailable.value.reason, str(unavailable.value)) == ("unreachable", f"{mock.address}: connection refused")


def test_without_events_it_asks_and_sends_nothing_and_says_why_nobody_answers_any_more(
    mock: MockKafka, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    ask = Connections.ask

    async def ask_and_count(connections: Connections, *arguments: Any) -> None:
        asked.append(arguments)
        await ask(connections, *arguments)

    monkeypatch.setattr(Connections, "ask", ask_and_count)
    sink = make()
    troubles: list[str] = []

    def is_gone() -> bool:
        try:
            sink.check_connection()
        except Unavailable as trouble:
            troubles.append(f"{trouble.reason}: {trouble}")
        return bool(troubles)

    until(lambda: is_gone() or len(asked) > 5)
    assert troubles == []
    mock.down()
    until(is_gone, "it is noticed", 10)

    assert troubles == [f"unreachable: {mock.address}: connection refused"]
    mock.up()
    assert arrived(mock) == []


def test_without_events_brokers_that_are_silent_are_noticed_in_time(mock: MockKafka, make: Any) -> None:
    sink = make(connect_timeout=1)
    mock.delay(60)

    with pytest.raises(Unavailable, match="no answer within 1 s"):
        until(lambda: bool(sink.check_connection()), seconds=3)

    mock.delay(0)


def test_no_thread_is_left_behind_by_a_client_that_was_thrown_away(mock: MockKafka, make: Any) -> None:
    before = threading.active_count()
    sink = make()
    mock.delay(60)
    with pytest.raises(Unavailable) as unavailable:
        sink.deliver(make_entries(3))
    began = time.monotonic()
    sink.close()

    assert unavailable.value.reason == "timeout"
    assert time.monotonic() - began < 2
    assert threading.active_count() == before
    mock.delay(0)


class Brokers:
    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[Any] = []
        settings = KafkaSettings(bootstrap_servers=["kafka:9092"], topic="events", connect_timeout=5)
        self.client = Client(settings, interval=10, clock=lambda: self.now)

    def ask(self) -> Any:
        self.asked.append(Future())
        return self.asked[-1]

    def is_gone_after(self, seconds: float) -> bool:
        self.now += seconds
        try:
            self.client.notice()
        except Unavailable:
            return True
        return False


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> Brokers:
    """A client that is idle, and what it asks."""
    brokers = Brokers()
    monkeypatch.setattr(brokers.client, "_send_question", brokers.ask)
    monkeypatch.setattr(brokers.client, "_throttled", lambda: -1.0)
    return brokers


def test_it_asks_every_interval_and_who_answers_is_there(brokers: Brokers) -> None:
    assert [brokers.is_gone_after(1) for _ in range(9)] == [False] * 9
    assert brokers.asked == []

    for turn in range(1, 4):
        assert not brokers.is_gone_after(10)
        assert len(brokers.asked) == turn
        brokers.asked[-1].success(None)
        assert not brokers.is_gone_after(1)


def test_who_does_not_answer_in_time_is_gone(brokers: Brokers) -> None:
    brokers.is_gone_after(10)

    assert not brokers.is_gone_after(4.9)
    assert brokers.is_gone_after(0.2)
    assert len(brokers.asked) == 1


def test_an_answer_counts_however_late_it_is_looked_for(brokers: Brokers) -> None:
    brokers.is_gone_after(10)
    brokers.asked[-1].success(None)

    assert not brokers.is_gone_after(60)


def test_when_all_brokers_failed_nobody_is_there(brokers: Brokers) -> None:
    brokers.is_gone_after(10)
    brokers.asked[-1].failure(KafkaConnectionError())

    assert brokers.is_gone_after(0.1)
    assert len(brokers.asked) == 1


def test_what_is_heard_meanwhile_makes_the_question_needless(brokers: Brokers) -> None:
    brokers.is_gone_after(10)
    brokers.client._answered = True
    assert not brokers.is_gone_after(0)
    brokers.asked[-1].failure(KafkaConnectionError())

    assert not brokers.is_gone_after(9)
    assert len(brokers.asked) == 1
