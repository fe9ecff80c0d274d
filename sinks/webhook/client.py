"""HTTP requests that end in time, over one connection that is kept alive.

The timeouts of urllib3 (and of every client over sockets) are for one operation on the socket: a receiver that sends a byte a
second keeps a request alive for hours. Here a request has a deadline, and the socket itself is told what is left of it before
each operation; so connecting, TLS, sending and receiving together take no longer. No extra threads are needed. Only
the look-up of the host's name is not covered: the system's resolver has its own timeouts and can't be interrupted.
"""

import contextlib
import logging
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from typing import Any, Final, NamedTuple
from urllib.request import getproxies, proxy_bypass

import urllib3.connection
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Url, make_headers, parse_url
from urllib3.util.wait import wait_for_read

_MAX_BODY: Final = 64 * 1024
"""Bytes of a response's body that are read to be able to use the connection again; with more than that it is closed."""

CLOSED: Final = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""How a connection says that the far side has closed it."""

_SOCKET_OPTIONS: Final = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if sys.platform == "linux":
    # An idle connection stays known to the firewalls on its way, and is found dead by the kernel if it isn't.
    _SOCKET_OPTIONS.append((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60))

# Where a header can't be parsed it logs the whole URL, which may hold a token.
logging.getLogger(urllib3.connection.__name__).setLevel(logging.ERROR)


class NoConnection(Exception):
    """No connection could be opened; the cause says why."""


class Answer(NamedTuple):
    """What the far side answered. Names of headers are found in any case."""

    status: int
    headers: Mapping[str, str]


class Deadline:
    """A point in time that several waits have in common."""

    def __init__(self) -> None:
        self._at = 0.0

    def set(self, seconds: float) -> None:
        """Move it to `seconds` from now."""
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then.

        Raises:
            TimeoutError: It has passed.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class _TimedSocket(socket.socket):
    """A socket whose operations end at a deadline, once it has one."""

    deadline: Deadline | None = None

    def _arm(self) -> None:
        if self.deadline is not None:
            self.settimeout(self.deadline.left())

    # These three are all that http.client, and the TLS socket below, send and receive with.
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
    """The same over TLS; made by a context whose `sslsocket_class` it is."""


class _TimedConnection(urllib3.connection.HTTPConnection):
    """A connection whose connecting, sending and receiving end at a deadline."""

    sock: _TimedSocket | None

    def __init__(self, *args: Any, deadline: Deadline, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deadline = deadline

    def _new_conn(self) -> _TimedSocket:
        """Connect to the first of the host's addresses that answers.

        Each gets its share of the time, so that one that says nothing does not use up everything.
        """
        addresses = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        failure: OSError = socket.gaierror(socket.EAI_NONAME, "the name has no address")
        for index, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = _TimedSocket(family, kind, protocol)
            try:
                for option in _SOCKET_OPTIONS:
                    sock.setsockopt(*option)
                sock.settimeout(self.deadline.left() / (len(addresses) - index))
                sock.connect(address)
                # For the TLS handshake, which keeps one timeout for the whole of it (`_ssl.c`).
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


def read_url(text: str) -> Url:
    """Read the address of a receiver.

    Raises:
        ValueError: It is not one. The error does not repeat it, since it may hold a token.
    """
    try:
        url = parse_url(text)
        (url.host or "").encode("idna")
    except (LocationParseError, UnicodeError):
        raise ValueError("not a URL") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError("must look like https://host/path or http://host/path")
    if url.auth is not None:
        raise ValueError("has credentials in it: set `username` and `password`, or `token`, instead")
    return url


class TimedClient:
    """One connection to one receiver, kept alive between requests.

    It is used by one thread at a time; only `close` may come from another.

    Args:
        url: Where to.
        timeout: Seconds that a request takes at most.
        context: How to do TLS, if the URL says https.

    Raises:
        NoConnection: The environment names a proxy that can't be used.
    """

    def __init__(self, url: Url, timeout: float, context: ssl.SSLContext | None) -> None:
        self._url = url
        self._timeout = timeout
        self._deadline = Deadline()
        self._proxy = _proxy_for(url)
        self._connection = self._make_connection(context)
        self._used = threading.Lock()
        self._closed = False

    def connect(self) -> None:
        """Connect, if that is not done yet.

        Raises:
            NoConnection: It is not possible.
        """
        with self._in_use():
            self._ensure_connected()

    def request(self, method: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Make a request, and return what the far side answered.

        Raises:
            NoConnection: The far side can't be reached.
            TimeoutError: The far side did not answer in time.
            OSError: The connection broke.
            http.client.HTTPException: What came is not HTTP.
        """
        with self._in_use():
            fresh = self._ensure_connected()
            try:
                return self._exchange(method, headers, body)
            except CLOSED:
                if fresh or self._closed:
                    raise
            # The far side closed an idle connection at the very moment when we used it.
            self._connection.close()
            self._connect()
            return self._exchange(method, headers, body)

    def close(self) -> None:
        """Close the connection. A request that is under way in another thread fails soon."""
        self._closed = True
        if self._used.acquire(blocking=False):
            self._connection.close()
            self._used.release()
        elif (sock := self._connection.sock) is not None:
            # Only wakes the other thread: the descriptor is its own to close, or another socket might get the number.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        """Start the clock; leave no connection behind whose state is not known, or that nobody will use."""
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
        port = near.port or (443 if near.scheme == "https" else 80)
        if context is None:
            return _TimedConnection(_host(near), port, deadline=self._deadline)
        context.sslsocket_class = _TimedTlsSocket
        return _TimedTlsConnection(_host(near), port, deadline=self._deadline, proxy=self._proxy, ssl_context=context)

    def _ensure_connected(self) -> bool:
        """Connect unless there is a connection that looks alive; return whether it is a new one."""
        if self._connection.sock is not None and _is_quiet(self._connection.sock):
            return False
        self._connection.close()
        self._connect()
        return True

    def _connect(self) -> None:
        try:
            if self._proxy is not None:
                credentials = make_headers(proxy_basic_auth=self._proxy.auth) if self._proxy.auth else {}
                self._connection.set_tunnel(_host(self._url), self._url.port or 443, credentials)
            self._connection.connect()
        except (OSError, HTTPException) as error:
            raise NoConnection from error

    def _exchange(self, method: str, headers: Mapping[str, str], body: bytes) -> Answer:
        connection = self._connection
        # The far side may answer and close before it has read all, with 413 for example; its answer is what counts.
        with contextlib.suppress(*CLOSED):
            connection.request(
                method, self._url.request_uri, body=body, headers=headers, preload_content=False, decode_content=False
            )
        response = connection.getresponse()
        try:
            drained = len(response.read(_MAX_BODY + 1)) <= _MAX_BODY
        except (HTTPError, OSError):
            # Nothing depends on the body, and the status has been said.
            drained = False
        if not drained:
            connection.close()
        return Answer(response.status, response.headers)


def _is_quiet(sock: socket.socket) -> bool:
    """Whether nothing has arrived on an idle connection, no end and no answer to a question that wasn't asked."""
    if not wait_for_read(sock, timeout=0.0):
        return True
    if not isinstance(sock, ssl.SSLSocket):
        return False
    sock.settimeout(0.0)
    try:
        sock.recv(1)
    except ssl.SSLWantReadError:
        return True  # TLS itself had something to say: session tickets (RFC 8446, section 4.6.1).
    except OSError:
        pass
    return False


def _host(url: Url) -> str:
    return (url.host or "").strip("[]")


def _proxy_for(url: Url) -> Url | None:
    """The proxy that the environment names for an https URL (`HTTPS_PROXY`, `NO_PROXY`).

    Raises:
        NoConnection: It is not a proxy that we can use.
    """
    proxy = getproxies().get("https")
    if url.scheme != "https" or not proxy or proxy_bypass(url.netloc or ""):
        return None
    try:
        parsed = parse_url(proxy)
    except LocationParseError:
        parsed = Url()
    if not parsed.host or parsed.scheme not in {"http", None}:
        raise NoConnection from OSError("HTTPS_PROXY must look like http://host:port")
    return parsed
