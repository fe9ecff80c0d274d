"""One connection to a broker that does as it is told."""

import base64
import hashlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.sink import Unavailable
from sinks.mqtt import packets
from sinks.mqtt.connection import Connection
from sinks.mqtt.settings import MqttSettings
from sinks.mqtt.transport import Profile
from tests.contract.mqtt_broker import Broker
from tests.support.servers.listener import Listener
from tests.support.servers.receiver import make_certificate, server_context

PUBACK_IN_TWO_FRAMES = b"\x82\x02\x40\x02\x82\x02\x00\x01"
PUBACK_BEHIND_A_PING = b"\x89\x00\x82\x04\x40\x02\x00\x01"


class WebsocketBroker(Listener):
    """Accepts connections through a websocket, and then does what a test says.

    Attributes:
        script: What is done when CONNECT was answered.
    """

    def __init__(self, script: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> None:
        self.script = script
        super().__init__(context)

    def talk(self, connection: socket.socket, number: int) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(4096)
        found = re.search(rb"(?i)sec-websocket-key: *(\S+)", head)
        assert found
        digest = hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        connection.sendall(answer + b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n")
        connection.recv(4096)
        connection.sendall(b"\x82\x05\x20\x03\x00\x00\x00")
        self.script(connection)


def read_frames(connection: socket.socket) -> Iterator[tuple[int, bool, bytes]]:
    """Read the frames of a client: opcode, whether there is a mask, and payload."""
    with connection.makefile("rb") as stream:
        while head := stream.read(2):
            masked, size = bool(head[1] & 0x80), head[1] & 0x7F
            if size > 125:
                size = int.from_bytes(stream.read(2 if size == 126 else 8))
            mask = stream.read(4) if masked else bytes(4)
            repeated = int.from_bytes((mask * (size // 4 + 1))[:size])
            yield head[0] & 0x0F, masked, (int.from_bytes(stream.read(size)) ^ repeated).to_bytes(size)


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.stop()


@pytest.fixture
def connection(broker: Broker) -> Iterator[Connection]:
    connection = connect(broker.url)
    yield connection
    connection.close()


def connect(url: str, certificate: Path | None = None) -> Connection:
    return Connection(Profile(MqttSettings(url=url, ca_file=certificate), "5", "home", None))


def send_until_it_fails(connection: Connection) -> None:
    while True:
        connection.send(packets.PING)


def test_what_has_come_before_sending_failed_can_still_be_received(broker: Broker, connection: Connection) -> None:
    with connection.in_use():
        broker.end_connections(b"\x40\x02\x00\x01\xe0\x01\x89")
        with pytest.raises(Unavailable, match="server busy"):
            send_until_it_fails(connection)

        assert connection.receive(0.0) == [(packets.PUBACK, b"\x00\x01")]
        with pytest.raises(Unavailable, match="server busy"):
            connection.receive(0.0)


@pytest.mark.parametrize("frames", [PUBACK_IN_TWO_FRAMES, PUBACK_BEHIND_A_PING], ids=["in two frames", "behind a ping"])
def test_what_tls_has_read_already_is_not_waited_for(tmp_path: Path, frames: bytes) -> None:
    def script(connection: socket.socket) -> None:
        go.wait(10)
        connection.sendall(frames)
        done.wait(20)

    go, done = threading.Event(), threading.Event()
    certificate, key = make_certificate(tmp_path)
    broker = WebsocketBroker(script, server_context(certificate, key))
    connection = connect(f"wss://localhost:{broker.port}", certificate)
    with connection.in_use():
        go.set()
        began = time.monotonic()
        found = connection.receive(began + 10)
        took = time.monotonic() - began
    done.set()
    connection.close()
    broker.stop()

    assert found == [(packets.PUBACK, b"\x00\x01")]
    assert took < 8


@pytest.mark.parametrize("size", [0, 6_000_000], ids=["while nothing is sent", "while a frame is half sent"])
def test_a_ping_of_the_websocket_is_answered_with_a_mask_and_between_frames(size: int) -> None:
    def script(connection: socket.socket) -> None:
        go.wait(10)
        connection.sendall(b"\x89\x02hi")
        for frame in read_frames(connection):
            frames.append(frame)
            if frame[0] == 10:
                break

    go, frames = threading.Event(), list[tuple[int, bool, bytes]]()
    broker = WebsocketBroker(script)
    connection = connect(f"ws://127.0.0.1:{broker.port}")
    with connection.in_use():
        if size:
            connection.send(bytes(size))
        go.set()
        with pytest.raises(Unavailable, match="the broker closed the connection"):
            connection.receive(time.monotonic() + 10)
    connection.close()
    broker.stop()

    assert frames == ([(2, True, bytes(size))] if size else []) + [(10, True, b"hi")]


def test_closing_never_raises_whatever_the_broker_acknowledges(broker: Broker, connection: Connection) -> None:
    broker.answer = lambda _: b"\x40\x00"

    connection.close(packets.encode_publish(b"a", b"b", qos=1, retain=False, packet_id=1, properties=b""))

    assert len(broker.tried) == 1
