"""HTTP on one port: `/metrics`, `/healthz`, `/readyz`, `/status`, open to all; and the operations, which are not."""

import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final

import msgspec
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from bridge.admin.health import Health, without_texts
from bridge.admin.listener import Listener
from bridge.admin.route import JSON, TEXT, Access, Request, Response, Route, text_response
from bridge.tls import ServerContext

log = structlog.get_logger(__name__)

_INDEX: Final = b"""event-bridge

/metrics  for Prometheus
/healthz  whether the process works
/readyz   whether it can do its job, or why not
/status   everything, as JSON

for the commands dead-letters, backlog, journal and quarantine, and for clients with http.token:
/dead-letters  /quarantine  /journal  /journal/events  /journal/verify  /journal/check  POST /-/reload
"""


def url_of(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL of an address for clients on this machine: a server on all addresses is on loopback, too."""
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - only compared
    return f"{scheme}://[{shown}]:{port}" if ":" in shown else f"{scheme}://{shown}:{port}"


class Server:
    """The HTTP server, which answers in threads of its own as soon as it is made.

    Attributes:
        port: The port listened on.
        url: The address for clients on this machine.

    Args:
        host: Where to listen.
        port: Where to listen; 0 lets the system choose, see `port`.
        health: Answers the probes and the status.
        registry: The metrics.
        last_tick: Returns the monotonic time of the main thread's last tick.
        operations: The routes of the operations, which not everybody may use.
        tls: See `Listener`.
        access: See `Listener`.

    Raises:
        OSError: The address can't be listened on.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        health: Health,
        registry: CollectorRegistry,
        last_tick: Callable[[], float],
        operations: Mapping[str, Route],
        tls: ServerContext | None = None,
        access: Access | None = None,
    ) -> None:
        self._health = health
        self._registry = registry
        self._last_tick = last_tick
        # Whoever asks for much waits for the others who do, so that a probe finds the process at leisure.
        self._one_at_a_time = threading.Lock()
        routes = {
            "/": Route("GET", lambda _: Response(HTTPStatus.OK, TEXT, _INDEX)),
            "/metrics": Route("GET", self._metrics),
            "/healthz": Route("GET", self._alive, is_probe=True),
            "/readyz": Route("GET", self._ready, is_probe=True),
            "/status": Route("GET", self._status),
            **operations,
        }
        not_found = Route("GET", lambda _: Response(HTTPStatus.NOT_FOUND, TEXT, _INDEX))
        self._server = Listener((host, port), routes, not_found, tls, access)
        self.port: int = self._server.server_address[1]
        self.url = url_of(host, self.port, "https" if tls else "http")
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def _metrics(self, request: Request) -> Response:
        encode, content_type = _encoding(request.accept)
        with self._one_at_a_time:
            return Response(HTTPStatus.OK, content_type, encode(self._registry))

    def _alive(self, _: Request) -> Response:
        return _probe([] if self._health.alive(self._last_tick()) else ["the main thread does not tick any more"])

    def _ready(self, request: Request) -> Response:
        return _probe(self._health.problems(texts=request.is_trusted))

    def _status(self, request: Request) -> Response:
        with self._one_at_a_time:
            found = self._health.status(texts=request.is_trusted)
            status = msgspec.json.encode(found if request.is_trusted else without_texts(found))
        return Response(HTTPStatus.OK, JSON, msgspec.json.format(status, indent=2) + b"\n")


def _encoding(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """Return the format of metrics that the client asks for; plain text if the header makes no sense."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        # The library compares versions without checking them.
        return choose_encoder("")


def _probe(problems: list[str]) -> Response:
    return text_response(HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK, "\n".join(problems) or "ok")
