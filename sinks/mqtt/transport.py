"""How a connection to a broker is made; the only module that knows paho-mqtt.

paho connects (TCP, TLS, websocket) and writes CONNECT with all that belongs to it; from then on its socket is ours, and paho
is not asked to do anything any more. What is wrong with the rest of it, as of 2.2.0, each enough for this decision:

- `is_published()` and `wait_for_publish()` say that an event was published which the broker has refused, or raise for ever
  although it was delivered. With QoS 2 a refusal in a PUBREC is not even told to a callback.
- What was published while offline waits in memory, twice the truth when there is a journal, and is sent again without regard
  to the window; one topic that the broker does not like then ends every later connection, too.
- An exception in a callback ends its network thread without a word. `loop_stop()` waits for ever for an acknowledgement.
- The broker's limits (Receive Maximum, Maximum Packet Size) are ignored, 3.1 is tried silently when 3.1.1 is refused, and the
  reason for which TLS 1.3 refused our certificate is dropped.
- A second of CPU publishes 30,000 events; packets that are joined and read in bulk make it several times as many.
"""

import contextlib
import os
import socket
import ssl
import threading
import time
from functools import partial
from typing import Any, Final, Literal, NamedTuple, Protocol, cast

from paho.mqtt.client import Client, _WebsocketWrapper
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.sink import Unavailable
from sinks.classification import connection_error
from sinks.mqtt.packets import Malformed
from sinks.mqtt.settings import Address

_QUICKACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)


class Profile(NamedTuple):
    """How to connect, and as whom.

    Attributes:
        address: Where to.
        protocol: Version of MQTT.
        client_id: Our name.
        username: User name.
        password: Password.
        context: How to do TLS.
        timeout: Seconds that each step of connecting, and a reply to a ping, may take.
        keepalive: Seconds of silence after which the broker gives us up, and half of it.
        will: Topic, payload and QoS of the last will, which is retained.
    """

    address: Address
    protocol: Literal["5", "3.1.1"]
    client_id: str
    username: str | None
    password: str | None
    context: ssl.SSLContext | None
    timeout: float
    keepalive: int
    will: tuple[str, bytes, int] | None


class Limits(NamedTuple):
    """What the broker allows."""

    receive_maximum: int = 65_535
    max_packet: int = 1 << 28
    max_qos: int = 2
    retain: bool = True


class Socket(Protocol):
    """What paho's sockets have in common: plain, TLS and its own for websockets."""

    def recv(self, size: int, /) -> bytes:
        """As `socket.recv`."""

    def send(self, data: bytes, /) -> int:
        """As `socket.send`; 0 means that the same data has to be given again."""

    def close(self) -> None:
        """As `socket.close`."""

    def fileno(self) -> int:
        """As `socket.fileno`."""


class _Websocket(_WebsocketWrapper):
    """paho's websocket answering pings properly: its own answers have no mask, and may cut a frame in two."""

    def __init__(self, **kwargs: Any) -> None:
        self._replies = bytearray()
        super().__init__(**kwargs)

    def _create_frame(self, opcode: int, data: bytearray, do_masking: int = 1) -> bytearray:  # noqa: ARG002 - always
        """Make a frame of data, or send a reply, and end the reading that asked for it as paho does after a reply."""
        frame = super()._create_frame(opcode, data)
        if opcode == self.OPCODE_BINARY:
            replies, self._replies = self._replies, bytearray()
            return replies + frame
        if self._sendbuffer:
            self._sendbuffer += frame
        else:
            self._replies += frame
            with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                del self._replies[: self._socket.send(self._replies)]
        raise BlockingIOError


class _TimedClient(Client):
    """paho's client with an end to connecting: for the answer of a websocket it has a timeout for each byte, and none for all.

    Attributes:
        late: Whether connecting was ended because it took too long.
    """

    late = False
    _same: socket.socket | None = None

    def connect_within(self, seconds: float, *args: Any, **kwargs: Any) -> MQTTErrorCode:
        """As `connect`, for no longer than that, not counting the look-up of the host's name."""
        timer = threading.Timer(seconds, self._end)
        timer.daemon = True
        timer.start()
        try:
            return self.connect(*args, **kwargs)
        finally:
            timer.cancel()
            timer.join()
            if self._same is not None:
                self._same.close()

    def _create_socket_connection(self) -> socket.socket:
        connection: socket.socket = super()._create_socket_connection()
        # TLS takes the socket over and leaves this one empty; a second descriptor is the same to the system.
        self._same = socket.socket(fileno=os.dup(connection.fileno()))
        return connection

    def _create_socket(self) -> Any:
        if self._transport != "websockets":
            return super()._create_socket()
        plain = self._create_socket_connection()
        connection = self._ssl_wrap_socket(plain) if self._ssl else plain
        connection.settimeout(self._connect_timeout)
        return _Websocket(
            socket=connection,
            host=self._host,
            port=self._port,
            is_ssl=self._ssl,
            path=self._websocket_path,
            extra_headers=self._websocket_extra_headers,
        )

    def _end(self) -> None:
        self.late = True
        if self._same is not None:
            with contextlib.suppress(OSError):
                self._same.shutdown(socket.SHUT_RDWR)


class Opened:
    """A socket on which CONNECT was sent. The client is kept, since it would close the socket with its own end.

    Args:
        profile: How to connect.

    Raises:
        Unavailable: It is not possible.
    """

    def __init__(self, profile: Profile) -> None:
        address, self._client = profile.address, _make_client(profile)
        # Connecting, TLS and the websocket, each of which has a timeout of its own; connecting has one for each address.
        connect = partial(self._client.connect_within, 3 * profile.timeout)
        began = time.monotonic()
        try:
            if profile.protocol == "5":
                code = connect(address.host, address.port, profile.keepalive, clean_start=True)
            else:
                code = connect(address.host, address.port, profile.keepalive)
        except (OSError, ValueError) as error:
            reason, words = connection_error(error)
            if self._client.late or reason == "timeout":
                reason, words = "timeout", f"no connection within {round(time.monotonic() - began, 1):g} s"
            raise Unavailable(f"{address}: {words}", reason) from error
        found = self._client.socket()
        # CONNECT has a few hundred bytes, and a fresh socket takes them at once.
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or found is None or self._client.want_write():
            raise Unavailable(f"{address}: the connection was closed{early_hint(profile)}", "unreachable")
        self.socket = cast("Socket", found)
        # paho's own socket for websockets hides the real one; a second descriptor is the same to the system.
        self._same = socket.socket(fileno=os.dup(self.socket.fileno()))
        self._same.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def pending(self) -> int:
        """Bytes that TLS has read from the system already; a websocket takes them in small bites, and stops at a ping."""
        pending = getattr(self.socket, "pending", None)
        return int(pending()) if pending is not None else 0

    def hurry(self) -> None:
        """Have the system confirm at once what has arrived.

        Most brokers send each acknowledgement by itself and leave Nagle's algorithm on. That keeps the last one back until the
        one before was confirmed, for which the system takes 40 ms if there is nothing to send. The option does not stay set.
        """
        if _QUICKACK is not None:
            with contextlib.suppress(OSError):
                self._same.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def abort(self) -> None:
        """End the connection, which whoever waits for it will notice."""
        with contextlib.suppress(OSError):
            self._same.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self.socket.close()
        self._same.close()


def read_limits(properties: bytes, keepalive: int) -> tuple[Limits, int]:
    """Read what a CONNACK says about limits, and the keepalive that the broker wants.

    Args:
        properties: What follows its reason code.
        keepalive: What we asked for.

    Raises:
        Malformed: It can't be read.
    """
    said = Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]
    try:
        said.unpack(properties)  # type: ignore[no-untyped-call]
    except Exception as error:  # What paho raises here is of many kinds, KeyError and IndexError among them.
        raise Malformed("a malformed CONNACK") from error
    default = Limits()
    limits = Limits(
        getattr(said, "ReceiveMaximum", default.receive_maximum),
        getattr(said, "MaximumPacketSize", default.max_packet),
        getattr(said, "MaximumQoS", default.max_qos),
        bool(getattr(said, "RetainAvailable", default.retain)),
    )
    return limits, getattr(said, "ServerKeepAlive", keepalive) or keepalive


def early_hint(profile: Profile) -> str:
    """Say what it may mean that the broker closes the connection before it answers CONNECT.

    With TLS 1.3 a server refuses our certificate when we already think that all is well, and what it says about that may be
    lost with the connection.
    """
    if profile.context is None:
        return ""
    return "; perhaps the broker wants a certificate of ours (`cert_file`), or another one"


def _make_client(profile: Profile) -> _TimedClient:
    client = _TimedClient(
        CallbackAPIVersion.VERSION2,
        client_id=profile.client_id,
        protocol=MQTTProtocolVersion.MQTTv5 if profile.protocol == "5" else MQTTProtocolVersion.MQTTv311,
        transport="tcp" if profile.address.websocket_path is None else "websockets",
        reconnect_on_failure=False,
    )
    client.connect_timeout = profile.timeout
    if profile.address.websocket_path is not None:
        client.ws_set_options(path=profile.address.websocket_path)
    if profile.context is not None:
        client.tls_set_context(profile.context)
    if profile.username is not None:
        client.username_pw_set(profile.username, profile.password)
    if profile.will is not None:
        topic, payload, qos = profile.will
        client.will_set(topic, payload, qos=qos, retain=True)
    return client
