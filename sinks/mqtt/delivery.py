"""The state of one delivery over MQTT: which publications to send next, and what an acknowledgement means; pure.

An event is sent only after the previous event of its resource was acknowledged. If one is refused, no later event of that
resource is in flight. A busy resource is therefore limited to one publication per round trip. With `ordering: none` and with
QoS 0, where nothing is refused, no event waits. The publications of one event are sent one after another, too.

Events that may break the connection go last, each of them alone; see `sinks.mqtt.breakers`.
"""

import itertools
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from bridge.sink import Entry, Failure
from sinks.classification import Classification
from sinks.mqtt.breakers import shown
from sinks.mqtt.packets import FAILED, PUBACK, PUBREC, classify, encode_publish, encode_release
from sinks.mqtt.publication import Publication

Group = deque[Entry]
"""Entries that must be sent one after another."""

Publish = Callable[[Entry, bool], Sequence[Publication] | Failure | int]
"""Returns the publications of an event, its failure, or if it is not alone (False) the rank at which it is sent alone."""


@dataclass(slots=True)
class _Sending:
    """An event in flight: those of its publications that are not sent, and the number of those without an acknowledgement."""

    entry: Entry
    group: Group
    unsent: Iterator[Publication]
    unacknowledged: int


class Delivery:
    """The state of one delivery.

    Args:
        groups: The entries to deliver; emptied on the way.
        publish: Makes an event's publications.
        delivered: Receives the `seq` of events that were acknowledged.
        qos: Quality of service.
        window: Largest number of publications in flight.

    Attributes:
        topics: Topics on which publications were acknowledged.
        largest: The largest payload among them, in bytes.
        failures: Events that were not delivered.
        unavailable: The refusal after which no more is sent, since it concerns all events.
        downgraded: The broker has ended a publication of QoS 2 with PUBACK.
    """

    def __init__(self, groups: Iterable[Group], publish: Publish, delivered: set[int], *, qos: int, window: int) -> None:
        self.topics: set[bytes] = set()
        self.largest = 0
        self.failures: list[Failure] = []
        self.unavailable: Classification | None = None
        self.downgraded = False
        self._ready = deque(groups)
        self._last: list[tuple[int, Group]] = []
        self._publish = publish
        self._delivered = delivered
        self._qos = qos
        self._window = window
        self._todo: deque[tuple[_Sending, Publication]] = deque()
        # By packet identifier, in sending order, with the time of sending.
        self._in_flight: dict[int, tuple[_Sending, float, Publication]] = {}
        self._ids = itertools.cycle(range(1, 65_536))
        self._acknowledged = 0.0
        self._open = 0
        self._alone = False

    @property
    def done(self) -> bool:
        """True if nothing is left to send and no acknowledgement is awaited."""
        return not (self._open or (self.unavailable is None and (self._ready or self._last)))

    @property
    def silent_since(self) -> float:
        """The monotonic time since which publications are in flight and none was acknowledged, also of the later ones."""
        return max(next(iter(self._in_flight.values()))[1] if self._in_flight else 0.0, self._acknowledged)

    @property
    def in_flight(self) -> Sequence[tuple[int, Publication]]:
        """The publications in flight, with the `seq` of their event."""
        return [(state.entry.seq, publication) for state, _, publication in self._in_flight.values()]

    def fill(self, now: float) -> bytes:
        """Return the packets that may be sent at the monotonic time `now`."""
        parts: list[bytes] = []
        while len(self._in_flight) < self._window and (self._todo or self._start_next()):
            if not self._todo:
                continue
            state, publication = self._todo.popleft()
            packet_id = next(packet_id for packet_id in self._ids if packet_id not in self._in_flight)
            self._in_flight[packet_id] = state, now, publication
            topic, payload, retain, properties = publication
            parts.append(
                encode_publish(topic, payload, qos=self._qos, retain=retain, packet_id=packet_id, properties=properties)
            )
        return b"".join(parts)

    def acknowledge(self, kind: int, packet_id: int, code: int, now: float) -> bytes:
        """Note a PUBACK, PUBREC or PUBCOMP with its reason code, and return the packet that answers it."""
        sent = self._in_flight.get(packet_id)
        # Some brokers do QoS 2 as QoS 1, and answer PUBACK.
        if sent is None or (kind != PUBACK and self._qos == 1):
            return b""
        if kind == PUBACK and self._qos == 2:
            self.downgraded = True
        del self._in_flight[packet_id]
        self._acknowledged = now
        state, _, publication = sent
        if kind == PUBREC and code < FAILED:
            self._in_flight[packet_id] = state, now, publication
            return encode_release(packet_id)
        self._settle(state, publication, classify(code) if code >= FAILED else None)
        return b""

    def acknowledge_all(self) -> None:
        """Note that the broker has read all publications in flight."""
        in_flight, self._in_flight = self._in_flight, {}
        for state, _, publication in in_flight.values():
            self._settle(state, publication)

    def _start_next(self) -> bool:
        """Begin the next event, if there is one and it may be sent; it may fail at once."""
        if self.unavailable is not None or self._alone:
            return False
        if self._ready:
            group = self._ready.popleft()
        elif self._last and not self._open:
            _, group = self._last.pop(0)
            self._alone = True
        else:
            return False
        publications = self._publish(group[0], self._alone)
        if isinstance(publications, int):
            insort(self._last, (publications, group), key=itemgetter(0))
            return True
        entry = group.popleft()
        if isinstance(publications, Failure):
            self.failures.append(publications)
            self._continue(group, stopped=publications.outcome != "rejected")
        else:
            self._open += 1
            self._queue(_Sending(entry, group, iter(publications), len(publications)))
        return True

    def _queue(self, state: _Sending) -> None:
        """Queue the next publication of an event, or with QoS 0, where nothing is refused, all of them."""
        if self._qos:
            self._todo.append((state, next(state.unsent)))
        else:
            self._todo.extend([(state, publication) for publication in state.unsent])

    def _settle(self, state: _Sending, publication: Publication, refusal: Classification | None = None) -> None:
        """Note the end of a publication. If it was the last one or refused, the event has ended, too."""
        if refusal is None:
            self.topics.add(publication.topic)
            self.largest = max(self.largest, len(publication.payload))
        state.unacknowledged -= 1
        if state.unacknowledged and refusal is None:
            self._queue(state)
            return
        self._open -= 1
        entry = state.entry
        if refusal is None:
            self._delivered.add(entry.seq)
        elif refusal.scope == "sink":
            self.unavailable = self.unavailable or refusal
        else:
            error = f"the broker refused it on the topic {shown(publication.topic)}: {refusal.error}"
            self.failures.append(refusal._replace(error=error).failure(entry))
        self._continue(state.group, stopped=refusal is not None and refusal.outcome != "rejected")

    def _continue(self, group: Group, *, stopped: bool) -> None:
        """Queue a group again, or hold the rest of it behind an event that failed."""
        self._alone = False
        if stopped:
            self.failures += [Failure.held(entry) for entry in group]
        elif group:
            self._ready.append(group)
