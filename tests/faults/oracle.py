"""The oracle: what was sent, what was committed and what arrived goes in, and what is wrong with it comes out. No I/O.

It states its rules once for every fault there is:

lost         every committed event arrives at every sink, or lies in its dead letters
unknown      nothing arrives that was not sent
uncommitted  nothing arrives that is not in the journal
changed      the fields that were sent arrive as they were, with ours added
order        the first arrivals of each resource's events are in the order in which they were sent
repeated     an event arrives once, and once more for every fault at which it was in flight at that sink
journal      what is committed was sent, once, in the order in which it was sent, without a hole
torn         a line is cut short only where a process was killed, one for each kill at most
books        the books balance at every look, and no count ever goes back
progress     when the faults are over, everything is delivered soon

An event is in flight at a sink if the sink might have been told of it and the journal does not say so: the journal's file, as
a killed process left it, holds the sink's cursor and its retry queue. A delivery takes a known number of events from the
cursor on. So of each fault it is known exactly which events may come again, and every other repetition is a violation.

Memory is bounded: an event is forgotten when `window` later ones were sent and it was either not committed or has arrived
everywhere. If it arrives after that, it is `unknown`.
"""

import json
import math
import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

OURS: Final = frozenset({"namespace", "received_at"})
"""The fields that the bridge adds."""

_KEPT: Final = 200
"""Violations of one rule whose evidence is kept; all are counted."""


@dataclass(frozen=True)
class Violation:
    """A rule that does not hold, where, and what there is to see of it."""

    rule: str
    place: str
    evidence: str


@dataclass(slots=True)
class _Resource:
    """The newest event of a resource at each sink, and the number of its events that are remembered."""

    newest: list[int]
    events: int = 0


@dataclass(slots=True)
class _Sent:
    """An event that was sent, and what became of it; the lists have an entry for each sink.

    What was sent again may have been missed the first time, so that nothing is known of its order.
    """

    number: int
    payload: bytes
    resource: _Resource
    arrivals: list[int]
    allowed: list[float]
    dead: list[bool]
    seq: int | None = None
    again: bool = False


@dataclass
class Tally:
    """Counts of one sink: events that arrived, repetitions that a fault explains, and those that none explains.

    Besides, the uuids of its dead letters.
    """

    arrived: int = 0
    explained: int = 0
    unexplained: int = 0
    dead: set[str] = field(default_factory=set)


@dataclass
class Oracle:
    """See the module. May be told things by any thread.

    Attributes:
        sinks: The sinks' names.
        window: For how many events an event is remembered after it has come to its end.
        violations: What is wrong, with evidence.
        broken: How often each rule was broken.
        tallies: What was counted at each sink.
        sent_count: How many different events were sent.
        committed_count: How many of them are in the journal.
        checks: How often the books were looked at.
        kills: How often a process was killed.
    """

    sinks: Sequence[str]
    window: int = 200_000
    violations: list[Violation] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    tallies: dict[str, Tally] = field(default_factory=dict)
    sent_count: int = 0
    committed_count: int = 0
    checks: int = 0
    kills: int = 0

    def __post_init__(self) -> None:
        self.tallies = {name: Tally() for name in self.sinks}
        self._place = {name: place for place, name in enumerate(self.sinks)}
        self._events: dict[str, _Sent] = {}
        self._resources: dict[str, _Resource] = {}
        self._by_seq: dict[int, str] = {}
        self._repeats: deque[tuple[str, _Sent, int]] = deque()
        self._last_committed = -1
        self._counts: dict[object, float] = {}
        self._torn = 0
        self._lock = threading.RLock()

    def violate(self, rule: str, place: str, evidence: str) -> None:
        """Note that a rule does not hold."""
        with self._lock:
            self.broken[rule] += 1
            if self.broken[rule] <= _KEPT:
                self.violations.append(Violation(rule, place, evidence))

    # What is seen

    def sent(self, payload: bytes) -> None:
        """The server is about to send an event, perhaps not for the first time."""
        fields = json.loads(payload)
        with self._lock:
            if fields["uuid"] in self._events:
                self._events[fields["uuid"]].again = True
                return
            resource = self._resources.get(fields["resource_uri"])
            if resource is None:
                resource = self._resources[fields["resource_uri"]] = _Resource([-1] * len(self.sinks))
            resource.events += 1
            sinks = len(self.sinks)
            self._events[fields["uuid"]] = _Sent(
                self.sent_count, payload, resource, arrivals=[0] * sinks, allowed=[0.0] * sinks, dead=[False] * sinks
            )
            self.sent_count += 1

    def arrived(self, sink: str, event: Mapping[str, Any]) -> None:
        """An event has arrived at a sink."""
        at = self._place[sink]
        uuid = str(event.get("uuid"))
        with self._lock:
            sent = self._events.get(uuid)
            if sent is None:
                self.violate("unknown", sink, f"never sent, or delivered everywhere long ago: {json.dumps(event)}")
                return
            wanted = json.loads(sent.payload)
            if {name: value for name, value in event.items() if name not in OURS} != wanted or not event.keys() >= OURS:
                self.violate("changed", sink, f"sent {json.dumps(wanted)}, arrived {json.dumps(event)}")
            sent.arrivals[at] += 1
            if sent.arrivals[at] > 1:
                self._repeats.append((uuid, sent, at))
                return
            self.tallies[sink].arrived += 1
            if sent.again:
                return
            newest = sent.resource.newest[at]
            if newest > sent.number:
                self.violate("order", sink, f"{uuid} (number {sent.number}) of {wanted['resource_uri']} after number {newest}")
            sent.resource.newest[at] = max(newest, sent.number)

    def torn(self, sink: str, line: bytes) -> None:
        """A line has arrived that is not an event: one that was cut short, or something else."""
        with self._lock:
            self._torn += 1
            if self._torn > self.kills:
                self.violate("torn", sink, f"{self._torn} lines were cut short by {self.kills} kills: {line[:500]!r}")

    # What the journal says

    def committed(self, first: int, uuids: Iterable[str]) -> None:
        """The journal holds these events, from seq `first` on; those that it had already are skipped."""
        with self._lock:
            for seq, uuid in enumerate(uuids, first):
                sent = self._events.get(uuid)
                if seq != self.committed_count + 1:
                    self.violate("journal", "journal", f"seq {seq} comes after seq {self.committed_count}")
                if sent is None:
                    self.violate("journal", "journal", f"seq {seq} holds {uuid}, which was not sent")
                elif sent.seq is not None:
                    self.violate("journal", "journal", f"seq {seq} holds {uuid}, and so does seq {sent.seq}")
                else:
                    if sent.number < self._last_committed and not sent.again:
                        self.violate("journal", "journal", f"seq {seq} holds {uuid}, which was sent before the one before it")
                    if not sent.again:
                        self._last_committed = max(self._last_committed, sent.number)
                    sent.seq = seq
                    self._by_seq[seq] = uuid
                self.committed_count = seq

    def buried(self, sink: str, uuids: Iterable[str]) -> None:
        """These lie in a sink's dead letters, and are not to be waited for."""
        at, tally = self._place[sink], self.tallies[sink]
        with self._lock:
            for uuid in set(uuids) - tally.dead:
                tally.dead.add(uuid)
                sent = self._events.get(uuid)
                if sent is None or sent.seq is None:
                    self.violate("unknown", sink, f"a dead letter of what is not in the journal: {uuid}; {self.describe(uuid)}")
                else:
                    sent.dead[at] = True

    def in_flight(self, sink: str, seqs: Iterable[int], times: float = 1) -> None:
        """A fault happened while the events of these numbers may have been on their way: each may come again so many times."""
        at = self._place[sink]
        with self._lock:
            for seq in seqs:
                uuid = self._by_seq.get(seq)
                if uuid is not None:
                    self._events[uuid].allowed[at] += times

    def classify(self) -> None:
        """Classify repetitions, and forget events that are everywhere. Not while a fault goes on."""
        with self._lock:
            while self._repeats:
                uuid, sent, at = self._repeats.popleft()
                tally = self.tallies[self.sinks[at]]
                if sent.arrivals[at] - 1 <= sent.allowed[at]:
                    tally.explained += 1
                else:
                    tally.unexplained += 1
                    words = f"arrived {sent.arrivals[at]} times, {sent.allowed[at]:g} more than once are explained"
                    self.violate("repeated", self.sinks[at], f"{uuid} (seq {sent.seq}) {words}; {self.describe(uuid)}")
            self._forget()

    # Counters

    def balanced(self, problems: Sequence[str], where: str) -> None:
        """Note a look at the counters, and those that do not add up."""
        with self._lock:
            self.checks += 1
            for problem in problems:
                self.violate("books", where, problem)

    def counts(self, counts: Mapping[Any, float], where: str) -> None:
        """Counts that never go back, not over any fault either."""
        with self._lock:
            for name, value in counts.items():
                before = self._counts.get(name, -math.inf)
                if value < before:
                    self.violate("books", where, f"{name} went back from {before:g} to {value:g}")
                self._counts[name] = value

    # The end

    def missing(self) -> int:
        """Count the arrivals that are still to come, over all sinks."""
        with self._lock:
            there = [tally.arrived + len(tally.dead) for tally in self.tallies.values()]
            return sum(max(0, self.committed_count - count) for count in there)

    def finish(self) -> None:
        """Everything is over, and nothing is pending: look for what is lost."""
        with self._lock:
            self.classify()
            for uuid, sent in self._events.items():
                if sent.seq is None:
                    self._check_uncommitted(uuid, sent)
                    continue
                for at, sink in enumerate(self.sinks):
                    if not sent.arrivals[at] and not sent.dead[at]:
                        self.violate("lost", sink, f"{uuid} (seq {sent.seq}): {self.describe(uuid)}")

    def describe(self, uuid: str) -> str:
        """Describe an event: its numbers, and its arrivals at each sink."""
        sent = self._events.get(uuid)
        if sent is None:
            return "nothing is known of it"
        seen = ", ".join(f"{sink} {count} times" for sink, count in zip(self.sinks, sent.arrivals, strict=True))
        return f"sent as number {sent.number}, seq {sent.seq}, arrived at {seen}"

    @property
    def remembered(self) -> int:
        """Count the events in memory."""
        return len(self._events)

    def _forget(self) -> None:
        oldest = self.sent_count - self.window
        while self._events:
            uuid, sent = next(iter(self._events.items()))
            if sent.number >= oldest or (sent.seq is not None and not _is_everywhere(sent)):
                return
            if sent.seq is None:
                self._check_uncommitted(uuid, sent)
            else:
                del self._by_seq[sent.seq]
            del self._events[uuid]
            sent.resource.events -= 1
            if not sent.resource.events:
                del self._resources[json.loads(sent.payload)["resource_uri"]]

    def _check_uncommitted(self, uuid: str, sent: _Sent) -> None:
        for sink, count in zip(self.sinks, sent.arrivals, strict=True):
            if count:
                self.violate("uncommitted", sink, f"{uuid} arrived, and is not in the journal; {self.describe(uuid)}")


def _is_everywhere(sent: _Sent) -> bool:
    return all(arrivals or dead for arrivals, dead in zip(sent.arrivals, sent.dead, strict=True))
