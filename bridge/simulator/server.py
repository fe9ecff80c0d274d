"""A Stream API server for demos and tests, with faults on demand. The original clients work against it unchanged.

Like the real service it has no replay: an event goes to the connections that are open at that moment. Wire facts are those of
the API's documentation and of the original clients.

An HTTP server with a thread per handshake answers or refuses (`listener`). Accepted sockets pass to one loop, which owns all
open connections, makes the events and sends them. The loop never blocks on a client:

- with a rate, a client for which more than 16 MiB are waiting is disconnected;
- at full speed (rate 0), the next events are made when every listening client has taken nearly all that was sent: the slowest
  sets the pace, and no events are made while no client listens;
- in either case a client that takes nothing for `send_timeout` seconds is disconnected.

To end a connection, the simulator sends what waits, perhaps a close frame, and waits two seconds for the client to close its
side.
"""

import itertools
import queue
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, Self

import structlog

from bridge.simulator.connection import GOING_AWAY, Connection, close_frame, reached
from bridge.simulator.handshake import Refusal, Subscription, answer_handshake
from bridge.simulator.listener import Listener
from bridge.simulator.pace import TICK_SECONDS, Pace
from bridge.simulator.settings import SimulatorSettings
from bridge.simulator.traffic import Batch, Traffic

__all__ = ["Simulator", "SimulatorSettings"]

log = structlog.get_logger(__name__)

_FULL_SPEED_BUFFER_BYTES: Final = 256 * 1024


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
        self.handshakes = 0
        self.sent = 0
        self.requests: deque[tuple[str, dict[str, str]]] = deque(maxlen=1000)
        self.finished = threading.Event()
        self._uuids: dict[bytes, None] = {}
        self._traffic = Traffic(settings)
        self.port = settings.port
        self._namespaces: dict[str, None] = {}
        self._lock = threading.Lock()
        self._connections: dict[int, Connection] = {}
        self._listeners: dict[str | None, list[Connection]] = {}
        self._swept = 0.0
        self._numbers = itertools.count()
        self._pace = Pace()
        self._started = 0.0
        self._stopping = False
        self._calls: queue.SimpleQueue[Callable[[float], None]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

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
        self._listener = Listener((self.settings.host, self.port), self.answer, self.adopt)
        self.port = self._listener.server_address[1]
        self._selector = selectors.DefaultSelector()
        self._alarm, self._waking = socket.socketpair()
        for end in (self._alarm, self._waking):
            end.settimeout(0)
        self._selector.register(self._waking, selectors.EVENT_READ)
        self._started = time.monotonic()
        self._pace.restart(self._started)
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._listener.serve_forever, args=(TICK_SECONDS,), name="simulator-listener", daemon=True),
            threading.Thread(target=self._run, name="simulator", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        log.info("simulator started", url=self.url, seed=self._traffic.seed)

    def stop(self) -> None:
        """Stop listening and end all connections after the events that wait for them. May be called twice."""
        if not self._threads:
            return
        self._stopping = True
        self._listener.shutdown()
        self._listener.server_close()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def disconnect_all(self, code: int | None = GOING_AWAY) -> None:
        """End all connections, with a close frame of this code or without one."""

        def end_all(now: float) -> None:
            for connection in self._connections.values():
                connection.end(b"" if code is None else close_frame(code), now)

        self._call(end_all)

    def answer(self, target: str, headers: Mapping[str, str]) -> Subscription | Refusal:
        """Decide about a handshake. Called by any thread."""
        answer = answer_handshake(self.settings, target, headers, expired=self._expired(time.monotonic()))
        with self._lock:
            self.handshakes += 1
            if self.settings.record:
                self.requests.append((target, dict(headers)))
            if isinstance(answer, Subscription):
                if len(self._namespaces) >= 10_000 and answer.namespace not in self._namespaces:
                    return Refusal(404, "too many namespaces")
                self._namespaces[answer.namespace] = None
        return answer

    def adopt(self, client: socket.socket, subscription: Subscription) -> None:
        """Take over a socket after its handshake. Called by any thread."""

        def open_connection(now: float) -> None:
            connection = Connection(client, subscription, next(self._numbers), now)
            self._connections[client.fileno()] = connection
            self._selector.register(client, connection.interest, connection)
            self._group()
            self._age(connection, now)
            log.info("client connected", namespace=connection.namespace, connections=len(self._connections))

        client.settimeout(0)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._call(open_connection)

    def _call(self, function: Callable[[float], None]) -> None:
        """Let the loop call a function with the monotonic time."""
        self._calls.put(function)
        with suppress(OSError):
            self._alarm.send(b"\0")

    def _run(self) -> None:
        try:
            while not (self._stopping and not self._connections):
                self._step()
        finally:
            while not self._calls.empty():
                self._calls.get()(time.monotonic())
            for connection in list(self._connections.values()):
                self._drop(connection, "the simulator ended")
            for resource in (self._selector, self._alarm, self._waking):
                resource.close()

    def _step(self) -> None:
        ended = self._traffic.has_ended(self.settings)
        wait = TICK_SECONDS if ended else self._pace.wait(self.settings, ready=self._is_ready())
        for key, events in self._selector.select(wait):
            if key.data:
                self._serve(key.data, events, time.monotonic())
            else:
                self._waking.recv(4096)
        now = time.monotonic()
        while not self._calls.empty():
            self._calls.get()(now)
        if now - self._swept >= TICK_SECONDS:
            self._swept = now
            for connection in list(self._connections.values()):
                self._age(connection, now)
        self._generate(now)
        for connection in [c for c in self._connections.values() if c.out or c.ends_by]:
            self._serve(connection, selectors.EVENT_WRITE, now)
        if self._traffic.has_ended(self.settings) and not any(c.out for c in self._connections.values()):
            self.finished.set()

    def _is_ready(self) -> bool:
        """Return True if, at full speed, a client listens and none is behind."""
        behind = [len(c.out) >= _FULL_SPEED_BUFFER_BYTES for c in self._listeners.get(None, ()) if c.listening]
        return bool(behind) and not any(behind)

    def _generate(self, now: float) -> None:
        ended = self._traffic.has_ended(self.settings)
        if not ended and (count := self._pace.due(now, self.settings, len(self._connections), ready=self._is_ready())):
            own = self.settings.username
            served = [namespace or own for namespace in self.settings.namespaces] or list(self._namespaces) or [own]
            for batch in self._traffic.take(count, served, datetime.now(UTC), self.settings):
                self._fan_out(batch, now)

    def _fan_out(self, batch: Batch, now: float) -> None:
        """Give a batch to all listening clients whose filter it passes."""
        whole: bytes | None = None
        heard: set[int] = set()
        for connection in self._listeners.get(batch.namespace, ()):
            if not connection.listening:
                continue
            if batch.namespace is None or any(connection.filter):
                items = [item for item in batch.items if connection.wants(item, batch)]
                connection.write(b"".join([item.frame for item in items]), now)
            else:
                items = batch.items
                whole = whole or b"".join([item.frame for item in items])
                connection.write(whole, now)
            heard.update([item.number for item in items])
            if self.settings.record:
                # A duplicate counts, too: no client may have listened when its original was sent.
                self._uuids.update(dict.fromkeys([item.uuid for item in items if item.uuid]))
        heard.discard(0)
        self.sent += len(heard)

    def _age(self, connection: Connection, now: float) -> None:
        """Apply the faults that come with time."""
        if connection.is_stuck(now, self.settings.send_timeout):
            self._drop(connection, "the client is too slow")
        elif self._stopping:
            connection.end(close_frame(GOING_AWAY), now)
        else:
            connection.grow_old(self.settings, now, expired=self._expired(now))

    def _expired(self, now: float) -> bool:
        return reached(now - self._started, self.settings.credentials_expire)

    def _serve(self, connection: Connection, events: int, now: float) -> None:
        """Read and send as much as possible without waiting."""
        if reason := connection.serve(now, readable=bool(events & selectors.EVENT_READ)):
            self._drop(connection, reason)
            return
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.out else 0)
        if interest != connection.interest:
            connection.interest = interest
            self._selector.modify(connection.socket, interest, connection)

    def _drop(self, connection: Connection, reason: str) -> None:
        self._selector.unregister(connection.socket)
        self._connections.pop(connection.socket.fileno())
        connection.socket.close()
        self._group()
        log.info("client gone", namespace=connection.namespace, reason=reason, connections=len(self._connections))

    def _group(self) -> None:
        """Sort the connections by namespace; None has all of them."""
        self._listeners = {None: list(self._connections.values())}
        for connection in self._connections.values():
            self._listeners.setdefault(connection.namespace, []).append(connection)
