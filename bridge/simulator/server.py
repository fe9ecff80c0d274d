"""A Stream API server that the original clients work against unchanged: for demos, tests and faults on purpose.

Like the real service it has no replay: an event goes to the connections that are open at that moment, and with none it is
gone. Wire facts are those of the API's documentation and of the original clients.

An HTTP server with a thread per handshake answers or refuses; an accepted socket passes to one loop, which owns all open
connections, makes the events and sends them. The loop never blocks on a client:

- with a rate, a client for which more than 16 MiB are waiting is disconnected;
- at full speed (rate 0), the next events are made when every listening client has taken nearly all that was sent, so the
  slowest sets the pace, and nothing is made while nobody listens;
- in either case a client that takes nothing for `send_timeout` seconds is disconnected.

When the simulator itself ends a connection, it first sends what was meant for it, then perhaps a close frame, and waits for the
client to close its side, two seconds at most. So what it counts as sent has reached the client, unless the client was slower
or left first.
"""

import itertools
import math
import queue
import secrets
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import structlog

from bridge import frames
from bridge.event import namespace_of
from bridge.simulator.handshake import Refusal, Subscription, answer_handshake
from bridge.simulator.settings import SimulatorSettings
from bridge.simulator.traffic import Batch, Outgoing, Traffic

__all__ = ["Simulator", "SimulatorSettings"]

log = structlog.get_logger(__name__)

_MAX_NAMESPACES: Final = 10_000
_MAX_FRAME: Final = 64 * 1024
_MAX_BUFFER: Final = 16 * 1024 * 1024
_READ: Final = 64 * 1024
_BATCH: Final = 512
"""Most events that are made at a time."""
_FULL_SPEED_BUFFER: Final = 256 * 1024
_TICK: Final = 0.02
"""Longest wait of the loop in seconds: how exactly the times of faults are kept."""
_SHORTEST_WAIT: Final = 0.001
_GRACE: Final = 2.0
"""Seconds that a client has to take the rest and to close its side, when a connection is ended."""
_GOING_AWAY: Final = 1001
_POLICY: Final = 1008
_UNAUTHORIZED: Final = frames.encode(frames.TEXT, b'{"type":"error","data":{"errorMessage":"UNAUTHORIZED"}}')


class _Connection:
    """One client after its handshake. Only the loop touches it."""

    def __init__(self, client: socket.socket, subscription: Subscription, number: int, now: float) -> None:
        self.socket = client
        self.namespace = subscription.namespace
        self.filter = subscription.filter
        self.number = number
        self.opened = now
        self.silent = False
        self.ends_by: float | None = None
        self.said_goodbye = False
        self.interest = selectors.EVENT_READ
        self.out = bytearray()
        self._taken = now
        self._half_closed = False
        self._reader = frames.FrameReader(_MAX_FRAME, masked=True)

    @property
    def listening(self) -> bool:
        """Whether it still gets events."""
        return self.ends_by is None and not self.silent

    def write(self, data: bytes, now: float) -> None:
        """Add to what is waiting."""
        if not self.out:
            self._taken = now
        self.out += data

    def end(self, data: bytes, now: float) -> None:
        """Begin to end: what is waiting and `data` are still sent, then the client is to close its side."""
        if self.ends_by is None:
            self.write(data, now)
            self.ends_by = now + _GRACE

    def flush(self, now: float) -> None:
        """Send what the client takes without waiting."""
        if self.out:
            with suppress(BlockingIOError):
                del self.out[: self.socket.send(self.out)]
                self._taken = now
        if self.ends_by is not None and not self.out and not self._half_closed:
            self._half_closed = True
            self.socket.shutdown(socket.SHUT_WR)

    def read(self, now: float) -> bool:
        """Read and answer what the client sent; return False at its end."""
        data = self.socket.recv(_READ)
        if data and not self.silent:
            taken = self._reader.feed(data)
            for control in taken.controls:
                if control.opcode == frames.PING:
                    self.write(frames.encode(frames.PONG, control.payload), now)
                elif control.opcode == frames.CLOSE:
                    self.end(frames.encode(frames.CLOSE, control.payload[:2]), now)
                    self.said_goodbye = True
            if taken.error:
                self.end(_close_frame(taken.error.code), now)
        return bool(data)

    def is_stuck(self, now: float, send_timeout: float) -> bool:
        """Whether the client has taken too little for too long, or has not closed its side in time."""
        late = self.ends_by is not None and now > self.ends_by
        return late or len(self.out) > _MAX_BUFFER or (bool(self.out) and now - self._taken > send_timeout)

    def wants(self, item: Outgoing, batch: Batch) -> bool:
        """Whether the client is to hear a message of a batch."""
        if not item.payload:
            return True
        if batch.namespace is None and self.namespace:
            namespace = namespace_of(str(item.event.get("resource_uri")))
            if namespace not in ("", self.namespace):
                return False
        return self.filter.accepts(item.event)


class Simulator:
    """The server.

    Attributes:
        settings: What is simulated; see `change`.
        handshakes: How many were tried, including those that were refused.
        sent: How many different events were sent to anybody.
        requests: If recording, path with query and headers of the latest 1000 handshakes.
        finished: Set when everything was made (see `count` and `replay`) and went out.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        """Read the replay, if there is one.

        Raises:
            OSError: The file to replay can't be read.
            ValueError: It holds something that is no event.
        """
        self.settings = settings
        self.handshakes = 0
        self.sent = 0
        self.requests: deque[tuple[str, dict[str, str]]] = deque(maxlen=1000)
        self.finished = threading.Event()
        self._uuids: dict[bytes, None] = {}
        self._traffic = Traffic(settings)
        self._port = settings.port
        self._namespaces: dict[str, None] = {}
        self._lock = threading.Lock()
        self._connections: dict[int, _Connection] = {}
        self._listeners: dict[str | None, list[_Connection]] = {}
        self._swept = 0.0
        self._number = itertools.count()
        self._begun = False
        self._credit = 0.0
        self._credited = 0.0
        self._started = 0.0
        self._stopping = False
        self._calls: queue.SimpleQueue[Callable[[float], None]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def port(self) -> int:
        """The port listened on; if a free one was asked for, known once started."""
        return self._port

    @property
    def url(self) -> str:
        """The URL for clients, without a path."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host)
        return f"ws://[{host}]:{self.port}" if ":" in host else f"ws://{host}:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    @property
    def generated(self) -> int:
        """How many events were made, heard or not."""
        return self._traffic.generated

    def sent_uuids(self) -> list[str]:
        """The uuids of all events sent to anybody, in the order of their first time, if recording."""
        # Copied at once, since more may be sent meanwhile.
        return [uuid.decode() for uuid in list(self._uuids)]

    def change(self, **settings: Any) -> None:
        """Change settings while running; host, port, seed and replay stay what they were at the start.

        Raises:
            ValueError: A value is out of range; the option is named.
        """
        self.settings = replace(self.settings, **settings)
        self.finished.clear()

    def start(self) -> None:
        """Listen; returns when clients can connect. After `stop` it may be called again: same port, the story goes on.

        Raises:
            OSError: The address can't be listened on.
        """
        try:
            self._listener = _Listener((self.settings.host, self._port), self)
        except OSError as error:
            raise OSError(error.errno, f"can't listen on {self.settings.host}:{self._port}: {error.strerror}") from None
        self._port = self._listener.server_address[1]
        self._selector = selectors.DefaultSelector()
        self._alarm, self._waking = socket.socketpair()
        self._alarm.settimeout(0)
        self._waking.settimeout(0)
        self._selector.register(self._waking, selectors.EVENT_READ)
        self._started = self._credited = time.monotonic()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._listener.serve_forever, args=(_TICK,), name="simulator-listener", daemon=True),
            threading.Thread(target=self._run, name="simulator", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        log.info("simulator started", url=self.url, seed=self._traffic.seed)

    def stop(self) -> None:
        """End all connections, those that listen with what was sent to them, and listen no more. May be called twice."""
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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def disconnect_all(self, code: int | None = _GOING_AWAY) -> None:
        """End all connections, with a close frame of this code or without one."""

        def end_all(now: float) -> None:
            for connection in self._connections.values():
                connection.end(b"" if code is None else _close_frame(code), now)

        self._call(end_all)

    def answer(self, target: str, headers: Mapping[str, str]) -> Subscription | Refusal:
        """Decide about a handshake. Called by any thread."""
        answer = answer_handshake(self.settings, target, headers, expired=self._expired(time.monotonic()))
        with self._lock:
            self.handshakes += 1
            if self.settings.record:
                self.requests.append((target, dict(headers)))
            if isinstance(answer, Subscription):
                if len(self._namespaces) >= _MAX_NAMESPACES and answer.namespace not in self._namespaces:
                    return Refusal(404, "too many namespaces")
                self._namespaces[answer.namespace] = None
        return answer

    def adopt(self, client: socket.socket, subscription: Subscription) -> None:
        """Take over a socket after its handshake. Called by any thread."""

        def open_connection(now: float) -> None:
            connection = _Connection(client, subscription, next(self._number), now)
            self._connections[client.fileno()] = connection
            self._selector.register(client, connection.interest, connection)
            self._group()
            self._age(connection, now)
            log.info("client connected", namespace=connection.namespace, connections=len(self._connections))

        client.settimeout(0)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._call(open_connection)

    def _call(self, function: Callable[[float], None]) -> None:
        """Have the loop call a function with the time."""
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
        for key, events in self._selector.select(self._wait()):
            if key.data:
                self._serve(key.data, events, time.monotonic())
            else:
                self._waking.recv(_READ)
        now = time.monotonic()
        while not self._calls.empty():
            self._calls.get()(now)
        if now - self._swept >= _TICK:
            self._swept = now
            for connection in list(self._connections.values()):
                self._age(connection, now)
        self._generate(now)
        for connection in [c for c in self._connections.values() if c.out or c.ends_by]:
            self._serve(connection, selectors.EVENT_WRITE, now)
        if self._traffic.has_ended(self.settings) and not any(c.out for c in self._connections.values()):
            self.finished.set()

    def _wait(self) -> float:
        """Seconds until there is something to do, if nothing arrives."""
        if not self._begun or self._traffic.has_ended(self.settings):
            return _TICK
        if self.settings.rate == 0:
            return 0.0 if self._is_ready() else _TICK
        return min(_TICK, max(_SHORTEST_WAIT, (1 - self._credit) / self.settings.rate))

    def _is_ready(self) -> bool:
        """Whether, at full speed, somebody listens and nobody is behind."""
        behind = [len(c.out) >= _FULL_SPEED_BUFFER for c in self._listeners.get(None, ()) if c.listening]
        return bool(behind) and not any(behind)

    def _due(self, now: float) -> int:
        """How many events are to be made now."""
        if not self._begun:
            self._begun = len(self._connections) >= self.settings.wait_for_clients
            self._credited = now
        if not self._begun or self._traffic.has_ended(self.settings):
            return 0
        if self.settings.rate == 0:
            return _BATCH if self._is_ready() else 0
        self._credit = min(self._credit + (now - self._credited) * self.settings.rate, max(self.settings.rate, 1.0))
        self._credited = now
        due = min(int(self._credit), _BATCH)
        self._credit -= due
        return due

    def _generate(self, now: float) -> None:
        count = self._due(now)
        if count:
            own = self.settings.username
            served = [namespace or own for namespace in self.settings.namespaces] or list(self._namespaces) or [own]
            for batch in self._traffic.take(count, served, datetime.now(UTC), self.settings):
                self._fan_out(batch, now)

    def _fan_out(self, batch: Batch, now: float) -> None:
        """Give a batch to all who listen and want it."""
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
                # A duplicate counts, too: nobody may have listened when its original was told.
                self._uuids.update(dict.fromkeys([item.uuid for item in items if item.uuid]))
        heard.discard(0)
        self.sent += len(heard)

    def _age(self, connection: _Connection, now: float) -> None:
        """Apply the faults that come with time."""
        settings, age = self.settings, now - connection.opened
        if connection.is_stuck(now, settings.send_timeout):
            self._drop(connection, "the client is too slow")
        elif self._stopping:
            connection.end(_close_frame(_GOING_AWAY), now)
        elif not connection.listening:
            pass
        elif self._expired(now) or age >= _or_never(settings.error_after):
            connection.end(_UNAUTHORIZED + _close_frame(_POLICY), now)
        elif age >= _or_never(settings.disconnect_every):
            connection.end(b"" if connection.number % 2 else _close_frame(_GOING_AWAY), now)
        elif age >= _or_never(settings.silence_after):
            connection.silent = True

    def _expired(self, now: float) -> bool:
        return now - self._started >= _or_never(self.settings.credentials_expire)

    def _serve(self, connection: _Connection, events: int, now: float) -> None:
        """Read and send what can be without waiting."""
        try:
            alive = not events & selectors.EVENT_READ or connection.read(now)
            connection.flush(now)
            if not alive or (connection.said_goodbye and not connection.out):
                self._drop(connection, "the client closed it" if connection.ends_by is None else "ended")
                return
        except OSError as error:
            self._drop(connection, str(error))
            return
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.out else 0)
        if interest != connection.interest:
            connection.interest = interest
            self._selector.modify(connection.socket, interest, connection)

    def _drop(self, connection: _Connection, reason: str) -> None:
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


def _close_frame(code: int) -> bytes:
    return frames.encode(frames.CLOSE, struct.pack("!H", code))


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


class _Listener(ThreadingHTTPServer):
    """Answers handshakes, each in a thread of its own."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, address: tuple[str, int], simulator: Simulator) -> None:
        self.simulator = simulator
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handshake)

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
    server: _Listener

    def do_GET(self) -> None:
        """Upgrade to a websocket, or refuse."""
        self.close_connection = True
        answer = self.server.simulator.answer(self.path, {name.lower(): value for name, value in self.headers.items()})
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
        self.server.simulator.adopt(socket.socket(fileno=self.connection.detach()), answer)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Say nothing: the request's query may hold credentials."""
