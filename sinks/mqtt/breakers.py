"""Events over which a broker closes the connection, mostly without a reason; pure.

The events in flight when a connection broke are suspects: they are sent after all others, one at a time, and so is meanwhile
what is on a topic or of a size that the broker has not accepted yet. If the connection breaks twice while a suspect is alone in
flight, and took others, the suspect is blamed, and with it

- its topic, if the broker has not accepted anything on it (a forbidden topic, a space in a topic of NATS),
- its size and everything above, if it is larger than all that was accepted, and its topic was accepted; or if it is half as
  large again, and so were those on two other topics,
- otherwise the event alone.

Events like that are not sent, but for one at a time, alone and last, at growing intervals. What the broker accepts is cleared.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from bridge.sink import Entry, Failure
from sinks.classification import Classification
from sinks.mqtt.publication import Publication

_LAST: Final = 1 << 20
"""Rank of an event that is known to break the connection, after all suspects."""

_STRUCK: Final = -1
"""Rank of a suspect that has broken a connection which took others: it is sent again, before other suspects."""

_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 600.0
"""Seconds between two trials of such events, doubled each time."""


class Breakers:
    """Knows what breaks connections.

    Attributes:
        active: There are suspects, or events that are not to be sent.
    """

    def __init__(self) -> None:
        self.active = False
        self._suspects: dict[int, int] = {}  # By `seq`: the rank at which it is sent.
        self._verdicts: dict[int, Classification] = {}  # By `seq`: what becomes of it when it comes next.
        self._events: set[int] = set()
        self._topics: dict[bytes, int] = {}  # With the smallest payload that broke the connection.
        self._limit: int | None = None
        self._accepted: set[bytes] = set()
        self._largest = 0
        self._next_trial, self._pause = 0.0, _FIRST_PAUSE

    def judge(self, entry: Entry, publications: Sequence[Publication], now: float, *, alone: bool) -> Failure | int | None:
        """Return None if the event may be sent now, otherwise its failure, or the rank at which it may be sent alone.

        It is sent alone if `alone`; `now` is a monotonic time.
        """
        verdict = self._verdicts.pop(entry.seq, None)
        if verdict is not None:
            return verdict.failure(entry)
        error = self._blame_on(entry.seq, publications)
        if error is None:
            # With suspects about, what is new to the broker may break the connection, too, before they are found.
            if self._suspects and any(p.topic not in self._accepted or len(p.payload) > self._largest for p in publications):
                self._suspects.setdefault(entry.seq, 0)
            return None if alone else self._suspects.get(entry.seq)
        if now < self._next_trial:
            return Failure.retry(entry, "server_error", error, self._next_trial - now)
        if not alone:
            return _LAST
        self._next_trial, self._pause = now + self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        self._suspects[entry.seq] = _STRUCK
        return None

    def accepted(self, delivered: AbstractSet[int], topics: set[bytes], largest: int) -> None:
        """Clear what the broker has accepted: events by `seq`, topics, and payloads up to the `largest` in bytes."""
        for memory in (self._suspects, self._events, self._topics, self._accepted):
            if len(memory) > 10_000:
                memory.clear()
        self._accepted |= topics
        self._largest = max(self._largest, largest)
        if not self.active:
            return
        for seq in self._suspects.keys() & delivered:
            del self._suspects[seq]
        known = self._topics, self._limit, self._events
        self._topics = {topic: size for topic, size in self._topics.items() if topic not in topics}
        self._limit = None if self._limit is not None and largest >= self._limit else self._limit
        self._events = self._events - delivered
        if known != (self._topics, self._limit, self._events):
            self._next_trial, self._pause = 0.0, _FIRST_PAUSE
        self.active = bool(self._suspects or self._verdicts or self._events or self._topics or self._limit)

    def disconnected(
        self, in_flight: Sequence[tuple[int, Publication]], refusal: Classification | None, *, accepts: bool
    ) -> bool:
        """Note what was in flight when the connection broke; return True if the reason is certainly this event.

        Args:
            in_flight: Publications with the `seq` of their event.
            refusal: The reason that the broker sent, if any.
            accepts: The broker has accepted something on this connection.
        """
        seqs = {seq for seq, _ in in_flight}
        if not seqs or (refusal is not None and refusal.scope == "sink"):
            return False
        self.active = True
        suspected = seqs <= self._suspects.keys()
        for seq in seqs:
            self._suspects.setdefault(seq, 0)
        if len(seqs) > 1:
            return False
        (seq,) = seqs
        if refusal is not None and refusal.outcome == "rejected":
            self._verdicts[seq] = refusal._replace(error=f"the broker ended the connection over it: {refusal.error}")
            return True
        if not accepts:
            self._suspects[seq] = max(0, self._suspects[seq]) + 1
        elif self._suspects[seq] != _STRUCK:
            self._suspects[seq] = _STRUCK
        else:
            publication = max((p for _, p in in_flight), key=lambda p: (p.topic not in self._accepted, len(p.payload)))
            del self._suspects[seq]
            self._blame(seq, publication)
            error = self._blame_on(seq, [publication]) or ""
            self._verdicts[seq] = Classification("event", "retry", "server_error", error)
        return accepts and suspected

    def _blame(self, seq: int, publication: Publication) -> None:
        topic, size = publication.topic, len(publication.payload)
        if topic not in self._accepted:
            self._topics[topic] = min(size, self._topics.get(topic, size))
            if len(self._topics) > 2 and min(self._topics.values()) > 1.5 * self._largest:
                self._limit, self._topics = min(self._topics.values()), {}
        elif size > self._largest:
            self._limit = size if self._limit is None else min(size, self._limit)
        else:
            self._events.add(seq)
        # If another event on it breaks the connection before one is accepted, it is the topic.
        self._accepted.discard(topic)

    def _blame_on(self, seq: int, publications: Sequence[Publication]) -> str | None:
        """Return the error of an event that is known to break the connection; None for others."""
        for topic, payload, _, _ in publications:
            if topic in self._topics:
                hint = '; perhaps over the space in it (set `replace: {" ": "_"}`)' if b" " in topic else ""
                return f"the connection breaks when something is published on the topic {shown(topic)}{hint}"
            if self._limit is not None and len(payload) >= self._limit:
                limit = f"the connection breaks over events of {self._limit} bytes and more"
                return f"{limit}; those above `max_event_bytes` become dead letters"
        if seq in self._events:
            return "the connection broke each time when this event was sent alone, and took others"
        return None


def shown(topic: bytes) -> str:
    """Return the text of a topic, cut to 200 characters."""
    text = topic.decode()
    return text if len(text) <= 200 else f"{text[:200]}..."
