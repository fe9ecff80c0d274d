"""HTTP connections: a bounded number, read with limits. Routes decide on the responses."""

import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from ipaddress import ip_address
from socket import SocketIO
from socketserver import TCPServer
from typing import Any, Final

import structlog

from bridge.admin.route import Access, Request, Response, Route, text_response
from bridge.field_types import is_loopback
from bridge.journal import Closed
from bridge.tls import ServerContext

log = structlog.get_logger(__name__)

CONNECTIONS: Final = 64
"""Most connections at a time; each has a thread. For one more, the one that has waited longest is closed. So a probe, which
sends its request at once, gets through beside any number of silent clients."""

HEAD: Final = 16 * 1024
"""Bytes of a request line and its headers at most."""

BODY: Final = 64 * 1024
"""Bytes of a request's body at most: the numbers of as many dead letters as one request may name, and more."""

_DIGITS: Final = 10
"""Most digits of a length; Python refuses to read numbers of thousands of digits."""

_CLIENT_TIMEOUT: Final = 10
"""Seconds that a client may take for its request, and to read the answer."""

_MAKE_ROOM_SECONDS: Final = 1.0
"""How long a closed connection's thread may take to end; it takes milliseconds."""


class Listener(ThreadingHTTPServer):
    """Listens on an address, and serves every connection in a thread of its own.

    Args:
        address: Host and port.
        routes: The routes by path.
        not_found: The route of all other paths.
        tls: The context of connections; None for plain HTTP.
        access: Knows the tokens.

    Attributes:
        waiting: Connections that wait for their client, since when (monotonic seconds), and whether for the end of a request.
            They may be closed. A connection of an operation is not among them.

    Raises:
        OSError: The address can't be listened on.
    """

    daemon_threads = True
    # Clients that the kernel accepts for us. One more waits for a second; the library's five are soon used up.
    request_queue_size = 1024

    def __init__(
        self,
        address: tuple[str, int],
        routes: Mapping[str, Route],
        not_found: Route,
        tls: ServerContext | None = None,
        access: Access | None = None,
    ) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self.waiting: dict[socket.socket, tuple[float, bool]] = {}
        self.routes = routes
        self.not_found = not_found
        self.tls = tls
        self.access = access
        super().__init__(address, _Connection)

    def service_actions(self) -> None:
        """Cut connections whose request takes too long; the timeout of a socket begins anew with every byte."""
        now = time.monotonic()
        for connection, (since, asks) in list(self.waiting.items()):
            if asks and now - since > _CLIENT_TIMEOUT:
                _cut(connection)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread; if none is left, that of the connection that has waited longest."""
        if not self._free.acquire(blocking=False):
            # First those whose request is not complete, then those that read their response.
            waiting = list(self.waiting.items())
            if waiting:
                oldest, _ = min(waiting, key=lambda item: (not item[1][1], item[1][0]))
                self.waiting.pop(oldest, None)
                _cut(oldest)
            if not self._free.acquire(timeout=_MAKE_ROOM_SECONDS):
                self.close_request(request)
                return
        self.waiting[request] = time.monotonic(), True
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.waiting.pop(request, None)
            self._free.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in its thread; with TLS, after the handshake, which takes no longer than a request may."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(_CLIENT_TIMEOUT)
        with self.tls.current().wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secured:
            self.waiting[secured] = time.monotonic(), True
            self.waiting.pop(request, None)
            try:
                secured.do_handshake()
                super().finish_request(secured, client_address)
            finally:
                self.waiting.pop(secured, None)

    def server_bind(self) -> None:
        """Bind, without the look-up of our own name that the library does here: it takes seconds where there is no DNS."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that go away in the middle."""


def _cut(connection: socket.socket) -> None:
    """End a connection, whose thread closes it then."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Reader(BufferedReader):
    """Reads a connection, with a limit for the head of a request."""

    left = HEAD

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(self.left + 1 if size is None or not 0 <= size <= self.left else size)
        self.left -= len(line)
        if self.left < 0:
            raise HTTPException
        return line


class _Connection(BaseHTTPRequestHandler):
    server: Listener
    rfile: _Reader
    timeout = _CLIENT_TIMEOUT
    # Head and body are written one after the other; the second would wait 40 ms for the client to confirm the first.
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    server_version = "event-bridge"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile = _Reader(SocketIO(self.connection, "r"))

    def handle_one_request(self) -> None:
        """Read a request and answer it."""
        self.server.waiting[self.connection] = time.monotonic(), True
        self.rfile.left = HEAD
        try:
            super().handle_one_request()
        except HTTPException:
            # Its first line was too long, so that the library knows nothing of it yet.
            self.requestline = self.request_version = self.command = ""
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        finally:
            self.close_connection = self.close_connection or self.rfile.left < 0

    def do_GET(self) -> None:
        self._respond("GET")

    def do_HEAD(self) -> None:
        self._respond("GET", with_body=False)

    def do_POST(self) -> None:
        self._respond("POST")

    def _respond(self, method: str, *, with_body: bool = True) -> None:
        path, _, query = self.path.partition("?")
        route = self.server.routes.get(path, self.server.not_found)
        response = self._refusal(method, route)
        if response is not None or (
            (method == "GET") is ("Content-Length" in self.headers) or "Transfer-Encoding" in self.headers
        ):
            # Bytes after the headers may stay unread, and must not be taken for the next request.
            self.close_connection = True
        if response is None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0"))) if method == "POST" else b""
            self.server.waiting[self.connection] = time.monotonic(), False
            if route.refuse:
                # An operator's: it may take long, and is not given up for others.
                self.server.waiting.pop(self.connection, None)
            trusted = self.server.access is not None and self.server.access.is_trusted(self.headers)
            accept = self.headers.get("Accept", "")
            response = _respond(route, Request(method, path, query, body, accept, self.client_address[0], trusted))
        self._send(response, with_body=with_body)

    def _refusal(self, method: str, route: Route) -> Response | None:
        access = self.server.access
        if self.headers.defects or len(self.headers.get_all("Host", [])) > 1:
            return text_response(HTTPStatus.BAD_REQUEST, "malformed headers")
        if method != route.method:
            return text_response(HTTPStatus.METHOD_NOT_ALLOWED, f"only {route.method}", {"Allow": route.method})
        if not route.is_probe and _is_of_a_web_page(self.headers, str(self.connection.getsockname()[0])):
            return text_response(HTTPStatus.FORBIDDEN, "not for web pages: ask by localhost or an address, without Origin")
        if not (route.is_probe or self._is_certified() or (access and access.is_command(self.headers))):
            return text_response(HTTPStatus.FORBIDDEN, "needs a client certificate (http.tls.client_ca_file)")
        refusal = route.refuse(self.client_address[0], self.headers) if route.refuse else None
        return refusal or (_unreadable(self.headers) if method == "POST" else None)

    def _is_certified(self) -> bool:
        if self.server.tls is None or not self.server.tls.asks:
            return True
        return isinstance(self.connection, ssl.SSLSocket) and bool(self.connection.getpeercert())

    def _send(self, found: Response, *, with_body: bool) -> None:
        self.send_response(found.status)
        self.send_header("Content-Type", found.content_type)
        self.send_header("Content-Length", str(len(found.body)))
        for name, value in found.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if with_body:
            self.wfile.write(found.body)

    def log_message(self, *_: object) -> None:
        """Log nothing: probes come every few seconds."""


def _is_of_a_web_page(headers: Message, our_address: str) -> bool:
    """Tell whether a browser sends this for a page of somebody else.

    It names the page's origin (`Origin`) or its relation to us (`Sec-Fetch-Site`). Or the page's name was made to point to this
    machine ("DNS rebinding"): then it stands in `Host`, whereas who asks for loopback writes localhost or an address.
    """
    host = str(headers.get("Host", ""))
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return (
        "Origin" in headers
        or headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}
        or (is_loopback(our_address) and not (is_loopback(name) or _is_address(name)))
    )


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _respond(route: Route, request: Request) -> Response:
    """Respond, whatever happens: the library would close the connection without a word."""
    try:
        return route.respond(request)
    except Closed:
        return text_response(HTTPStatus.SERVICE_UNAVAILABLE, "the process is stopping")
    except Exception:
        log.exception("a request could not be answered because of a bug", path=request.path)
        return text_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error, see the log")


def _unreadable(headers: Message) -> Response | None:
    """Return why the body of a request can't be read; None if it can, or if there is none."""
    if headers.get("Content-Length", "0") == "0" and "Transfer-Encoding" not in headers:
        return None
    if "Content-Type" not in headers or headers.get_content_type() != "application/json":
        # A form of a web page can't send this type.
        return text_response(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
    length = headers.get("Content-Length", "")
    if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in headers:
        return text_response(HTTPStatus.LENGTH_REQUIRED, "the body needs a Content-Length")
    if len(length) > _DIGITS or int(length) > BODY:
        return text_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body must not be larger than {BODY} bytes")
    return None
