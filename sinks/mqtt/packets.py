"""The packets that a publisher needs besides CONNECT, and the classification of their reason codes; pure.

Layouts and codes are from the OASIS standard MQTT 5.0, sections 2 and 3; 3.1.1 has the same packets without properties
and reason codes.
"""

import struct
from functools import lru_cache
from typing import Final

from bridge.event import Fields
from bridge.sink import Reason
from sinks.classification import Classification
from sinks.mqtt.topic import MAX_CACHED_CHARS, clean_text

CONNACK: Final = 0x20
PUBACK: Final = 0x40
PUBREC: Final = 0x50
PUBREL: Final = 0x62
PUBCOMP: Final = 0x70
PINGRESP: Final = 0xD0
DISCONNECT: Final = 0xE0
ACKNOWLEDGEMENTS: Final = frozenset({PUBACK, PUBREC, PUBCOMP})
PING: Final = b"\xc0\x00"
DISCONNECT_PACKET: Final = b"\xe0\x00"

FAILED: Final = 0x80
"""Reason codes from here on are failures."""

SESSION_TAKEN_OVER: Final = 0x8E

Packet = tuple[int, bytes]
"""The first byte of a packet, and what follows its fixed header."""

_u16: Final = struct.Struct(">H").pack


class Malformed(ValueError):
    """The received bytes are not MQTT."""


def _sink(reason: Reason, error: str) -> Classification:
    return Classification("sink", "retry", reason, error)


_REFUSALS: Final[dict[int, Classification]] = {
    0x80: Classification("event", "retry", "server_error", "unspecified error"),
    0x81: _sink("server_error", "malformed packet"),
    0x82: _sink("server_error", "protocol error"),
    0x83: Classification("event", "retry", "server_error", "implementation specific error"),
    0x84: _sink("server_error", "unsupported protocol version; set `protocol` to the other one"),
    0x85: _sink("unauthorized", "client identifier not valid; set another `client_id`"),
    0x86: _sink("unauthorized", "bad user name or password"),
    0x87: Classification("event", "retry", "unauthorized", "not authorized"),
    0x88: _sink("server_error", "server unavailable"),
    0x89: _sink("throttled", "server busy"),
    0x8A: _sink("unauthorized", "banned"),
    0x8B: _sink("unreachable", "server shutting down"),
    0x8C: _sink("unauthorized", "bad authentication method"),
    0x8D: _sink("timeout", "keep alive timeout"),
    SESSION_TAKEN_OVER: _sink("unreachable", "session taken over: is there another client with this `client_id`?"),
    0x90: Classification("event", "rejected", "rejected", "topic name invalid"),
    0x91: Classification("event", "retry", "server_error", "packet identifier in use"),
    0x92: Classification("event", "retry", "server_error", "packet identifier not found"),
    0x93: _sink("server_error", "receive maximum exceeded; set a smaller `max_in_flight`"),
    0x95: Classification("event", "rejected", "too_large", "packet too large"),
    0x94: _sink("server_error", "topic alias invalid"),
    0x96: _sink("throttled", "too high a rate"),
    0x97: _sink("throttled", "quota exceeded"),
    0x98: _sink("unreachable", "closed by an administrator"),
    0x99: Classification("event", "rejected", "rejected", "payload format invalid"),
    0x9A: _sink("rejected", "retain not supported; set `retain: false`, `availability_topic: null` and no `state_topic`"),
    0x9B: _sink("rejected", "QoS not supported; set a smaller `qos`"),
    0x9C: _sink("not_found", "the broker wants us to use another server"),
    0x9D: _sink("not_found", "the broker has moved"),
    0x9F: _sink("throttled", "connection rate exceeded"),
}

# The return codes of a CONNACK of 3.1.1, which a broker of that age also answers to MQTT 5.
_OLD_CODES: Final = {1: 0x84, 2: 0x85, 3: 0x88, 4: 0x86, 5: 0x87}


def classify(code: int) -> Classification:
    """Classify the reason code of an acknowledgement, a CONNACK or a DISCONNECT."""
    code = _OLD_CODES.get(code, code)
    return _REFUSALS.get(code) or Classification("event", "retry", "server_error", f"reason code 0x{code:02x}")


def varint(number: int) -> bytes:
    """Encode a length with seven bits per byte; raise `ValueError` if it is more than a packet can have."""
    if number >= 1 << 28:
        raise ValueError("longer than a packet of MQTT can be")
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def encode_publish(topic: bytes, payload: bytes, *, qos: int, retain: bool, packet_id: int, properties: bytes | None) -> bytes:
    """Encode a PUBLISH packet with a topic of 65,535 bytes at most, and encoded properties: None for MQTT 3.1.1.

    Raises:
        ValueError: It is more than a packet can have.
    """
    head = _u16(len(topic)) + topic
    if qos:
        head += _u16(packet_id)
    if properties is not None:
        head += varint(len(properties)) + properties
    return bytes((0x30 | qos << 1 | retain,)) + varint(len(head) + len(payload)) + head + payload


def encode_release(packet_id: int) -> bytes:
    """Encode a PUBREL packet."""
    return bytes((PUBREL, 2)) + _u16(packet_id)


def encode_properties(fields: Fields, expiry: float | None) -> bytes:
    """Encode the properties of an event: UTF-8 text, content type, expiry, and fields by which subscribers filter."""
    texts = (fields.namespace, fields.type, fields.action, fields.state)
    # Long texts would fill the memory: a cache counts its entries, not their bytes.
    common = _common_properties if sum(map(len, texts)) <= MAX_CACHED_CHARS else _common_properties.__wrapped__
    return common(*texts, expiry) + b"\x26" + _text("uuid") + _text(fields.uuid)


@lru_cache(maxsize=4096)
def _common_properties(namespace: str, kind: str, action: str, state: str, expiry: float | None) -> bytes:
    encoded = b"\x01\x01\x03" + _text("application/json")
    if expiry is not None:
        encoded += b"\x02" + struct.pack(">I", int(expiry))
    pairs = {"namespace": namespace, "type": kind, "action": action, "state": state}
    return encoded + b"".join([b"\x26" + _text(name) + _text(value) for name, value in pairs.items()])


def _text(text: str) -> bytes:
    encoded = clean_text(text)
    return _u16(len(encoded)) + encoded


def take_packets(buffer: bytearray, longest: int) -> list[Packet]:
    """Remove all complete packets, of `longest` bytes at most, from the received bytes, and return them.

    Raises:
        Malformed: The bytes are not MQTT, or a packet is too large.
    """
    packets: list[Packet] = []
    start, end = 0, len(buffer)
    while end - start >= 2:
        size, body = buffer[start + 1], start + 2
        if size > 127:
            long = _long_size(buffer, start + 1)
            if long is None:
                break
            size, body = long
        if size > longest:
            raise Malformed("a packet that nobody asked for")
        if end - body < size:
            break
        packets.append((buffer[start], bytes(buffer[body : body + size])))
        start = body + size
    del buffer[:start]
    return packets


def _long_size(buffer: bytearray, at: int) -> tuple[int, int] | None:
    """Read a length of more than one byte, and the index after it; None if it is not complete."""
    size = 0
    for index in range(4):
        if at + index >= len(buffer):
            return None
        size |= (buffer[at + index] & 127) << 7 * index
        if buffer[at + index] < 128:
            return size, at + index + 1
    raise Malformed("a length without an end")


def is_whole(kind: int, body: bytes) -> bool:
    """True unless the packet is an acknowledgement that `read_acknowledgement` can't read."""
    return len(body) >= 2 or kind not in ACKNOWLEDGEMENTS


def read_acknowledgement(body: bytes) -> tuple[int, int]:
    """Read the packet identifier and the reason code of a PUBACK, PUBREC or PUBCOMP.

    Raises:
        Malformed: There is no packet identifier.
    """
    if len(body) < 2:
        raise Malformed("an acknowledgement of nothing")
    return body[0] << 8 | body[1], body[2] if len(body) > 2 else 0
