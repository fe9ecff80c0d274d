"""A Stream API server for demos and tests, with faults on demand. The original clients work against it unchanged.

Like the real service it has no replay: an event goes to the connections that are open at that moment. Wire facts are those of
the API's documentation and of the original clients.

One loop owns all connections, makes the events and sends them. It never waits for a client:

- with a rate, a client for which more than 16 MiB are waiting is disconnected;
- at full speed (rate 0), the next events are made when every listening client has taken nearly all that was sent: the slowest
  sets the pace, and no events are made while no client listens;
- in either case a client that takes nothing for `send_timeout` seconds is disconnected.

To end a connection, the simulator sends what waits, perhaps a close frame, and waits two seconds for the client to close its
side.
"""

import asyncio
import itertools
import logging
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from http.client import responses
from typing import Any, Final, Self

import msgspec
import structlog
from websockets.asyncio.server import serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from bridge.simulator.connection import GOING_AWAY, Connection, reached
from bridge.simulator.handshake import Refusal, Subscription, answer_handshake
from bridge.simulator.pace import TICK_SECONDS, Pace
from bridge.simulator.settings import SimulatorSettings
from bridge.simulator.traffic import Batch, Traffic

__all__ = ["Simulator", "SimulatorSettings"]

log = structlog.get_logger(__name__)

_FULL_SPEED_BUFFER_BYTES: Final = 256 * 1024
_MAX_NAMESPACES: Final = 10_000
_MAX_MESSAGE_BYTES: Final = 64 * 1024
_NO_LOG: Final = logging.getLogger("bridge.simulator.websockets")
_NO_LOG.disabled = True  # The library would log requests, whose queries may hold credentials.


class Simulator:
    """The server.

    Attributes:
        settings: Options; see `change`.
        port: The port listened on; if a free one was asked for, known once started.
        handshakes: Count of handshakes, including refused ones.
        sent: Count of different events that were sent to some client.
        requests: If recording, path with query and headers of the latest 1000 handshakes.
        finished: Set when everything was made (see `count` and `replay`) and went out.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        """Read the replay, if there is one.

        Raises:
            OSError: The file to replay can't be read.
            ValueError: A line of it is not a JSON object.
        """
        self.settings = settings
        self.port = settings.port
        self.handshakes = 0
        self.sent = 0
        self.requests: deque[tuple[str, dict[str, str]]] = deque(maxlen=1000)
        self.finished = threading.Event()
        self._uuids: dict[bytes, None] = {}
        self._traffic = Traffic(settings)
        self._pace = Pace()
        self._namespaces: dict[str, None] = {}
        self._connections: dict[Connection, None] = {}
        self._numbers = itertools.count()
        self._started = 0.0
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The URL for clients, without a path."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host)
        return f"ws://[{host}]:{self.port}" if ":" in host else f"ws://{host}:{self.port}"

    @property
    def connections(self) -> int:
        """Count of connected clients."""
        return len(self._connections)

    @property
    def generated(self) -> int:
        """Count of generated events, sent or not."""
        return self._traffic.generated

    @property
    def _expired(self) -> bool:
        return reached(time.monotonic() - self._started, self.settings.credentials_expire)

    def sent_uuids(self) -> list[str]:
        """The uuids of all sent events, in the order in which they were first sent, if recording."""
        return [uuid.decode() for uuid in list(self._uuids)]  # Copied at once: more may be sent meanwhile.

    def change(self, **settings: Any) -> None:
        """Change settings while running; host, port, seed and replay stay what they were at the start.

        Raises:
            ValueError: A value is out of range; the option is named.
        """
        self.settings = replace(self.settings, **settings)
        self.finished.clear()

    def start(self) -> None:
        """Listen; returns when clients can connect. After `stop` it may be called again: same port, the events go on.

        Raises:
            OSError: The address can't be listened on.
        """
        listener = _listen(self.settings.host, self.port)
        self.port = listener.getsockname()[1]
        started: Future[None] = Future()
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(listener, started)), name="simulator", daemon=True)
        self._thread.start()
        started.result()
        log.info("simulator started", url=self.url, seed=self._traffic.seed)

    def stop(self) -> None:
        """Stop listening and end all connections after the events that wait for them. May be called twice."""
        if self._thread is not None:
            self._stopping = True
            self._loop.call_soon_threadsafe(self._wake.set)
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def disconnect_all(self, code: int | None = GOING_AWAY) -> None:
        """End all connections, with a close frame of this code or without one."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._end_all, code)

    def _end_all(self, code: int | None) -> None:
        for connection in self._connections:
            connection.end(code)

    async def _run(self, listener: socket.socket, started: Future[None]) -> None:
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        # The library's types don't say that the connections are those that it was told to create.
        ours: Any = {"handler": self._serve, "process_request": self._answer}
        server = await serve(
            **ours,
            create_connection=Connection,
            sock=listener,
            compression=None,
            server_header="event-bridge-simulator",
            ping_interval=None,
            max_size=_MAX_MESSAGE_BYTES,
            write_limit=_FULL_SPEED_BUFFER_BYTES,
            logger=_NO_LOG,
        )
        self._started = self._swept = time.monotonic()
        self._pace.restart(self._started)
        started.set_result(None)
        while not self._stopping:
            timer = self._loop.call_later(self._step(time.monotonic()), self._wake.set)
            await self._wake.wait()
            timer.cancel()
            self._wake.clear()
        self._end_all(GOING_AWAY)
        server.close(close_connections=False)
        while self._connections:
            await self._wake.wait()
            self._wake.clear()

    def _answer(self, connection: Connection, request: Request) -> Response:
        """Decide about a handshake."""
        headers = {name.lower(): value for name, value in request.headers.raw_items()}
        self.handshakes += 1
        if self.settings.record:
            self.requests.append((request.path, headers))
        answer = answer_handshake(self.settings, request.path, headers, expired=self._expired)
        if isinstance(answer, Subscription) and len(self._namespaces.keys() | {answer.namespace}) > _MAX_NAMESPACES:
            answer = Refusal(404, "too many namespaces")
        if isinstance(answer, Refusal):
            body = msgspec.json.encode({"error": answer.error})
            usual = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            return Response(answer.status, responses.get(answer.status, ""), Headers(answer.headers, **usual), body)
        connection.subscription = answer
        response = connection.protocol.accept(request)
        if "liveid=" not in headers.get("cookie", ""):
            response.headers["Set-Cookie"] = f"liveid={secrets.token_hex(8)}; Path=/"
        return response

    async def _serve(self, connection: Connection) -> None:
        """Keep a connection after its handshake, until it is closed; what the client says is read and dropped."""
        namespace = connection.subscription.namespace
        self._namespaces[namespace] = None
        self._connections[connection] = None
        log.info("client connected", namespace=namespace, connections=len(self._connections))
        connection.begin(next(self._numbers), self._wake)
        connection.age(self.settings, expired=self._expired)
        self._wake.set()
        with suppress(ConnectionClosed):
            async for _ in connection:
                pass
        del self._connections[connection]
        self._wake.set()
        log.info("client gone", namespace=namespace, reason=connection.end_reason, connections=len(self._connections))

    def _step(self, now: float) -> float:
        """Make the events that are due; return the seconds until the next are."""
        if now - self._swept >= TICK_SECONDS:
            self._swept = now
            for connection in self._connections:
                connection.age(self.settings, expired=self._expired)
        if self._traffic.has_ended(self.settings):
            if not any(connection.waiting for connection in self._connections):
                self.finished.set()
            return TICK_SECONDS
        listeners = [connection for connection in self._connections if connection.listening]
        ready = bool(listeners) and not any(connection.paused for connection in listeners)
        count, wait = self._pace.due(now, self.settings, len(self._connections), ready=ready)
        if count:
            self._generate(count, listeners)
        return wait

    def _generate(self, count: int, listeners: Sequence[Connection]) -> None:
        own = self.settings.username
        served = [namespace or own for namespace in self.settings.namespaces] or list(self._namespaces) or [own]
        groups: dict[str | None, list[Connection]] = {None: list(listeners)}
        for connection in listeners:
            groups.setdefault(connection.subscription.namespace, []).append(connection)
        for batch in self._traffic.take(count, served, datetime.now(UTC), self.settings):
            self._fan_out(batch, groups.get(batch.namespace, ()))

    def _fan_out(self, batch: Batch, listeners: Sequence[Connection]) -> None:
        """Give a batch to all listeners whose filter it passes."""
        whole = b"".join([item.frame for item in batch.items]) if listeners else b""
        heard: set[int] = set()
        for connection in listeners:
            items, data = batch.items, whole
            if batch.namespace is None or connection.subscription.filters:
                items = [item for item in items if not item.payload or connection.subscription.accepts(item.event)]
                data = b"".join([item.frame for item in items])
            connection.write(data)
            heard.update([item.number for item in items])
            if self.settings.record:
                # A duplicate counts, too: no client may have listened when its original was sent.
                self._uuids.update(dict.fromkeys([item.uuid for item in items if item.uuid]))
        self.sent += len(heard - {0})


def _listen(host: str, port: int) -> socket.socket:
    ipv6 = ":" in host
    try:
        return socket.create_server(
            (host, port),
            family=socket.AF_INET6 if ipv6 else socket.AF_INET,
            backlog=256,
            dualstack_ipv6=ipv6 and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]
        raise OSError(error.errno, f"can't listen on {host}:{port}: {why}") from None
