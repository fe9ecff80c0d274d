"""HTTP on one port: `/metrics`, `/healthz`, `/readyz`, `/status`. Read only, and without secrets."""

import json
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Final, NamedTuple

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from bridge.health import Health
from bridge.journal import Closed

log = structlog.get_logger(__name__)

_JSON: Final = "application/json; charset=utf-8"
_TEXT: Final = "text/plain; charset=utf-8"
_CLIENT_TIMEOUT: Final = 10
"""Seconds that a client may take for its request."""

_INDEX: Final = b"""event-bridge

/metrics  for Prometheus
/healthz  whether the process works
/readyz   whether it can do its job, or why not
/status   everything, as JSON
"""


class Answer(NamedTuple):
    """What is sent back."""

    status: HTTPStatus
    content_type: str
    body: bytes


class Server:
    """Answers in threads of its own, from the moment it is made; `url` is where, from this machine.

    Args:
        host: Where to listen.
        port: Where to listen; 0 lets the system choose, see `port`.
        health: Whom to ask.
        registry: The metrics.
        last_tick: Tells the monotonic time of the main thread's last tick.

    Raises:
        OSError: The address can't be listened on.
    """

    def __init__(
        self, host: str, port: int, *, health: Health, registry: CollectorRegistry, last_tick: Callable[[], float]
    ) -> None:
        self._health = health
        self._registry = registry
        self._last_tick = last_tick
        self._server = _Listener((host, port), _request_class(self._answer))
        self.port: int = self._server.server_address[1]
        shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - only compared
        self.url = f"http://[{shown}]:{self.port}" if ":" in shown else f"http://{shown}:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, path: str, accept: str) -> Answer:
        try:
            return self._look(path, accept)
        except Closed:
            return _verdict(["the process is stopping"])
        except Exception:
            # The library would hang up without a word.
            log.exception("a request could not be answered because of a bug", path=path)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, _TEXT, b"internal error, see the log\n")

    def _look(self, path: str, accept: str) -> Answer:
        match path:
            case "/metrics":
                encode, content_type = _encoding(accept)
                return Answer(HTTPStatus.OK, content_type, encode(self._registry))
            case "/healthz":
                alive = self._health.alive(self._last_tick())
                return _verdict([] if alive else ["the main thread does not tick any more"])
            case "/readyz":
                return _verdict(self._health.problems())
            case "/status":
                return Answer(HTTPStatus.OK, _JSON, json.dumps(self._health.status(), indent=2).encode() + b"\n")
            case "/":
                return Answer(HTTPStatus.OK, _TEXT, _INDEX)
            case _:
                return Answer(HTTPStatus.NOT_FOUND, _TEXT, _INDEX)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    # The library's five would make the sixth of several clients at once wait for a second.
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], request_class: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, request_class)

    def server_bind(self) -> None:
        """Bind, without the look-up of our own name that the library does here: it takes seconds where there is no DNS."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is nobody's business."""


def _request_class(answer: Callable[[str, str], Answer]) -> type[BaseHTTPRequestHandler]:
    class Request(BaseHTTPRequestHandler):
        timeout = _CLIENT_TIMEOUT
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(answer(self.path.partition("?")[0], self.headers.get("Accept", "")), with_body=True)

        def do_HEAD(self) -> None:
            self._send(answer(self.path.partition("?")[0], self.headers.get("Accept", "")), with_body=False)

        def _send(self, found: Answer, *, with_body: bool) -> None:
            self.send_response(found.status)
            self.send_header("Content-Type", found.content_type)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            if with_body:
                self.wfile.write(found.body)

        def log_message(self, *_: object) -> None:
            """Say nothing: probes come every few seconds."""

    return Request


def _encoding(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """Which of the formats of metrics the client asks for; plain text if it makes no sense."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        # The library compares versions without a look at them.
        return choose_encoder("")


def _verdict(problems: list[str]) -> Answer:
    status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
    return Answer(status, _TEXT, ("\n".join(problems) or "ok").encode() + b"\n")
