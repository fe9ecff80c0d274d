"""HTTP requests with a total deadline, over one connection that is kept alive.

The timeouts of urllib3 are for one operation on the socket: a receiver that sends a byte per second keeps a request alive for
hours. Here a request has a deadline, and the socket gets the remaining time as its timeout before each operation. So
connecting, TLS, sending and receiving end in time together, without a thread. Only the look-up of the host's name is not
covered: the system's resolver has its own timeouts and can't be interrupted.
"""

import contextlib
import logging
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPException, HTTPResponse, parse_headers
from typing import Any, Final, NamedTuple

import urllib3.connection
from urllib3.exceptions import HTTPError
from urllib3.util import Url, make_headers
from urllib3.util.wait import wait_for_read

from sinks.webhook.url import NoConnection, proxy_for

_MAX_BODY_BYTES: Final = 64 * 1024
"""Largest body that is read so that the connection can be used again. With a larger one it is closed."""

CLOSED: Final = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""Exceptions of a connection that the receiver has closed."""

_SOCKET_OPTIONS: Final = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if sys.platform == "linux":
    # Keeps an idle connection known to firewalls, and lets the kernel find one that is dead.
    _SOCKET_OPTIONS.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60))

# For a header that can't be parsed, it logs the whole URL, which may hold a token.
logging.getLogger(urllib3.connection.__name__).setLevel(logging.ERROR)


class Response(NamedTuple):
    """A response. Names of headers are looked up in any case."""

    status: int
    headers: Mapping[str, str]


class Deadline:
    """A point in time shared by several operations."""

    def __init__(self) -> None:
        self._at = 0.0

    def set(self, seconds: float) -> None:
        """Set the deadline to `seconds` from now."""
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Return the remaining seconds.

        Raises:
            TimeoutError: It has passed.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class _TimedSocket(socket.socket):
    """A socket whose operations end at its deadline, if it has one."""

    deadline: Deadline | None = None

    def _arm(self) -> None:
        if self.deadline is not None:
            self.settimeout(self.deadline.left())

    # http.client and the TLS socket below send and receive only with these three.
    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self._arm()
        return super().recv_into(*args, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> int:
        self._arm()
        return super().send(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self._arm()
        super().sendall(*args, **kwargs)


class _TimedTlsSocket(_TimedSocket, ssl.SSLSocket):
    """The same over TLS; the `sslsocket_class` of the context."""


class _FinalResponse(HTTPResponse):
    """A response without the interim ones before it (RFC 9110, 15.2); the library reads over 100 only."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 101 < status < 200:
                return version, status, reason
            parse_headers(self.fp)


class _TimedConnection(urllib3.connection.HTTPConnection):
    """A connection whose connecting, sending and receiving end at a deadline."""

    response_class = _FinalResponse
    sock: _TimedSocket | None

    def __init__(self, *args: Any, deadline: Deadline, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deadline = deadline

    def _new_conn(self) -> _TimedSocket:
        """Connect to the first address of the host that answers. Each gets its share of the remaining time."""
        addresses = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        failure: OSError = socket.gaierror(socket.EAI_NONAME, "the name has no address")
        for index, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = _TimedSocket(family, kind, protocol)
            try:
                for option in _SOCKET_OPTIONS:
                    sock.setsockopt(*option)
                sock.settimeout(self.deadline.left() / (len(addresses) - index))
                sock.connect(address)
                # The TLS handshake has one timeout for all of it (`_ssl.c`).
                sock.settimeout(self.deadline.left())
            except OSError as error:
                sock.close()
                failure = error
            else:
                sock.deadline = self.deadline
                return sock
        raise failure

    def connect(self) -> None:
        super().connect()
        if self.sock is not None:
            self.sock.deadline = self.deadline


class _TimedTlsConnection(_TimedConnection, urllib3.connection.HTTPSConnection):
    """The same over TLS."""


class TimedClient:
    """One connection to one receiver, kept alive between requests.

    One thread uses it at a time; only `close` may come from another.

    Args:
        url: The receiver's URL.
        timeout: Total timeout of a request in seconds.
        context: TLS context for https.

    Raises:
        NoConnection: The environment names a proxy that can't be used.
    """

    def __init__(self, url: Url, timeout: float, context: ssl.SSLContext | None) -> None:
        self._url = url
        self._timeout = timeout
        self._deadline = Deadline()
        self._proxy = proxy_for(url)
        self._connection = self._make_connection(context)
        self._used = threading.Lock()
        self._closed = False

    def connect(self) -> None:
        """Connect unless there is a connection.

        Raises:
            NoConnection: The receiver can't be reached.
        """
        with self._in_use():
            self._ensure_connected()

    def request(self, method: str, headers: Mapping[str, str], body: bytes) -> Response:
        """Send a request, and return the response.

        Raises:
            NoConnection: The receiver can't be reached.
            TimeoutError: The receiver did not answer in time.
            OSError: The connection broke.
            http.client.HTTPException: The answer is not HTTP.
        """
        with self._in_use():
            fresh = self._ensure_connected()
            try:
                return self._exchange(method, headers, body)
            except CLOSED:
                if fresh or self._closed:
                    raise
            # The receiver closed an idle connection just when it was used.
            self._connection.close()
            self._connect()
            return self._exchange(method, headers, body)

    def close(self) -> None:
        """Close the connection. A request in another thread fails soon."""
        self._closed = True
        if self._used.acquire(blocking=False):
            self._connection.close()
            self._used.release()
        elif (sock := self._connection.sock) is not None:
            # Wakes the other thread, which closes the descriptor; closed here, its number could go to another socket.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Start the deadline. Close the connection after an error, and if `close` was called meanwhile."""
        with self._used:
            if self._closed:
                raise NoConnection from ConnectionAbortedError("closed")
            self._deadline.set(self._timeout)
            try:
                yield
            except BaseException:
                self._connection.close()
                raise
            finally:
                if self._closed:
                    self._connection.close()

    def _make_connection(self, context: ssl.SSLContext | None) -> _TimedConnection:
        near = self._proxy or self._url
        host = (near.host or "").strip("[]")
        port = near.port or (443 if near.scheme == "https" else 80)
        if context is None:
            return _TimedConnection(host, port, deadline=self._deadline)
        context.sslsocket_class = _TimedTlsSocket
        return _TimedTlsConnection(host, port, deadline=self._deadline, proxy=self._proxy, ssl_context=context)

    def _ensure_connected(self) -> bool:
        """Connect unless there is a connection that looks alive; return True for a new one."""
        if self._connection.sock is not None and _is_quiet(self._connection.sock):
            return False
        self._connection.close()
        self._connect()
        return True

    def _connect(self) -> None:
        try:
            if self._proxy is not None:
                credentials = make_headers(proxy_basic_auth=self._proxy.auth) if self._proxy.auth else {}
                self._connection.set_tunnel((self._url.host or "").strip("[]"), self._url.port or 443, credentials)
            self._connection.connect()
        except (OSError, HTTPException) as error:
            raise NoConnection from error

    def _exchange(self, method: str, headers: Mapping[str, str], body: bytes) -> Response:
        connection = self._connection
        # The receiver may answer and close before it has read everything, with 413 for example. Its answer counts.
        with contextlib.suppress(*CLOSED):
            connection.request(
                method, self._url.request_uri, body=body, headers=headers, preload_content=False, decode_content=False
            )
        response = connection.getresponse()
        try:
            drained = len(response.read(_MAX_BODY_BYTES + 1)) <= _MAX_BODY_BYTES
        except (HTTPError, OSError):
            # The status is known, and the body is not needed.
            drained = False
        if not drained:
            connection.close()
        return Response(response.status, response.headers)


def _is_quiet(sock: socket.socket) -> bool:
    """True if nothing has arrived on an idle connection: neither its end nor an unrequested response."""
    if not wait_for_read(sock, timeout=0.0):
        return True
    if not isinstance(sock, ssl.SSLSocket):
        return False
    sock.settimeout(0.0)
    try:
        sock.recv(1)
    except ssl.SSLWantReadError:
        return True  # Only TLS session tickets (RFC 8446, section 4.6.1).
    except OSError:
        pass
    return False
