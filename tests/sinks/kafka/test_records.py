import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner import murmur2  # type: ignore[import-untyped]
from kafka.record.default_records import DefaultRecordBatchBuilder  # type: ignore[import-untyped]

from bridge.sink import Entry
from sinks.kafka.records import Record, encode, record_of, spread
from tests.contract.harness import make_entries, make_entry


def make_record(entry: Entry, key: bytes | None = b"key") -> Record:
    return record_of(entry, entry.seq, "lane", ("topic", 0), key)


def by_the_library(records: list[Record]) -> bytes:
    """The body of a batch as kafka-python makes it."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 30)
    for offset, record in enumerate(records):
        builder.append(offset, record.timestamp, record.key, record.entry.json, record.headers)
    return bytes(builder.build())[DefaultRecordBatchBuilder.HEADER_STRUCT.size :]


times = st.floats(min_value=0, max_value=4e9)
keys = st.none() | st.binary(max_size=300)


@given(st.lists(st.tuples(times, keys, st.text(max_size=500)), min_size=1, max_size=20))
def test_a_body_is_byte_for_byte_what_the_library_makes(given: list[tuple[float, bytes | None, str]]) -> None:
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


@given(st.lists(keys, min_size=1, max_size=20))
def test_a_record_takes_no_more_room_than_it_says(keys: list[bytes | None]) -> None:
    records = [make_record(make_entry(seq), key) for seq, key in enumerate(keys)]

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
