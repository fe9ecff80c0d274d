"""What one delivery over MQTT has come to so far: what is to be sent next, and what an acknowledgement means; pure.

The order per resource is kept like this: an event is sent only when the one before it of the same resource has been
acknowledged, so that a refusal finds nothing of that resource behind it on its way. Events of different resources are all on
their way at once, as many as the broker takes. A single busy resource is therefore as fast as the way to the broker and back,
one publication per round trip. Without order (`ordering: none`) and with QoS 0, where nothing is refused, nobody waits.

The publications of an event are sent in their order, each when the one before it was acknowledged well, so that a refusal finds
the others unpublished, however often the event is tried again.

Events that are under suspicion go last, and each of them alone; see `sinks.mqtt`.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from bridge.sink import Entry, Failure
from sinks.classification import Classification
from sinks.mqtt.packets import FAILED, PUBACK, PUBCOMP, PUBREC, classify, encode_publish, encode_release
from sinks.mqtt.publication import Publication

_FINAL: Final = {1: PUBACK, 2: PUBCOMP}
"""The acknowledgement after which nothing more comes, for each QoS that has one."""

_IDS: Final = 65_535
"""How many numbers there are for packets; 0 is none."""


Lane = deque[Entry]
"""Entries that must be sent one after another."""

Publish = Callable[[Entry], Sequence[Publication] | Failure]
"""Make the publications of an event, in the order in which they are to be sent, or say why that is not possible."""


class _Open:
    """An event that is on its way: how many of its publications are not acknowledged yet, and which are not sent yet."""

    __slots__ = ("entry", "lane", "missing", "waiting")

    def __init__(self, entry: Entry, lane: Lane, publications: Sequence[Publication]) -> None:
        self.entry = entry
        self.lane = lane
        self.missing = len(publications)
        self.waiting = iter(publications)


class Pipeline:
    """The state of one delivery.

    Args:
        lanes: What is to be delivered; taken apart on the way.
        suspects: Lanes of events that go last and alone.
        publish: How to make an event's publications.
        qos: Quality of service.
        window: How many publications may be on their way at most.

    Attributes:
        delivered: The `seq` of events that were acknowledged.
        failures: Events that were not delivered, while the broker is in order.
        trouble: Why the broker takes nothing at all any more.
    """

    def __init__(self, lanes: Iterable[Lane], suspects: Iterable[Lane], publish: Publish, *, qos: int, window: int) -> None:
        self.delivered: set[int] = set()
        self.failures: list[Failure] = []
        self.trouble: Classification | None = None
        self._ready = deque(lanes)
        self._suspects = deque(suspects)
        self._publish = publish
        self._qos = qos
        self._window = window
        self._todo: deque[tuple[_Open, Publication]] = deque()
        # By number, in the order in which they were sent, with the time of that.
        self._flying: dict[int, tuple[_Open, float, bytes]] = {}
        self._ids = itertools.cycle(range(1, _IDS + 1))
        self._acknowledged = 0.0
        self._open = 0
        self._alone = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to send or to wait for."""
        return not (self._open or (self.trouble is None and (self._ready or self._suspects)))

    @property
    def silent_since(self) -> float:
        """Since when something has been on its way and nothing was acknowledged.

        While others are acknowledged, the broker is not silent: what waits longest may still be on a slow way to it. One event
        that is never acknowledged is found out all the same, since the others come to an end.
        """
        return max(next(iter(self._flying.values()))[1] if self._flying else 0.0, self._acknowledged)

    @property
    def unacknowledged(self) -> set[int]:
        """The `seq` of events on their way."""
        return {state.entry.seq for state, _, _ in self._flying.values()}

    def fill(self, now: float) -> bytes:
        """Take what may be sent now, as packets in a row.

        Args:
            now: A monotonic time.
        """
        parts: list[bytes] = []
        while len(self._flying) < self._window and (self._todo or self._start_next()):
            if not self._todo:
                continue
            state, publication = self._todo.popleft()
            packet_id = next(packet_id for packet_id in self._ids if packet_id not in self._flying)
            self._flying[packet_id] = state, now, publication.topic
            topic, payload, retain, properties = publication
            parts.append(
                encode_publish(topic, payload, qos=self._qos, retain=retain, packet_id=packet_id, properties=properties)
            )
        return b"".join(parts)

    def acknowledge(self, kind: int, packet_id: int, code: int, now: float) -> bytes:
        """Take down an acknowledgement, and return what has to be answered to it.

        Args:
            kind: PUBACK, PUBREC or PUBCOMP.
            packet_id: Which packet it is about.
            code: Its reason code.
            now: A monotonic time.
        """
        flying = self._flying.get(packet_id)
        received = kind == PUBREC and self._qos == 2
        if flying is None or not (received or kind == _FINAL.get(self._qos)):
            return b""
        del self._flying[packet_id]
        self._acknowledged = now
        state, _, topic = flying
        if received and code < FAILED:
            self._flying[packet_id] = state, now, topic
            return encode_release(packet_id)
        self._settle(state, classify(code) if code >= FAILED else None, topic)
        return b""

    def acknowledge_all(self) -> None:
        """Take down that the broker has read all that was sent."""
        flying, self._flying = self._flying, {}
        for state, _, _ in flying.values():
            self._settle(state)

    def _start_next(self) -> bool:
        """Begin with another event, if there is one and its turn has come; it may come to nothing."""
        if self.trouble is not None or self._alone:
            return False
        if self._ready:
            lane = self._ready.popleft()
        elif self._suspects and not self._open:
            lane = self._suspects.popleft()
            self._alone = True
        else:
            return False
        entry = lane.popleft()
        found = self._publish(entry)
        if isinstance(found, Failure):
            self.failures.append(found)
            self._continue(lane, stopped=found.outcome != "rejected")
        else:
            self._open += 1
            self._go_on(_Open(entry, lane, found))
        return True

    def _go_on(self, state: _Open) -> None:
        """Queue an event's next publication, or with QoS 0, where nothing is refused, all of them."""
        if self._qos:
            self._todo.append((state, next(state.waiting)))
        else:
            self._todo.extend([(state, publication) for publication in state.waiting])

    def _settle(self, state: _Open, refusal: Classification | None = None, topic: bytes = b"") -> None:
        """Note the end of a publication. If it was the last one or refused, the event has ended, too."""
        state.missing -= 1
        if state.missing and refusal is None:
            self._go_on(state)
            return
        self._open -= 1
        entry = state.entry
        if refusal is None:
            self.delivered.add(entry.seq)
        elif refusal.scope == "sink":
            self.trouble = self.trouble or refusal
        else:
            error = f"the broker refused it on the topic {_shown(topic)}: {refusal.error}"
            self.failures.append(refusal._replace(error=error).failure(entry))
        self._continue(state.lane, stopped=refusal is not None and refusal.outcome != "rejected")

    def _continue(self, lane: Lane, *, stopped: bool) -> None:
        """Queue a lane again, or hold what is left of it behind an event that failed."""
        alone, self._alone = self._alone, False
        if stopped:
            self.failures += [Failure.held(entry) for entry in lane]
        elif lane:
            (self._suspects if alone else self._ready).append(lane)


def make_lanes(entries: Sequence[Entry], *, ordered: bool, suspects: Mapping[int, int]) -> tuple[list[Lane], list[Lane]]:
    """Divide entries into lanes: those that are above suspicion, and those with an event in them that isn't.

    Args:
        entries: What is to be delivered.
        ordered: Whether the events of one resource have to stay in order.
        suspects: The `seq` of suspected events, and how suspicious they are; the most suspicious goes last.
    """
    if ordered:
        by_resource: dict[str, Lane] = {}
        for entry in entries:
            resource = entry.fields.resource_uri
            lane = by_resource.get(resource)
            if lane is None:
                by_resource[resource] = deque((entry,))
            else:
                lane.append(entry)
        lanes = list(by_resource.values())
    else:
        lanes = [deque((entry,)) for entry in entries]
    if not suspects:
        return lanes, []
    free = [lane for lane in lanes if not any(entry.seq in suspects for entry in lane)]
    suspected = [lane for lane in lanes if any(entry.seq in suspects for entry in lane)]
    return free, sorted(suspected, key=lambda lane: max(suspects.get(entry.seq, 0) for entry in lane))


def _shown(topic: bytes) -> str:
    text = topic.decode()
    return text if len(text) <= 200 else f"{text[:200]}..."
