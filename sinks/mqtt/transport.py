"""Connecting to a broker with paho-mqtt; the only module that imports it.

paho connects (TCP, TLS, websocket) and writes CONNECT. From then on only its socket is used; docs/decisions/0007 says why.
"""

import contextlib
import os
import socket
import ssl
import time
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from paho.mqtt.client import Client, _WebsocketWrapper
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bridge.deadline import call_within
from bridge.sink import Unavailable
from bridge.tls import tls_context
from sinks.classification import connection_error
from sinks.mqtt.packets import Malformed
from sinks.mqtt.settings import MqttSettings

_QUICKACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)


class Profile(NamedTuple):
    """The parameters of a connection; `will` has the topic, the payload and the QoS of the last will, which is retained."""

    settings: MqttSettings
    protocol: Literal["5", "3.1.1"]
    client_id: str
    will: tuple[str, bytes, int] | None


class Limits(NamedTuple):
    """The broker's limits."""

    receive_maximum: int = 65_535
    max_packet: int = 1 << 28
    max_qos: int = 2
    retain: int = 1


class _Websocket(_WebsocketWrapper):
    """paho's websocket with correct pongs: paho sends them without a mask, and in the middle of another frame."""

    def __init__(self, *args: Any) -> None:
        self._replies = bytearray()
        super().__init__(*args)

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


class Transport(Client):
    """A socket on which CONNECT was sent. The client of paho would close it when it is collected.

    Attributes:
        stream: The socket, or one of TLS, or what paho has for a websocket, with the same methods.

    Raises:
        Unavailable: It can't be made.
    """

    _late = False

    def __init__(self, profile: Profile) -> None:
        settings, address, began = profile.settings, profile.settings.address, time.monotonic()
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=profile.client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if profile.protocol == "5" else MQTTProtocolVersion.MQTTv311,
            transport="tcp" if address.websocket_path is None else "websockets",
            reconnect_on_failure=False,
        )
        # A second descriptor can shut the connection down, and set its options: TLS and websockets hide the first.
        self._duplicate: socket.socket | None = None
        self.connect_timeout = settings.timeout
        if address.websocket_path is not None:
            self.ws_set_options(path=address.websocket_path)
        if address.tls:
            self.tls_set_context(tls_context(settings))
        if settings.username is not None:
            self.username_pw_set(settings.username, settings.password.get_secret_value() if settings.password else None)
        if profile.will is not None:
            topic, payload, qos = profile.will
            self.will_set(topic, payload, qos=qos, retain=True)
        options: dict[str, Any] = {"clean_start": True} if profile.protocol == "5" else {}
        connect = partial(self.connect, address.host, address.port, int(settings.keepalive), **options)
        try:
            # TCP, TLS and the websocket have a timeout each; paho has one for each byte that a websocket answers.
            code = call_within(3 * settings.timeout, connect, cut=self.abort, discard=lambda _: self._sock_close())
        except (OSError, ValueError) as error:
            self._close_duplicate()
            reason, words = connection_error(error)
            if reason == "timeout":
                words = f"no connection within {round(time.monotonic() - began, 1):g} s"
            raise Unavailable(f"{address}: {words}", reason) from error
        connected = self.socket()
        # CONNECT has a few hundred bytes, which fit into the send buffer of a new socket.
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS or connected is None or self._duplicate is None or self.want_write():
            self._close_duplicate()
            raise Unavailable(f"{address}: the connection was closed{early_hint(profile)}", "unreachable")
        self.stream: Any = connected
        self._duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _create_socket_connection(self) -> socket.socket:
        connection: socket.socket = super()._create_socket_connection()
        if self._late:
            # The name's look-up took too long. A CONNECT now would end the session that has been opened meanwhile.
            connection.close()
            raise TimeoutError("too late")
        self._duplicate = socket.socket(fileno=os.dup(connection.fileno()))
        return connection

    def _create_socket(self) -> Any:
        if self._transport != "websockets":
            return super()._create_socket()
        plain = self._create_socket_connection()
        connection = self._ssl_wrap_socket(plain) if self._ssl else plain
        connection.settimeout(self._connect_timeout)
        extra = self._websocket_extra_headers
        return _Websocket(connection, self._host, self._port, self._ssl, self._websocket_path, extra)

    def quickack(self) -> None:
        """Send the pending TCP acknowledgement at once. The option does not stay set.

        Many brokers send each PUBACK by itself, with Nagle's algorithm on: after TCP has acknowledged the one before, for which
        Linux waits up to 40 ms if there is nothing to send.
        """
        if _QUICKACK is not None and self._duplicate is not None:
            with contextlib.suppress(OSError):
                self._duplicate.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def abort(self) -> None:
        """Shut the connection down, so that a thread that waits for it returns."""
        self._late = True
        if self._duplicate is not None:
            with contextlib.suppress(OSError):
                self._duplicate.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self.stream.close()
        self._close_duplicate()

    def _close_duplicate(self) -> None:
        if self._duplicate is not None:
            self._duplicate.close()


def read_limits(properties: bytes, keepalive: int) -> tuple[Limits, int]:
    """Return the limits and the keep-alive in seconds of the properties of a CONNACK; `keepalive` was sent in CONNECT.

    Raises:
        Malformed: The properties can't be decoded.
    """
    answer = Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]
    try:
        answer.unpack(properties)  # type: ignore[no-untyped-call]
    except Exception as error:  # paho raises exceptions of many types here, KeyError and IndexError among them.
        raise Malformed("a malformed CONNACK") from error
    names = ("ReceiveMaximum", "MaximumPacketSize", "MaximumQoS", "RetainAvailable")
    limits = Limits(*[getattr(answer, name, default) for name, default in zip(names, Limits(), strict=True)])
    return limits, getattr(answer, "ServerKeepAlive", keepalive) or keepalive


def early_hint(profile: Profile) -> str:
    """Return a hint for a connection that the broker closes before it answers CONNECT.

    A server refuses the client's certificate after the handshake of TLS 1.3, and its alert may be lost with the connection.
    """
    guesses = [] if not profile.settings.address.tls else ["wants a certificate of ours (`cert_file`), or another one"]
    if profile.protocol == "5":
        guesses.append("knows only MQTT 3.1.1 (set `protocol`)")
    elif profile.will is not None:
        guesses.append("does not take our will, which is retained (set `availability_topic: null`)")
    return f"; perhaps the broker {', or '.join(guesses)}" if guesses else ""
