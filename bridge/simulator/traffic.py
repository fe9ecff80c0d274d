"""What the simulator tells, and how it goes over the wire: stories or a replay, with faults of contents on request.

A `Told` is the story of one namespace, or a replay; a `Channel` makes frames of it; `Traffic` takes from all channels in turn.
Pure, except that a replay may be read from a file and that without a seed one is drawn.
"""

import functools
import itertools
import math
import random
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from bridge import frames
from bridge.simulator.cluster import World
from bridge.simulator.settings import SimulatorSettings

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
    chance = random.Random(f"{seed}/{namespace}/laps")
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
        self._chance = random.Random(seed)
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
