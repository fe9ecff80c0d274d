"""The messages that the simulator sends: generated events or a replay, with faults of contents on request.

A `Channel` makes frames of the events of one namespace, or of the replay. `Traffic` takes from all channels in turn. Pure,
except that a replay may be read from a file and that a missing seed is drawn.
"""

import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from bridge import frames
from bridge.simulator.cluster import Cluster
from bridge.simulator.settings import SimulatorSettings

_MALFORMED: Final = (
    b"this is not JSON",
    b'["an","array"]',
    b'{"type":["container"],"action":"update"}',
    b'{"type":"container","action":"update","parents":"/api/app/v1/service/1/","state":7}',
)
_COPY_AFTER: Final = 50
"""A duplicate follows its original at this distance, in events of the namespace."""

EventScript = Iterator[tuple[bytes, bytes]]
"""The events of one namespace or of a replay: uuid and JSON each."""


def generate(namespace: str, seed: int, moment: Callable[[], bytes]) -> EventScript:
    """Yield the events of a made-up cluster, for ever."""
    encode = msgspec.json.Encoder().encode
    for event in Cluster(namespace, seed).events():
        event.datetime = moment().decode()
        yield event.uuid.encode(), encode(event)


def read_replay(replay: Path | Sequence[str]) -> EventScript:
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
    """One message to send.

    Attributes:
        number: The event's number in its channel, from 1; 0 for a duplicate or a malformed message.
        uuid: The event's uuid.
        payload: Its JSON; empty for a malformed message.
        frame: Its bytes on the wire.
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
    """The messages for one namespace, with the faults of contents: duplicates, fragments, malformed messages."""

    def __init__(self, script: EventScript, seed: str) -> None:
        self._script = script
        self._chance = random.Random(seed)
        self._copies: deque[tuple[int, Outgoing]] = deque()
        self._malformed = itertools.cycle(_MALFORMED)
        self.number = 0

    def take(self, count: int, settings: SimulatorSettings) -> list[Outgoing]:
        """Take the next `count` events and the faults that go with them; fewer if the script ends."""
        items = []
        faulty = settings.duplicates or settings.malformed or settings.fragmented
        for uuid, payload in itertools.islice(self._script, count):
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
        ValueError: A line of it is not a JSON object.
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
        """Return True when no more events will come."""
        return self._exhausted or (settings.count is not None and self.generated >= settings.count)

    def take(self, count: int, namespaces: Sequence[str], now: datetime, settings: SimulatorSettings) -> list[Batch]:
        """Make the next events, at most `count`: from the replay, or from each namespace in turn."""
        self._moment = f"{now:%Y-%m-%dT%H:%M:%SZ}".encode()
        left = count if settings.count is None else min(count, settings.count - self.generated)
        sources: Sequence[str | None] = [None] if self._replay else namespaces
        share = math.ceil(left / len(sources))
        batches = []
        while left > 0 and not self._exhausted:
            source = sources[self._turn % len(sources)]
            self._turn += 1
            channel = self._channels.get(source) or self._open(source or "")
            before = channel.number
            batches.append(Batch(source, channel.take(min(share, left), settings)))
            self._exhausted = channel.number - before < min(share, left)
            self.generated += channel.number - before
            left -= channel.number - before
        if self.has_ended(settings):
            batches += [Batch(source, channel.copies()) for source, channel in self._channels.items()]
        return batches

    def _open(self, namespace: str) -> Channel:
        script = generate(namespace, self.seed, lambda: self._moment)
        self._channels[namespace] = Channel(script, f"{self.seed}/{namespace}/faults")
        return self._channels[namespace]
