"""HTTP on one port: `/metrics`, `/healthz`, `/readyz`, `/status`, open to all; and the operations, which are not."""

import json
import threading
from collections.abc import Callable
from email.message import Message
from http import HTTPStatus
from typing import Final

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from bridge.admin.auth import refusal
from bridge.admin.exchange import JSON, TEXT, Answer, Request, words
from bridge.admin.health import Health
from bridge.admin.listener import Listener, Rules
from bridge.admin.routes import Routes
from bridge.journal import Closed

log = structlog.get_logger(__name__)

_INDEX: Final = b"""event-bridge

/metrics  for Prometheus
/healthz  whether the process works
/readyz   whether it can do its job, or why not
/status   everything, as JSON

for the commands dead-letters, backlog, journal and quarantine; from this machine only, or with http.token:
/dead-letters  /quarantine  /journal  /journal/events  /journal/verify  /journal/check
"""


def url_of(host: str, port: int) -> str:
    """Where one who listens on an address is found from this machine: one on all addresses is on loopback, too."""
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - only compared
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


class Server:
    """Answers in threads of its own, from the moment it is made; `url` is where, from this machine.

    Args:
        host: Where to listen.
        port: Where to listen; 0 lets the system choose, see `port`.
        health: Whom to ask.
        registry: The metrics.
        last_tick: Tells the monotonic time of the main thread's last tick.
        routes: The paths that not everybody may use.

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
        routes: Routes,
    ) -> None:
        self._health = health
        self._registry = registry
        self._last_tick = last_tick
        self._routes = routes
        self._server = Listener((host, port), Rules(self._method, self._refusal, self._answer))
        self.port: int = self._server.server_address[1]
        self.url = url_of(host, self.port)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()

    def _method(self, path: str) -> str:
        return self._routes.method(path) or "GET"

    def _refusal(self, path: str, client: str, headers: Message) -> Answer | None:
        return refusal(client, headers, self._routes.token()) if self._routes.method(path) else None

    def _answer(self, request: Request, accept: str) -> Answer:
        try:
            if self._routes.method(request.path):
                return self._routes.answer(request)
            return self._look(request.path, accept)
        except Closed:
            return _verdict(["the process is stopping"])
        except Exception:
            # The library would hang up without a word.
            log.exception("a request could not be answered because of a bug", path=request.path)
            return words(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error, see the log")

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
                return Answer(HTTPStatus.OK, JSON, json.dumps(self._health.status(), indent=2).encode() + b"\n")
            case "/":
                return Answer(HTTPStatus.OK, TEXT, _INDEX)
            case _:
                return Answer(HTTPStatus.NOT_FOUND, TEXT, _INDEX)


def _encoding(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    """Which of the formats of metrics the client asks for; plain text if it makes no sense."""
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        # The library compares versions without a look at them.
        return choose_encoder("")


def _verdict(problems: list[str]) -> Answer:
    return words(HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK, "\n".join(problems) or "ok")
