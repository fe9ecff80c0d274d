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

import base64
import binascii
import functools
import hashlib
import hmac
import itertools
import math
import queue
import random
import re
import secrets
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from operator import itemgetter
from pathlib import Path
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Final, NamedTuple, Self
from urllib.parse import parse_qs, urlsplit

import msgspec
import structlog

from bridge import frames
from bridge.event import namespace_of
from bridge.world import World

log = structlog.get_logger(__name__)

_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NAMESPACE: Final = re.compile(r"[A-Za-z0-9._~-]*")
_PATH: Final = re.compile(rf"/api/audit/v1/(?:(?P<namespace>{_NAMESPACE.pattern})/)?events/?")
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
_MALFORMED: Final = (
    b"this is not JSON",
    b'["an","array"]',
    b'{"type":["container"],"action":"update"}',
    b'{"type":"container","action":"update","parents":"/api/app/v1/service/1/","state":7}',
)
_COPY_AFTER: Final = 50
"""A duplicate follows its original at this distance, in events of the namespace."""
_LAP: Final = 2000
_LAPS_FROM: Final = 20_000
"""Events per second from which a world is too slow (3 to 4 us per event) and its beginning is told again and again."""
_PLACEHOLDER: Final = re.compile(rb"@/|#|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_ANY: Final = math.inf
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "port": (0, 65_535),
    "rate": (0, _ANY),
    "count": (0, _ANY),
    "wait_for_clients": (0, _ANY),
    "send_timeout": (0.01, _ANY),
    "duplicates": (0, 1),
    "malformed": (0, 1),
    "fragmented": (0, 1),
    "disconnect_every": (0.01, _ANY),
    "silence_after": (0, _ANY),
    "refuse": (300, 599),
    "retry_after": (0, _ANY),
    "error_after": (0, _ANY),
    "credentials_expire": (0, _ANY),
}


@dataclass(frozen=True, kw_only=True)
class SimulatorSettings:
    """What is simulated. Times are in seconds; None switches an option off.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        username: The account; also the namespace of the path without one.
        api_key: Credentials asked for; None asks for none.
        namespaces: Which are served, `""` being the account's own; if empty, every one that somebody asks for.
        rate: Events per second over all namespaces; 0 means as fast as the clients take them.
        count: Stop making events after so many; connections stay open.
        seed: Same seed, same story; None means another one each time.
        replay: Events to send, once and byte by byte, instead of a story: the lines themselves or a file of lines. A line goes
            to the namespace in its resource URI, to all if there is none, and to the account's own if that has no name.
        wait_for_clients: Begin when so many connections are open.
        record: Keep the uuids sent and the requests made, for tests.
        send_timeout: How long a client may take nothing of what is waiting for it.
        duplicates: Share of events that are sent a second time, 50 events later.
        malformed: Share of events after which a message follows that is no event.
        fragmented: Share of events that are sent in three frames with a ping between them.
        disconnect_every: Age at which a connection is ended; every second one without a close frame.
        silence_after: Age at which a connection falls silent, not even answering pings; 0 is at once.
        refuse: HTTP status with which every handshake is refused.
        retry_after: `Retry-After` of such a refusal.
        error_after: Age at which a connection gets the `UNAUTHORIZED` error message and is ended.
        credentials_expire: Time since the start at which credentials expire: 401 from then on, `UNAUTHORIZED` for who is in.

    Raises:
        ValueError: A value is out of range; the option is named.
    """

    host: str = "127.0.0.1"
    port: int = 8750
    username: str = ""
    api_key: str | None = field(default=None, repr=False)
    namespaces: Sequence[str] = ()
    rate: float = 10.0
    count: int | None = None
    seed: int | None = None
    replay: Path | Sequence[str] | None = None
    wait_for_clients: int = 0
    record: bool = False
    send_timeout: float = 30.0
    duplicates: float = 0.0
    malformed: float = 0.0
    fragmented: float = 0.0
    disconnect_every: float | None = None
    silence_after: float | None = None
    refuse: int | None = None
    retry_after: int | None = None
    error_after: float | None = None
    credentials_expire: float | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                bounds = f"at least {low}" if high == _ANY else f"between {low} and {high}"
                raise ValueError(f"{name}: must be {bounds}, not {value}")
        for name, namespaces in (("username", [self.username]), ("namespaces", self.namespaces)):
            for namespace in namespaces:
                if not _NAMESPACE.fullmatch(namespace):
                    raise ValueError(f"{name}: must be letters, digits and ._~- only, not {namespace!r}")


# What a client asks for. Pure.


class StreamFilter(NamedTuple):
    """Which events a connection gets: any value within a parameter, all of the parameters; an empty one lets all pass."""

    types: frozenset[str]
    objects: frozenset[str]
    parents: frozenset[str]

    @classmethod
    def from_query(cls, query: Mapping[str, Sequence[str]]) -> Self:
        """Read the filters of a query; values may be repeated or joined by commas, `parents` is the Go client's `parent`."""

        def values(*names: str) -> frozenset[str]:
            return frozenset(value for name in names for text in query.get(name, ()) for value in text.split(",") if value)

        return cls(values("type"), values("object"), values("parent", "parents"))

    def accepts(self, event: Mapping[str, Any]) -> bool:
        """Tell whether an event passes."""
        parents = event.get("parents")
        return (
            (not self.types or str(event.get("type")) in self.types)
            and (not self.objects or str(event.get("resource_uri")) in self.objects)
            and (not self.parents or (isinstance(parents, list) and not self.parents.isdisjoint(map(str, parents))))
        )


class Subscription(NamedTuple):
    """An accepted handshake: the namespace and filter asked for, and the answer to the client's key."""

    namespace: str
    filter: StreamFilter
    accept: str


class Refusal(NamedTuple):
    """A refused handshake: HTTP status, the error in words, and headers beyond the usual ones."""

    status: int
    error: str
    headers: Mapping[str, str] = {}


def answer_handshake(
    settings: SimulatorSettings, target: str, headers: Mapping[str, str], *, expired: bool
) -> Subscription | Refusal:
    """Decide about a handshake.

    Args:
        settings: What is simulated.
        target: The request's path and query.
        headers: The request's headers, their names in lower case.
        expired: Whether credentials have expired.
    """
    if settings.refuse is not None:
        wait = {} if settings.retry_after is None else {"Retry-After": str(settings.retry_after)}
        return Refusal(settings.refuse, "refused on purpose", wait)
    url = urlsplit(target)
    query = parse_qs(url.query)
    match = _PATH.fullmatch(url.path)
    if match is None:
        return Refusal(404, "there is no such resource")
    if expired or not is_authorized(settings, headers.get("authorization"), query):
        return Refusal(401, "not authorized")
    namespace = match["namespace"] or settings.username
    if settings.namespaces and namespace not in {served or settings.username for served in settings.namespaces}:
        return Refusal(404, "there is no such namespace")
    return _upgrade(namespace, StreamFilter.from_query(query), headers)


def _upgrade(namespace: str, wanted: StreamFilter, headers: Mapping[str, str]) -> Subscription | Refusal:
    key = headers.get("sec-websocket-key")
    if headers.get("upgrade", "").lower() != "websocket" or headers.get("sec-websocket-version") != "13":
        return Refusal(426, "this is a websocket", {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})
    if not key:
        return Refusal(400, "Sec-WebSocket-Key is missing")
    accept = hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()
    return Subscription(namespace, wanted, base64.b64encode(accept).decode())


def is_authorized(settings: SimulatorSettings, header: str | None, query: Mapping[str, Sequence[str]]) -> bool:
    """Check credentials in all forms that clients of the API ever used.

    In the `Authorization` header or in `?auth=` (its value, encoded): `Basic`, `ApiKey user:key`, `TutumAccessKey key`. In the
    query: `?user=…&token=…`.
    """
    if settings.api_key is None:
        return True
    offered = [_user_and_key(text) for text in (header or "", *query.get("auth", ()))]
    offered += zip(query.get("user", ()), query.get("token", ()), strict=False)
    return any(
        hmac.compare_digest(key.encode(), settings.api_key.encode())
        and (not settings.username or user in (settings.username, None))
        for user, key in offered
    )


def _user_and_key(credentials: str) -> tuple[str | None, str]:
    """Take apart the value of an `Authorization` header; the user is None where the scheme has none."""
    scheme, _, token = credentials.strip().partition(" ")
    if scheme.lower() == "tutumaccesskey":
        return None, token.strip()
    if scheme.lower() == "basic":
        try:
            token = base64.b64decode(token, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None, ""
    elif scheme.lower() != "apikey":
        return None, ""
    user, _, key = token.strip().partition(":")
    return user, key


# What is told, and how it goes over the wire. Pure.

Told = Iterator[tuple[bytes, bytes]]
"""Events: uuid and JSON."""


def tell_world(namespace: str, seed: int, moment: Callable[[], bytes]) -> Told:
    """Tell what happens in a world, for ever."""
    encode = msgspec.json.Encoder().encode
    for event in World(namespace, seed).events():
        event.datetime = moment().decode()
        yield event.uuid.encode(), encode(event)


def tell_laps(namespace: str, seed: int, moment: Callable[[], bytes]) -> Told:
    """Tell the beginning of a world again and again, each time with fresh uuids for all events and resources.

    Within a lap this is as consistent as a world; at its end everything that was is never heard of again.
    """
    size, lines = _lap()
    chance = random.Random(f"{seed}/{namespace}/laps")  # noqa: S311 - a story, not a secret
    place = f"{namespace}/".encode() if namespace else b""
    while True:
        digits = chance.randbytes(16 * size).hex().encode()
        uuids = (digits[start : start + 32] for start in range(0, 32 * size, 32))
        words = [place, b"", *(b"%b-%b-4%b-a%b-%b" % (u[:8], u[8:12], u[13:16], u[17:20], u[20:]) for u in uuids)]
        for template, choose, own in lines:
            words[1] = moment()
            yield words[own], template % choose(words)


@functools.cache
def _lap() -> tuple[int, list[tuple[bytes, "itemgetter[Any]", int]]]:
    """The beginning of a world as templates: how many uuids there are, and per event text, what is put in, and its own uuid.

    What is put in are places in a list of words: namespace, time, and then the uuids.
    """
    places = {b"@/": 0, b"#": 1}
    lines = []
    for _, line in itertools.islice(tell_world("@", 0, lambda: b"#"), _LAP):
        fields = [places.setdefault(word, len(places)) for word in _PLACEHOLDER.findall(line)]
        lines.append((_PLACEHOLDER.sub(b"%b", line), itemgetter(*fields), fields[-2]))
    return len(places) - 2, lines


def read_replay(replay: Path | Sequence[str]) -> Told:
    """Read the events of a replay; they keep their bytes.

    Raises:
        OSError: The file can't be read.
        ValueError: A line is not a JSON object; the message names the place.
    """
    is_file = isinstance(replay, Path)
    lines = replay.read_bytes().splitlines() if isinstance(replay, Path) else [line.encode() for line in replay]
    for number, line in enumerate(lines, 1):
        payload = line.strip()
        if not payload:
            continue
        try:
            event = msgspec.json.decode(payload, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{replay if is_file else 'replay'}:{number}: not a JSON object: {error}") from None
        yield str(event.get("uuid", "")).encode(), payload


class Outgoing(msgspec.Struct, gc=False):
    """One message on its way out.

    Attributes:
        number: Which event of its channel it is, from 1; 0 for what is no event or not for the first time.
        uuid: The event's uuid.
        payload: Its JSON; empty if it is no event.
        frame: All of it as it goes over the wire.
    """

    number: int
    uuid: bytes
    payload: bytes
    frame: bytes
    _event: dict[str, Any] | None = None

    @property
    def event(self) -> dict[str, Any]:
        """The event's fields, decoded when first asked for."""
        if self._event is None:
            self._event = msgspec.json.decode(self.payload)
        return self._event


class Channel:
    """What goes out for one namespace, with the faults of contents: duplicates, fragments and what is no event."""

    def __init__(self, told: Told, seed: str) -> None:
        self._told = told
        self._chance = random.Random(seed)  # noqa: S311 - a story, not a secret
        self._copies: deque[tuple[int, Outgoing]] = deque()
        self._malformed = itertools.cycle(_MALFORMED)
        self.number = 0

    def take(self, count: int, settings: SimulatorSettings) -> list[Outgoing]:
        """Take the next `count` events and what goes with them; fewer if the story ends."""
        items = []
        faulty = settings.duplicates or settings.malformed or settings.fragmented
        for uuid, payload in itertools.islice(self._told, count):
            self.number += 1
            items.append(Outgoing(self.number, uuid, payload, frames.encode(frames.TEXT, payload)))
            if faulty or self._copies:
                self._spoil(items, settings)
        return items

    def _spoil(self, items: list[Outgoing], settings: SimulatorSettings) -> None:
        """Apply the faults to the newest event."""
        newest, chance = items[-1], self._chance.random
        if chance() < settings.fragmented:
            newest.frame = self._fragments(newest.payload)
        if chance() < settings.duplicates:
            self._copies.append((self.number + _COPY_AFTER, newest))
        if chance() < settings.malformed:
            items.append(Outgoing(0, b"", b"", frames.encode(frames.TEXT, next(self._malformed))))
        items += self.copies(self.number)

    def copies(self, until: float = math.inf) -> list[Outgoing]:
        """Take the duplicates that are due; all of them without a limit."""
        items = []
        while self._copies and self._copies[0][0] <= until:
            _, original = self._copies.popleft()
            items.append(Outgoing(0, original.uuid, original.payload, original.frame))
        return items

    def _fragments(self, payload: bytes) -> bytes:
        first, second = sorted(self._chance.choices(range(len(payload)), k=2))
        return (
            frames.encode(frames.TEXT, payload[:first], fin=False)
            + frames.encode(frames.PING, b"between fragments")
            + frames.encode(frames.CONTINUATION, payload[first:second], fin=False)
            + frames.encode(frames.CONTINUATION, payload[second:])
        )


class Batch(NamedTuple):
    """Messages for the listeners of one namespace; for all listeners if it is None."""

    namespace: str | None
    items: list[Outgoing]


class Traffic:
    """All channels, taken from in turn.

    Raises:
        OSError: The file to replay can't be read.
        ValueError: It holds something that is no event.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.seed = random.SystemRandom().getrandbits(32) if settings.seed is None else settings.seed
        self.generated = 0
        self._moment = b""
        self._turn = 0
        self._replay: Channel | None = None
        self._channels: dict[str | None, Channel] = {}
        self._exhausted = False
        if settings.replay is not None:
            self._channels[None] = self._replay = Channel(iter(list(read_replay(settings.replay))), f"{self.seed}/replay")

    def has_ended(self, settings: SimulatorSettings) -> bool:
        """Whether there is nothing more to tell."""
        return self._exhausted or (settings.count is not None and self.generated >= settings.count)

    def take(self, count: int, namespaces: Sequence[str], now: datetime, settings: SimulatorSettings) -> list[Batch]:
        """Make the next events, at most `count`: from the replay, or from each namespace's story in turn."""
        self._moment = f"{now:%Y-%m-%dT%H:%M:%SZ}".encode()
        left = count if settings.count is None else min(count, settings.count - self.generated)
        sources: Sequence[str | None] = [None] if self._replay else namespaces
        share = math.ceil(left / len(sources))
        batches = []
        while left > 0 and not self._exhausted:
            source = sources[self._turn % len(sources)]
            self._turn += 1
            channel = self._channels.get(source) or self._open(source or "", settings)
            before = channel.number
            batches.append(Batch(source, channel.take(min(share, left), settings)))
            self._exhausted = channel.number - before < min(share, left)
            self.generated += channel.number - before
            left -= channel.number - before
        if self.has_ended(settings):
            batches += [Batch(source, channel.copies()) for source, channel in self._channels.items()]
        return batches

    def _open(self, namespace: str, settings: SimulatorSettings) -> Channel:
        fast = settings.rate == 0 or settings.rate >= _LAPS_FROM
        told = (tell_laps if fast else tell_world)(namespace, self.seed, lambda: self._moment)
        self._channels[namespace] = Channel(told, f"{self.seed}/{namespace}/faults")
        return self._channels[namespace]


# Connections and the loop that owns them.


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
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host)  # noqa: S104 - compared only
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
        return [uuid.decode() for uuid in self._uuids]

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
        with suppress(BlockingIOError, OSError):
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
