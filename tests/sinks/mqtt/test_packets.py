import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode

from sinks.mqtt import packets
from tests.contract.harness import make_entry

ONLY_FOR_SUBSCRIBERS = {0x8F, 0x9E, 0xA0, 0xA1, 0xA2}


def packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + packets.varint(len(body)) + body


@given(st.integers(min_value=0, max_value=(1 << 28) - 1))
def test_lengths_are_encoded_as_by_others(number: int) -> None:
    assert packets.varint(number) == VariableByteIntegers.encode(number)  # type: ignore[no-untyped-call]


def test_a_length_beyond_all_packets_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than a packet"):
        packets.varint(1 << 28)


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=300)), max_size=20), st.data())
def test_any_split_of_a_stream_gives_the_same_packets(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    stream = b"".join(packet(first, body) for first, body in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    buffer, found = bytearray(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        buffer += stream[start:end]
        found += packets.take_packets(buffer, 1000)

    assert found == sent
    assert not buffer


@pytest.mark.parametrize("stream", [b"\x40\xff\xff\xff\xff\x01", b"\x40\xe9\x07", b"\x40\xff\xff\xff\x7f"])
def test_what_is_not_mqtt_is_found_out_before_it_has_come(stream: bytes) -> None:
    with pytest.raises(packets.Malformed):
        packets.take_packets(bytearray(stream), 1000)


def test_an_acknowledgement_without_a_reason_is_a_good_one() -> None:
    assert packets.read_acknowledgement(b"\x01\x02") == (258, 0)
    assert packets.read_acknowledgement(b"\x01\x02\x87\x00") == (258, 0x87)
    with pytest.raises(packets.Malformed):
        packets.read_acknowledgement(b"\x01")


def test_a_publish_packet_looks_as_in_the_standard() -> None:
    make = packets.encode_publish

    assert make(b"a/b", b"hi", qos=0, retain=False, packet_id=7, properties=None) == b"\x30\x07\x00\x03a/bhi"
    assert make(b"a/b", b"hi", qos=1, retain=True, packet_id=10, properties=None) == b"\x33\x09\x00\x03a/b\x00\x0ahi"
    assert make(b"a", b"", qos=2, retain=False, packet_id=1, properties=b"\x01\x01") == b"\x34\x08\x00\x01a\x00\x01\x02\x01\x01"


def test_properties_are_read_by_others_as_they_are_meant() -> None:
    fields = make_entry(1, state="Läuft\x00").fields
    encoded = packets.encode_properties(fields, 90.5)

    found = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    found.unpack(packets.varint(len(encoded)) + encoded)  # type: ignore[no-untyped-call]

    assert found.json() == {  # type: ignore[no-untyped-call]
        "PayloadFormatIndicator": 1,
        "ContentType": "application/json",
        "MessageExpiryInterval": 90,
        "UserProperty": [
            ("namespace", "acme"),
            ("type", "container"),
            ("action", "update"),
            ("state", "Läuft_"),
            ("uuid", fields.uuid),
        ],
    }


@pytest.mark.parametrize("kind", [PacketTypes.CONNACK, PacketTypes.PUBACK, PacketTypes.PUBREC, PacketTypes.DISCONNECT])
def test_every_refusal_of_the_standard_has_its_words(kind: int) -> None:
    for code in range(packets.FAILED, 256):
        try:
            ReasonCode(kind, identifier=code)
        except (KeyError, ValueError):
            continue
        if code not in ONLY_FOR_SUBSCRIBERS:
            assert "reason code" not in packets.classify(code).error, hex(code)


def test_a_code_that_nobody_knows_is_shown() -> None:
    refusal = packets.classify(0xEE)

    assert (refusal.scope, refusal.outcome, refusal.reason, refusal.error) == (
        "event",
        "retry",
        "server_error",
        "reason code 0xee",
    )
