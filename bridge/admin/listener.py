"""HTTP connections: a bounded number, read with limits. Routes decide on the responses."""

import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader
from socket import SocketIO
from socketserver import TCPServer
from typing import Any, Final

import structlog

from bridge.admin.headers import is_of_a_web_page, is_well_formed, unreadable
from bridge.admin.route import Access, Request, Response, Route, text_response
from bridge.journal import Closed
from bridge.tls import ServerContext

log = structlog.get_logger(__name__)

CONNECTIONS: Final = 64
"""Most connections at a time; each has a thread. For one more, one is closed: the one that has sent no request for longest, or
else the oldest. So a probe, which sends its request at once, gets through beside any number of others."""

HEAD: Final = 16 * 1024
"""Bytes of a request line and its headers at most."""

_CLIENT_TIMEOUT: Final = 10
"""Seconds that a client may take for its request, and to read the answer."""

_ASKS_SECONDS: Final = 0.1
_LIVES_SECONDS: Final = 1.0
"""How long a connection that sends no request, or any other, is left alone at least, although others want its place."""

_MAKE_ROOM_SECONDS: Final = 5.0
"""How long a new connection waits for a place."""

_WRONG_TOKEN_SECONDS: Final = 0.5
"""Time that a wrong token costs its client."""


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
        accepted: When each connection was accepted, in monotonic seconds.

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
        self.accepted: dict[socket.socket, float] = {}
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
        """Give a connection a thread; if none is left, that of another connection."""
        until = time.monotonic() + _MAKE_ROOM_SECONDS
        while not self._free.acquire(blocking=False):
            self._make_room()
            if self._free.acquire(timeout=0.05):
                break
            if time.monotonic() > until:
                self.close_request(request)
                return
        self.waiting[request] = time.monotonic(), True
        self.accepted[request] = time.monotonic()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def _make_room(self) -> None:
        now, waiting = time.monotonic(), list(self.waiting.items())
        silent = [(since, connection) for connection, (since, asks) in waiting if asks and now - since > _ASKS_SECONDS]
        others = [(self.accepted.get(connection, now), connection) for connection, _ in waiting]
        found = silent or [(since, connection) for since, connection in others if now - since > _LIVES_SECONDS]
        if found:
            _, connection = min(found, key=lambda item: item[0])
            self.waiting.pop(connection, None)
            _cut(connection)

    @property
    def is_crowded(self) -> bool:
        """True if more than half of the places are taken: a connection is not kept then."""
        return len(self.accepted) > CONNECTIONS // 2

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.waiting.pop(request, None)
            self.accepted.pop(request, None)
            self._free.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in its thread; with TLS, after the handshake, which takes no longer than a request may."""
        if self.tls is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(_CLIENT_TIMEOUT)
        with self.tls.current().wrap_socket(request, server_side=True, do_handshake_on_connect=False) as secured:
            self.waiting[secured] = time.monotonic(), True
            self.accepted[secured] = self.accepted.pop(request, time.monotonic())
            self.waiting.pop(request, None)
            try:
                secured.do_handshake()
                super().finish_request(secured, client_address)
            finally:
                self.waiting.pop(secured, None)
                self.accepted.pop(secured, None)

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
    has_bare_cr = False

    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(self.left + 1 if size is None or not 0 <= size <= self.left else size)
        self.left -= len(line)
        if self.left < 0:
            raise HTTPException
        # Some take it for the end of a line, and what follows for another header.
        self.has_bare_cr = self.has_bare_cr or b"\r" in line[:-2]
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
        self.rfile.left, self.rfile.has_bare_cr = HEAD, False
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
            if route.is_operation:
                # An operator's: it may take long, and is not given up for others.
                self.server.waiting.pop(self.connection, None)
            access = self.server.access
            # A probe must not wait for files of secrets, and is no place to try tokens.
            trusted = access is not None and (access.is_command if route.is_probe else access.is_trusted)(self.headers)
            accept = self.headers.get("Accept", "")
            response = _respond(route, Request(method, path, query, body, accept, self.client_address[0], trusted))
        self.close_connection = self.close_connection or self.server.is_crowded
        self._send(response, with_body=with_body)

    def _refusal(self, method: str, route: Route) -> Response | None:
        access = self.server.access
        if self.headers.defects or self.rfile.has_bare_cr or not is_well_formed(self.headers):
            return text_response(HTTPStatus.BAD_REQUEST, "malformed headers")
        if method != route.method:
            return text_response(HTTPStatus.METHOD_NOT_ALLOWED, f"only {route.method}", {"Allow": route.method})
        if not route.is_probe and is_of_a_web_page(self.headers, str(self.connection.getsockname()[0])):
            return text_response(HTTPStatus.FORBIDDEN, "not for web pages: ask by localhost or an address, without Origin")
        if not (route.is_probe or self._is_certified() or (access and access.is_command(self.headers))):
            return text_response(HTTPStatus.FORBIDDEN, "needs a client certificate (http.tls.client_ca_file)")
        refusal = access.refusal(self.headers, needed=route.is_operation) if access and not route.is_probe else None
        if refusal and access and "Authorization" in self.headers:
            access.note_wrong_token(self.client_address[0])
            # Ends early if the connection is closed to make room.
            hung_up = select.poll()
            hung_up.register(self.connection, 0)
            hung_up.poll(_WRONG_TOKEN_SECONDS * 1000)
        return refusal or (unreadable(self.headers) if method == "POST" else None)

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


def _respond(route: Route, request: Request) -> Response:
    """Respond, whatever happens: the library would close the connection without a word."""
    try:
        return route.respond(request)
    except Closed:
        return text_response(HTTPStatus.SERVICE_UNAVAILABLE, "the process is stopping")
    except Exception:
        log.exception("a request could not be answered because of a bug", path=request.path)
        return text_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error, see the log")
