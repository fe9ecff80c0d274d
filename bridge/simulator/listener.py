"""The HTTP side of the simulator: it answers handshakes and hands accepted sockets on."""

import secrets
import socket
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

import msgspec
import structlog

from bridge.simulator.handshake import Refusal, Subscription

log = structlog.get_logger(__name__)

Answer = Callable[[str, Mapping[str, str]], Subscription | Refusal]


class Listener(ThreadingHTTPServer):
    """HTTP server that answers handshakes, each in a thread of its own.

    Args:
        address: Host and port to listen on.
        answer: Decides about a handshake by its path with query and its headers.
        adopt: Takes over the socket of an accepted handshake.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], answer: Answer, adopt: Callable[[socket.socket, Subscription], None]) -> None:
        self.answer = answer
        self.adopt = adopt
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        try:
            super().__init__(address, _Handshake)
        except OSError as error:
            raise OSError(error.errno, f"can't listen on {address[0]}:{address[1]}: {error.strerror}") from None

    def server_bind(self) -> None:
        """Bind without asking the name service for the name of this machine, as HTTPServer would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the base class's signature
        """A client that leaves in the middle of a handshake deserves no traceback on the terminal."""
        log.debug("handshake failed", client=str(client_address))


class _Handshake(BaseHTTPRequestHandler):
    """Answers one handshake."""

    protocol_version = "HTTP/1.1"
    server_version = "event-bridge-simulator"
    sys_version = ""
    timeout = 10
    server: Listener

    def do_GET(self) -> None:
        """Upgrade to a websocket, or refuse."""
        self.close_connection = True
        answer = self.server.answer(self.path, {name.lower(): value for name, value in self.headers.items()})
        if isinstance(answer, Refusal):
            body = msgspec.json.encode({"error": answer.error})
            self._head(
                answer.status,
                {**answer.headers, "Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"},
            )
            self.wfile.write(body)
            return
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": answer.accept}
        if "liveid=" not in self.headers.get("Cookie", ""):
            headers["Set-Cookie"] = f"liveid={secrets.token_hex(8)}; Path=/"
        self._head(101, headers)
        # The server closes the socket that it knows; what is behind it lives on in this one.
        self.server.adopt(socket.socket(fileno=self.connection.detach()), answer)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing: the request's query may hold credentials."""
