"""Connecting to a broker with paho-mqtt; the only module that imports it.

paho connects (TCP, TLS, websocket) and writes CONNECT. From then on only its socket is used. The rest of paho 2.2.0 is not
used, for any of these reasons:

- `is_published()` and `wait_for_publish()` report an event as published that the broker refused, or raise for ever although it
  was delivered. With QoS 2 a refusal in a PUBREC reaches no callback.
- Messages published while offline are kept in memory, beside the journal, and are sent again without regard to the window. One
  topic that the broker refuses then ends every later connection.
- An exception in a callback ends its network thread silently. `loop_stop()` waits for an acknowledgement without a limit.
- It ignores the broker's limits (Receive Maximum, Maximum Packet Size), silently tries 3.1 when 3.1.1 is refused, and drops the
  reason for which TLS 1.3 refused the client's certificate.
- It publishes 30,000 events per second of CPU. Joining packets and reading in bulk publishes several times as many.
"""

import contextlib
import os
import socket
import ssl
import time
from functools import partial
from typing import Any, Final, Literal, NamedTuple, Protocol, cast

from paho.mqtt.client import Client, _WebsocketWrapper
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.deadline import call_within
from bridge.sink import Unavailable
from sinks.classification import connection_error
from sinks.mqtt.packets import Malformed
from sinks.mqtt.settings import Address

_QUICKACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)


class Profile(NamedTuple):
    """The parameters of a connection.

    Attributes:
        address: The broker.
        protocol: Version of MQTT.
        client_id: Client id.
        username: User name.
        password: Password.
        context: TLS context; None without TLS.
        timeout: Seconds for each step of connecting, and for the answer to a ping.
        keepalive: Keep-alive in seconds, as sent in CONNECT; the broker disconnects after 1.5 times that without a packet.
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
    """The broker's limits."""

    receive_maximum: int = 65_535
    max_packet: int = 1 << 28
    max_qos: int = 2
    retain: bool = True


class Socket(Protocol):
    """The interface of paho's sockets: plain, TLS and its own for websockets."""

    def recv(self, size: int, /) -> bytes:
        """As `socket.recv`."""

    def send(self, data: bytes, /) -> int:
        """As `socket.send`; 0 means that the same data has to be given again."""

    def close(self) -> None:
        """As `socket.close`."""

    def fileno(self) -> int:
        """As `socket.fileno`."""


class _Websocket(_WebsocketWrapper):
    """paho's websocket with correct pongs: paho sends them without a mask, and in the middle of another frame."""

    def __init__(self, **kwargs: Any) -> None:
        self._replies = bytearray()
        super().__init__(**kwargs)

    def _create_frame(self, opcode: int, data: bytearray, do_masking: int = 1) -> bytearray:  # noqa: ARG002 - always
        """Make a frame of data. If it is a reply, send it, and end the read that asked for it as paho does."""
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
    """paho's client with a total timeout for connecting. For the answer of a websocket, paho has one for each byte only."""

    _duplicate: socket.socket | None = None
    _late = False

    def connect_within(self, seconds: float, *args: Any, **kwargs: Any) -> MQTTErrorCode:
        """Call `connect` with a total timeout."""
        connect = partial(self.connect, *args, **kwargs)
        try:
            return call_within(seconds, connect, cut=self._shut_down, discard=lambda _: self._sock_close())
        finally:
            if self._duplicate is not None:
                self._duplicate.close()

    def _create_socket_connection(self) -> socket.socket:
        connection: socket.socket = super()._create_socket_connection()
        # TLS detaches this socket. A second descriptor can still shut the connection down.
        self._duplicate = socket.socket(fileno=os.dup(connection.fileno()))
        if self._late:
            # The name's look-up took too long. A CONNECT now would end the session that has been opened meanwhile.
            self._duplicate.close()
            connection.close()
            raise TimeoutError("too late")
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

    def _shut_down(self) -> None:
        self._late = True
        if self._duplicate is not None:
            with contextlib.suppress(OSError):
                self._duplicate.shutdown(socket.SHUT_RDWR)


class Transport:
    """A socket on which CONNECT was sent. It keeps paho's client, which would close the socket when it is collected.

    Args:
        profile: The parameters of the connection.

    Raises:
        Unavailable: It can't be made.
    """

    def __init__(self, profile: Profile) -> None:
        address, self._client = profile.address, _make_client(profile)
        # TCP, TLS and the websocket have a timeout each.
        connect = partial(self._client.connect_within, 3 * profile.timeout)
        began = time.monotonic()
        try:
            if profile.protocol == "5":
                code = connect(address.host, address.port, profile.keepalive, clean_start=True)
            else:
                code = connect(address.host, address.port, profile.keepalive)
        except (OSError, ValueError) as error:
            reason, words = connection_error(error)
            if reason == "timeout":
                words = f"no connection within {round(time.monotonic() - began, 1):g} s"
            raise Unavailable(f"{address}: {words}", reason) from error
        connected = self._client.socket()
        # CONNECT has a few hundred bytes, which fit into the send buffer of a new socket.
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or connected is None or self._client.want_write():
            raise Unavailable(f"{address}: the connection was closed{early_hint(profile)}", "unreachable")
        self.socket = cast("Socket", connected)
        # paho's websocket hides the real socket. A second descriptor can still set its options and shut it down.
        self._duplicate = socket.socket(fileno=os.dup(self.socket.fileno()))
        self._duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def pending(self) -> int:
        """Bytes in the buffer of TLS. A websocket reads them in small parts, and stops at a ping."""
        pending = getattr(self.socket, "pending", None)
        return int(pending()) if pending is not None else 0

    def quickack(self) -> None:
        """Send the pending TCP acknowledgement at once. The option does not stay set.

        Most brokers send each PUBACK by itself, with Nagle's algorithm on. The last one is then delayed until TCP has
        acknowledged the previous one, for which Linux waits up to 40 ms if there is nothing to send.
        """
        if _QUICKACK is not None:
            with contextlib.suppress(OSError):
                self._duplicate.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def abort(self) -> None:
        """Shut the connection down, so that a thread that waits for it returns."""
        with contextlib.suppress(OSError):
            self._duplicate.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self.socket.close()
        self._duplicate.close()


def read_limits(properties: bytes, keepalive: int) -> tuple[Limits, int]:
    """Return the limits and the keep-alive of a CONNACK.

    Args:
        properties: The bytes after its reason code.
        keepalive: The keep-alive that was sent in CONNECT.

    Raises:
        Malformed: The properties can't be decoded.
    """
    answer = Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]
    try:
        answer.unpack(properties)  # type: ignore[no-untyped-call]
    except Exception as error:  # paho raises exceptions of many types here, KeyError and IndexError among them.
        raise Malformed("a malformed CONNACK") from error
    default = Limits()
    limits = Limits(
        getattr(answer, "ReceiveMaximum", default.receive_maximum),
        getattr(answer, "MaximumPacketSize", default.max_packet),
        getattr(answer, "MaximumQoS", default.max_qos),
        bool(getattr(answer, "RetainAvailable", default.retain)),
    )
    return limits, getattr(answer, "ServerKeepAlive", keepalive) or keepalive


def early_hint(profile: Profile) -> str:
    """Return a hint for a connection that the broker closes before it answers CONNECT.

    Some brokers do so at a version of MQTT, or at a will, that they do not support.

    With TLS 1.3 a server refuses the client's certificate after the client has finished the handshake, and its alert may be
    lost with the connection.
    """
    guesses = [] if profile.context is None else ["wants a certificate of ours (`cert_file`), or another one"]
    if profile.protocol == "5":
        guesses.append("knows only MQTT 3.1.1 (set `protocol`)")
    elif profile.will is not None:
        guesses.append("does not take our will, which is retained (set `availability_topic: null`)")
    return f"; perhaps the broker {', or '.join(guesses)}" if guesses else ""


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
