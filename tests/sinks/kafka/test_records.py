import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner import murmur2  # type: ignore[import-untyped]
from kafka.record.default_records import DefaultRecordBatchBuilder  # type: ignore[import-untyped]

from bridge.event import Fields
from bridge.sink import Entry
from sinks.kafka.records import Record, RecordMaker, encode, spread, topic_problem, topic_template
from tests.contract.harness import make_entries, make_entry


def make_record(entry: Entry, key: str = "key") -> Record:
    return RecordMaker("topic", key).make([entry])[0]


def by_the_library(records: list[Record]) -> bytes:
    """The body of a batch as kafka-python makes it."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 30)
    for offset, record in enumerate(records):
        builder.append(offset, record.timestamp, record.key, record.entry.json, record.headers)
    return bytes(builder.build())[DefaultRecordBatchBuilder.HEADER_STRUCT.size :]


times = st.floats(min_value=0, max_value=4e9)
keys = st.sampled_from(["", "key", "{resource_uri}", "{state}", "{state}/{namespace}"])


@given(st.lists(st.tuples(times, keys, st.text(max_size=500)), min_size=1, max_size=20))
def test_a_body_is_byte_for_byte_what_the_library_makes(given: list[tuple[float, str, str]]) -> None:
    records = []
    for seq, (received, key, state) in enumerate(given):
        entry = make_entry(seq, state=state, action=state[:200])
        entry.received = received
        records.append(make_record(entry, key))

    body, first, latest = encode(records)

    assert body == by_the_library(records)
    assert first == records[0].timestamp
    assert latest == max(record.timestamp for record in records)


def test_a_large_body_is_what_the_library_makes() -> None:
    records = [make_record(entry) for entry in make_entries(20_000)]

    assert encode(records)[0] == by_the_library(records)


@given(st.lists(st.text(max_size=300), min_size=1, max_size=20), keys)
def test_a_record_takes_no_more_room_than_it_says(states: list[str], key: str) -> None:
    records = RecordMaker("topic", key).make([make_entry(seq, state=state) for seq, state in enumerate(states)])

    assert len(encode(records)[0]) <= sum(record.size for record in records)


def test_headers_say_what_the_event_is() -> None:
    record = make_record(make_entry(1, namespace="ignored", action=""))

    assert record.headers == [
        ("uuid", msgspec.json.decode(record.entry.json)["uuid"].encode()),
        ("namespace", b"acme"),
        ("type", b"container"),
        ("action", b""),
        ("content-type", b"application/json"),
    ]


def test_the_timestamp_is_when_it_was_heard() -> None:
    entry = make_entry(1, datetime="2016-02-01T16:47:28Z")
    entry.received = 1_795_453_200.1239

    assert make_record(entry).timestamp == 1_795_453_200_123


def test_the_timestamp_may_be_the_events_own_or_that_of_sending() -> None:
    entry = make_entry(1, datetime="2016-02-01T16:47:28.5+01:00")
    before = time.time()

    (own,) = RecordMaker("topic", "", timestamp="event").make([entry])
    (sent,) = RecordMaker("topic", "", timestamp="sent").make([entry])

    assert own.timestamp == 1_454_341_648_500
    assert int(before * 1000) <= sent.timestamp <= time.time() * 1000


def test_an_event_of_before_1970_has_the_first_time_that_kafka_knows() -> None:
    records = RecordMaker("topic", "", timestamp="event").make([make_entry(1, datetime="0001-01-01T00:00:00Z")])

    assert records[0].timestamp == 0


# From UtilsTest.testMurmur2 of Apache Kafka, as signed numbers of 32 bits.
JAVA = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize(("key", "hashed"), JAVA.items())
def test_keys_are_spread_as_by_javas_client(key: bytes, hashed: int) -> None:
    assert spread(key) == hashed & 0x7FFFFFFF


@given(st.binary(max_size=200))
def test_keys_are_spread_as_by_the_library(key: bytes) -> None:
    assert spread(key) == murmur2(key) & 0x7FFFFFFF


def event(**fields: object) -> Fields:
    base = {
        "type": "container",
        "action": "update",
        "state": "Not running",
        "resource_uri": "/api/app/v1/acme/container/0b0e3538-88df/",
        "parents": [],
        "uuid": "093ba3bb-08dd-48f0-8f12-4d3b85ef85b3",
        "datetime": "2016-02-01T16:47:28Z",
        "namespace": "acme",
        "received_at": "2026-11-23T17:00:00.123456Z",
    }
    return Fields(**base | fields)  # type: ignore[arg-type]  # The test gives what it wants.


def record(event: Fields, **templates: str) -> Record:
    maker = RecordMaker(**{"topic": "events", "key": ""} | templates)  # type: ignore[arg-type]  # `ordering` is not among them.
    return maker.make([Entry(1, 0.0, msgspec.json.encode(event), event)])[0]


def topic_of(template: str, event: Fields) -> str:
    return record(event, topic=template).topic


def key_of(template: str, event: Fields) -> bytes | None:
    return record(event, key=template).key


@pytest.mark.parametrize(
    ("template", "topic"),
    [
        ("docker-events", "docker-events"),
        ("docker.{namespace}.{type}", "docker.acme.container"),
        ("{action}_{state}", "update_Not_running"),
        ("of.{resource_uuid}", "of.0b0e3538-88df"),
    ],
)
def test_a_topic_is_made_of_the_events_fields(template: str, topic: str) -> None:
    assert topic_of(template, event()) == topic


def test_what_can_not_stand_in_a_topic_becomes_an_underscore() -> None:
    template = "docker.{namespace}.{state}"

    assert topic_of(template, event(namespace="", state="läuft: 運行/*")) == "docker._.l_uft______"
    assert topic_problem(topic_of(template, event(namespace="../..", state="{x}"))) is None


def test_a_resource_without_a_uuid_is_an_underscore() -> None:
    assert topic_of("{resource_uuid}", event(resource_uri="")) == "_"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("", "'' can't be the name"),
        ("..", "'..' can't be the name"),
        ("a b", "' ' can't stand in the name"),
        ("docker/{type}", "'/' can't stand in the name"),
        ("x" * 250, "249 characters at most, this one has 250"),
        ("x" * 248 + "{type}{state}", "249 characters at most, those of this template have 250 or more"),
        ("{uuid}", "{uuid} can't stand here; fields are {type}, {action}, {state}, {namespace}, {resource_uuid}"),
        ("{type.__class__}", "{type.__class__} can't stand here"),
        ("{parents[0]}", "{parents[0]} can't stand here"),
        ("{type!r}", "{type!r} can't stand here"),
        ("{type:>{state}}", "{type:>{state}} can't stand here"),
        ("{}", "{} can't stand here"),
        ("{0}", "{0} can't stand here"),
        ("{type", "a brace without its other half"),
        ("type}", "a brace without its other half"),
    ],
)
def test_a_bad_topic_template_is_refused_with_the_reason(template: str, words: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are compared below
        topic_template(template)
    assert words in str(error.value)


def test_a_topic_template_may_make_names_of_the_greatest_length() -> None:
    assert len(topic_of("x" * 240 + "{type}", event())) == 249


def test_the_key_is_the_resource_uri_unless_something_else_is_wanted() -> None:
    assert key_of("{resource_uri}", event()) == b"/api/app/v1/acme/container/0b0e3538-88df/"
    assert key_of("{namespace}/{uuid}", event()) == b"acme/093ba3bb-08dd-48f0-8f12-4d3b85ef85b3"
    assert key_of("{state}", event(state="Läuft")) == "Läuft".encode()
    assert key_of("{resource_uri}", event(resource_uri="")) == b""


def test_an_empty_template_makes_records_without_a_key() -> None:
    assert key_of("", event()) is None
