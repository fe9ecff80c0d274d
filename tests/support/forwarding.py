"""A forwarder with a real journal, a sink that does what the test says, and clocks and chance that are made up."""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from bridge.event import Event
from bridge.journal import Batch, DeadLetter, Journal, JournalSettings, SinkCounters
from bridge.metrics import Metrics, SinkMetrics
from bridge.pipeline.forwarder import Forwarder
from bridge.sink import Entry, Failure, SinkSettings
from tests.support.dead_letters import written
from tests.support.journal_samples import journal_settings

START = 1_700_000_000.0

JSON = (
    '{{"type":"service","action":"update","state":"{state}","resource_uri":"{resource}","parents":[],"uuid":"{uuid}",'
    '"datetime":"2016-02-01T16:47:28Z","namespace":"acme","received_at":"2026-11-23T17:00:00.123456Z"}}'
)


def event(number: int, resource: str, state: str = "Running") -> Event:
    uuid = UUID(int=number)
    return Event(uuid.bytes, JSON.format(uuid=uuid, resource=resource, state=state).encode())


def number_of(entry: Entry) -> int:
    return UUID(entry.fields.uuid).int


class Clock:
    """The time of day and the monotonic time; they go on together, unless the former is set."""

    def __init__(self) -> None:
        self.day = START
        self.monotonic = 50.0

    def pass_(self, seconds: float) -> None:
        self.day += seconds
        self.monotonic += seconds


class HastyJournal(Journal):
    """A journal that does not really wait: it notes for how long it was asked to, and lets something happen meanwhile."""

    def __init__(self, options: JournalSettings) -> None:
        super().__init__(options)
        self.asked: list[float] = []
        self.meanwhile: Callable[[float], bool] = lambda _: False

    def wait(self, seq: int, timeout: float) -> bool:
        self.asked.append(timeout)
        return self.meanwhile(timeout)


Trouble = Callable[[Entry], Failure]


class ScriptedSink:
    """Delivers whatever it gets, except for what the test says; in order per resource, as the contract demands.

    Attributes:
        calls: The events of each call of `deliver`.
        looks: How often its connection was checked.
        gone: What such a check raises.
        got: The events that were acknowledged.
        delivered: Those that the test lets it acknowledge in the middle of a delivery.
        bad: What is returned for an event instead of delivering it.
        script: What the next calls of `deliver` do first: raise, or call something.
        refusals: What the next calls of `open` raise.
    """

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.looks = 0
        self.gone: Exception | None = None
        self.got: list[int] = []
        self.delivered: set[int] = set()
        self.bad: dict[int, Trouble] = {}
        self.script: deque[Exception | Callable[[], object]] = deque()
        self.refusals: deque[Exception] = deque()
        self.close_error: Exception | None = None
        self.opened = 0
        self.closed = 0

    def open(self) -> None:
        self.opened += 1
        if self.refusals:
            raise self.refusals.popleft()

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        assert entries
        self.calls.append([number_of(entry) for entry in entries])
        step = self.script.popleft() if self.script else lambda: None
        if isinstance(step, Exception):
            raise step
        step()
        failures: dict[int, Failure] = {}
        failed: set[str] = set()
        for entry in entries:
            if entry.fields.resource_uri in failed:
                failures[entry.seq] = Failure.held(entry)
            elif number_of(entry) in self.bad:
                failures[entry.seq] = failure = self.bad[number_of(entry)](entry)
                if failure.outcome != "rejected":
                    failed.add(entry.fields.resource_uri)
            else:
                self.got.append(number_of(entry))
        return list(failures.values())

    def check_connection(self) -> None:
        self.looks += 1
        if self.gone is not None:
            raise self.gone

    def close(self) -> None:
        self.closed += 1
        if self.close_error is not None:
            raise self.close_error


class Bench:
    """A forwarder with all that it needs."""

    def __init__(self, directory: Path, options: dict[str, Any], sink_settings: dict[str, Any]) -> None:
        self.clock = Clock()
        self.metrics = Metrics("test")
        self.settings = SinkSettings.model_validate({"type": "scripted", **sink_settings})
        self._options = journal_settings(directory / "journal.db", durability="normal", **options)
        self.path = self._options.path
        self.start()

    def start(self) -> None:
        """As after a start of the process."""
        self.sink = ScriptedSink()
        self.renewals: deque[Exception | ScriptedSink | None] = deque()
        self.journal = HastyJournal(self._options)
        self.journal.add_sink("a", "earliest")
        self.forwarder = Forwarder(
            "a",
            self.sink,
            self.settings,
            self.journal,
            metrics=SinkMetrics(self.metrics, "a"),
            clock=lambda: self.clock.day,
            monotonic=lambda: self.clock.monotonic,
            uniform=lambda _, highest: highest,
            rebuild_sink=self.rebuild_sink,
        )

    def rebuild_sink(self) -> ScriptedSink | None:
        """Another sink, if the test says so."""
        renewal = self.renewals.popleft() if self.renewals else None
        if isinstance(renewal, Exception):
            raise renewal
        return renewal

    def restart(self) -> None:
        self.journal.close()
        self.start()

    def send(self, *events: tuple[int, str]) -> None:
        """Append events, each a number and its resource, as one batch."""
        self.journal.append(Batch("s", self.clock.day, [event(number, resource) for number, resource in events], []))

    def letters(self) -> list[DeadLetter]:
        return list(written(self.journal, sink="a").values())

    def step(self) -> float:
        seconds = self.forwarder.step()
        counters = self.counters
        exits = counters.delivered + counters.filtered + counters.dead + counters.dropped
        assert counters.accepted + counters.replayed + counters.rewound == exits + counters.pending
        assert counters.dead == counters.dead_letters + counters.replayed + counters.discarded
        return seconds

    def step_after(self, seconds: float) -> float:
        self.clock.pass_(seconds)
        return self.step()

    @property
    def counters(self) -> SinkCounters:
        return self.journal.counters().sinks["a"]

    @property
    def last_call(self) -> list[int]:
        return self.sink.calls[-1]

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"event_bridge_sink_{name}", {"sink": "a", **labels})


Make = Callable[..., Bench]


def retry(entry: Entry) -> Failure:
    return Failure.retry(entry, "server_error", "the receiver answers 500")


def rejected(entry: Entry) -> Failure:
    return Failure.rejected(entry, "rejected", "the receiver answers 400")
