"""A connection to a Docker Engine: one GET, and the bytes of its answer, framed by h11.

The standard library's reader of chunked bodies breaks for good when a read times out, which on a silent stream is the rule.
It also gives one chunk at a time, where one read of the socket may bring hundreds.
"""

import contextlib
import socket
import ssl
import time
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import h11

from bridge.deadline import connect

MAX_BODY_BYTES: Final = 1024 * 1024
"""Limit of a body that is read as a whole."""


class Address(NamedTuple):
    """Address of an Engine: a path, or a host and a port."""

    path: str
    host: str = "localhost"
    port: int = 0

    @classmethod
    def parse(cls, url: str, *, tls: bool = False) -> "Address":
        """Read `unix:///path` or `tcp://host[:port]`; settings have no other."""
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return cls(parts.path)
        return cls("", parts.hostname or "localhost", parts.port or (2376 if tls else 2375))

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class Connection:
    """One request and its answer. Every step may take `timeout` seconds; a limit for all of them is the caller's matter.

    Attributes:
        status: Status of the answer.
        reason: Its reason phrase.
        length: Length of its body; None if the body is chunked, or ends with the connection.
        over: The body has ended.
    """

    def __init__(self, address: Address, timeout: float, context: ssl.SSLContext | None) -> None:
        self.status = 0
        self.reason = ""
        self.length: int | None = None
        self.over = False
        self._address = address
        self._timeout = timeout
        self._context = context
        self._socket: socket.socket | None = None
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=64 * 1024)

    def get(self, path: str) -> None:
        """Connect, ask for `path` and read the head of the answer.

        Raises:
            OSError: The connection can't be made, or broke.
            h11.ProtocolError: The answer is not HTTP.
        """
        sock = self._connect()
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        headers = [("Host", f"{host}:{self._address.port}" if self._address.port else host), ("Accept-Encoding", "identity")]
        sock.sendall(self._http.send(h11.Request(method="GET", target=path, headers=headers)) or b"")
        self._http.send(h11.EndOfMessage())
        data = sock.recv(64 * 1024)
        if not data:
            raise ConnectionResetError("Remote end closed connection without response")
        if data[:5] != b"HTTP/"[: len(data)]:
            raise h11.RemoteProtocolError(f"illegal status line: {data[:80]!r}")  # h11 would wait for more.
        self._http.receive_data(data)
        while not isinstance(event := self._http.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                self._http.receive_data(sock.recv(64 * 1024))
        fields = dict(event.headers)
        self.status, self.reason = event.status_code, event.reason.decode("latin-1")
        if b"transfer-encoding" not in fields and b"content-length" in fields:
            self.length = int(fields[b"content-length"])

    def read_all(self) -> bytes:
        """Read the body, up to `MAX_BODY_BYTES`; raises as `get` does."""
        body = self.buffered()
        while not self.over and len(body) < MAX_BODY_BYTES:
            self._http.receive_data(self._open_socket().recv(64 * 1024))
            body += self.buffered()
        return body[:MAX_BODY_BYTES]

    def buffered(self) -> bytes:
        """Take the part of the body that has arrived already.

        Raises:
            h11.RemoteProtocolError: The body is broken.
        """
        content: list[bytes] = []
        while isinstance(event := self._http.next_event(), h11.Data):
            content.append(event.data)
        self.over = self.over or isinstance(event, h11.EndOfMessage)
        return b"".join(content)

    def read_more(self) -> bytes | None:
        """Read the socket once and return what it brings of the body; None if the connection was closed; raises as `get`."""
        data = self._open_socket().recv(256 * 1024)
        if not data:
            return None
        self._http.receive_data(data)
        return self.buffered()

    def wait_at_most(self, seconds: float) -> None:
        """Set the timeout of a read."""
        self._open_socket().settimeout(seconds)

    def cut(self) -> None:
        """Wake a blocked read, also in another thread; a TLS socket's own `shutdown` is not made for that."""
        with contextlib.suppress(OSError):
            if self._socket is not None:
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Release the socket. May be called twice."""
        if self._socket is not None:
            self._socket.close()

    def _connect(self) -> socket.socket:
        if self._address.path:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(self._timeout)
            self._socket.connect(self._address.path)
            return self._socket
        self._socket = connect(self._address.host, self._address.port, time.monotonic() + self._timeout)
        # A dead peer is found in a minute instead of never: the stream itself has no heartbeat.
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                self._socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._context:
            host = self._address.host
            # The handshake is a step of its own, so that `cut` finds the TLS socket during it.
            self._socket = self._context.wrap_socket(self._socket, server_hostname=host, do_handshake_on_connect=False)
            self._socket.do_handshake()
        return self._socket

    def _open_socket(self) -> socket.socket:
        if self._socket is None:
            raise OSError("not connected")
        return self._socket
