"""An MQTT broker on loopback that does what a test says: refuses, stays silent, hangs up; what no real one does on demand."""

import io
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from tests.support.servers.listener import Listener

CONNECT, PUBLISH, PUBREL, PINGREQ, DISCONNECT = 1, 3, 6, 12, 14


class Publish(NamedTuple):
    """One PUBLISH packet; `connection` counts connections from 1."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    packet_id: int
    connection: int
    properties: bytes


Answer = int | bytes | None
"""A reason code; bytes to send instead of an acknowledgement, before the end of the connection; None: nothing at all."""

WILL: Final = 0x04
"""The flag of a CONNECT with a last will."""


class Broker(Listener):
    """A broker that knows publishers only.

    Attributes:
        answer: What to answer to a publication; `online` and `offline` are always accepted.
        complete: The reason code of a PUBCOMP.
        connack: Flags, reason code and properties of CONNACK.
        other_version: The same for a client of another version of MQTT; None: the end of the connection.
        takes_will: Whether it answers a CONNECT with a last will.
        ends_qos_2_with: The type of packet with which QoS 2 is acknowledged.
        pong: Whether pings are answered.
        published: All publications that were accepted, in order, but for availability.
        tried: All publications that came, but for availability.
        availability: The payloads of the availability topic.
        connects: The bodies of all CONNECT packets.
        goodbyes: How often a client said goodbye.
        pings: How many pings came.
    """

    def __init__(self, protocol: str = "5") -> None:
        self.answer: Callable[[Publish], Answer] = lambda _: 0
        self.complete = 0
        self.connack = b"\x00\x00\x00" if protocol == "5" else b"\x00\x00"
        self.other_version: bytes | None = b"\x00\x01"
        self.takes_will = True
        self.ends_qos_2_with = 0x50
        self.pong = True
        self.published: list[Publish] = []
        self.tried: list[Publish] = []
        self.availability: list[bytes] = []
        self.connects: list[bytes] = []
        self.goodbyes = 0
        self.pings = 0
        self._five = protocol == "5"
        super().__init__()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def talk(self, connection: socket.socket, number: int) -> None:
        for first, body in _read_packets(connection):
            self.gate.wait(30)
            answer = self._take(first, body, number)
            if answer is None:
                return
            connection.sendall(answer)

    def _take(self, first: int, body: bytes, number: int) -> bytes | None:
        """Do what a packet asks for; return what to send, or None to end the connection."""
        match first >> 4:
            case 1:
                self.connects.append(body)
                right = (body[6] == 5) is self._five
                connack = self.connack if right else self.other_version
                return None if connack is None or (body[7] & WILL and not self.takes_will) else _packet(0x20, connack)
            case 3:
                return self._publish(first, body, number)
            case 6:
                code = bytes((self.complete,)) if self.complete else b""
                return _packet(0x70, body[:2] + code)
            case 12:
                self.pings += 1
                return b"\xd0\x00" if self.pong else b""
            case 14:
                self.goodbyes += 1
                return None
        raise AssertionError(f"a packet that nobody should send: {first:#x}")

    def _publish(self, first: int, body: bytes, number: int) -> bytes | None:
        publish = _parse_publish(first, body, number, five=self._five)
        if publish.payload in {b"online", b"offline"}:
            self.availability.append(publish.payload)
            return _packet(0x40, struct.pack(">H", publish.packet_id)) if publish.qos else b""
        with self._lock:
            self.tried.append(publish)
            answer = self.answer(publish)
            if isinstance(answer, int) and answer < 0x80:
                self.published.append(publish)
        if isinstance(answer, bytes):
            self.end_connections(answer)
            return None
        if answer is None or not publish.qos:
            return b""
        code = bytes((answer,)) if answer else b""
        return _packet({1: 0x40, 2: self.ends_qos_2_with}[publish.qos], struct.pack(">H", publish.packet_id) + code)


def _packet(first: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes((first, len(body))) + body


def parse_packets(stream: bytes) -> list[Publish]:
    """Read PUBLISH packets of MQTT 5 out of what was to be sent."""
    packets = _packets_of(io.BufferedReader(io.BytesIO(stream)))
    return [_parse_publish(first, body, 0, five=True) for first, body in packets]


def _parse_publish(first: int, body: bytes, connection: int, *, five: bool) -> Publish:
    (length,) = struct.unpack_from(">H", body)
    topic, at, qos = body[2 : 2 + length].decode(), 2 + length, first >> 1 & 3
    packet_id = 0
    if qos:
        (packet_id,) = struct.unpack_from(">H", body, at)
        at += 2
    properties = b""
    if five:
        size, shift = 0, 0
        while True:
            byte = body[at]
            size |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                break
        properties, at = body[at : at + size], at + size
    return Publish(topic, body[at:], qos, bool(first & 1), packet_id, connection, properties)


def _read_packets(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    with connection.makefile("rb") as stream:
        yield from _packets_of(stream)


def _packets_of(stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    while head := stream.read(1):
        size, shift = 0, 0
        while True:
            byte = stream.read(1)
            if not byte:
                return
            size |= (byte[0] & 127) << shift
            shift += 7
            if byte[0] < 128:
                break
        yield head[0], stream.read(size)
