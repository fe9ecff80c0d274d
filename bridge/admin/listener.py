"""HTTP connections: a bounded number of them, read with limits. What is answered is not decided here."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, ClassVar, Final, NamedTuple

from bridge.admin.exchange import TEXT, Answer, Request, words

CONNECTIONS: Final = 64
"""Connections at a time; one more is told so and closed. Each has a thread."""

BODY: Final = 64 * 1024
"""Bytes of a request's body at most: the numbers of as many dead letters as one request may name, and more."""

_DIGITS: Final = 10
"""Of a length at most; Python refuses to read a number of thousands of them."""

_CLIENT_TIMEOUT: Final = 10
"""Seconds that a client may take for its request, and to read the answer."""

_BUSY: Final = b"too many connections\n"
_REFUSED: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: %s\r\nContent-Length: %d\r\n"
    b"Retry-After: 1\r\nConnection: close\r\n\r\n%s"
) % (TEXT.encode(), len(_BUSY), _BUSY)


class Rules(NamedTuple):
    """What is to be done with a request.

    Attributes:
        method: Tells the method of a path, GET or POST.
        refusal: Tells why a request for a path is refused, by the address it came from and its headers; None if it is not.
        answer: Answers a request; it gets the Accept header, too.
    """

    method: Callable[[str], str]
    refusal: Callable[[str, str, Message], Answer | None]
    answer: Callable[[Request, str], Answer]


class Listener(ThreadingHTTPServer):
    """Listens on an address, and serves every connection in a thread of its own.

    Args:
        address: Host and port.
        rules: What is to be done with a request.

    Attributes:
        asking: Connections whose request is not read to its end yet, and since when, in monotonic seconds.

    Raises:
        OSError: The address can't be listened on.
    """

    daemon_threads = True
    # The library's five would make the sixth of several clients at once wait for a second.
    request_queue_size = CONNECTIONS

    def __init__(self, address: tuple[str, int], rules: Rules) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._free = threading.BoundedSemaphore(CONNECTIONS)
        self.asking: dict[socket.socket, float] = {}
        super().__init__(address, type("Connection", (_Connection,), {"rules": rules}))

    def service_actions(self) -> None:
        """Hang up on who takes too long; the timeout of a socket begins anew with every byte."""
        now = time.monotonic()
        for connection, since in list(self.asking.items()):
            if now - since > _CLIENT_TIMEOUT:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, if there is one left for it."""
        if self._free.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except BaseException:
                self._free.release()
                raise
            return
        # This is the thread that accepts: it must not wait for anybody.
        request.settimeout(0)
        with suppress(OSError):
            request.send(_REFUSED)
            request.shutdown(socket.SHUT_WR)
            # With something unread, closing would take back what was sent.
            request.recv(BODY)
        self.close_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def server_bind(self) -> None:
        """Bind, without the look-up of our own name that the library does here: it takes seconds where there is no DNS."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is nobody's business."""


class _Connection(BaseHTTPRequestHandler):
    rules: ClassVar[Rules]
    server: Listener
    timeout = _CLIENT_TIMEOUT
    # Head and body are written one after the other; the second would wait 40 ms for the client to confirm the first.
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    server_version = "event-bridge"
    sys_version = ""

    def handle_one_request(self) -> None:
        """Read a request and answer it."""
        self.server.asking[self.connection] = time.monotonic()
        try:
            super().handle_one_request()
        finally:
            self.server.asking.pop(self.connection, None)

    def do_GET(self) -> None:
        self._respond("GET")

    def do_HEAD(self) -> None:
        self._respond("GET", with_body=False)

    def do_POST(self) -> None:
        self._respond("POST")

    def _respond(self, method: str, *, with_body: bool = True) -> None:
        path, _, query = self.path.partition("?")
        refused = self._refusal(method, path)
        if refused is not None or (
            method == "GET" and ("Content-Length" in self.headers or "Transfer-Encoding" in self.headers)
        ):
            # What comes behind the headers stays unread, and must not be taken for the next request.
            self.close_connection = True
        if refused is None:
            body = self.rfile.read(int(self.headers["Content-Length"])) if method == "POST" else b""
            self.server.asking.pop(self.connection, None)
            refused = self.rules.answer(Request(method, path, query, body), self.headers.get("Accept", ""))
        self._send(refused, with_body=with_body)

    def _refusal(self, method: str, path: str) -> Answer | None:
        allowed = self.rules.method(path)
        if method != allowed:
            return words(HTTPStatus.METHOD_NOT_ALLOWED, f"only {allowed}", {"Allow": allowed})
        refused = self.rules.refusal(path, self.client_address[0], self.headers)
        return refused or (_unreadable(self.headers) if method == "POST" else None)

    def _send(self, found: Answer, *, with_body: bool) -> None:
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
        """Say nothing: probes come every few seconds."""


def _unreadable(headers: Message) -> Answer | None:
    """Why the body of a request is not read; None if it is."""
    if "Content-Type" not in headers or headers.get_content_type() != "application/json":
        # A form of a web page can't send this type.
        return words(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
    length = headers.get("Content-Length", "")
    if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in headers:
        return words(HTTPStatus.LENGTH_REQUIRED, "the body needs a Content-Length")
    if len(length) > _DIGITS or int(length) > BODY:
        return words(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body must not be larger than {BODY} bytes")
    return None
