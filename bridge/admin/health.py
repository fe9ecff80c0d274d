"""Health of the process: counters for the metrics, readiness with reasons, and the status."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from bridge.admin.settings import HealthSettings
from bridge.event import age_seconds
from bridge.journal import Counters, Journal, JournalError, SinkBacklog, SinkCounters, StreamCounters
from bridge.pipeline.forwarder import Forwarder
from bridge.pipeline.stream import Stream
from bridge.pipeline.supervisor import Running
from bridge.pipeline.threads import Pause
from bridge.sink import Reason

Pauses = Mapping[str, Pause]

_STUCK: Final = 30.0
"""Seconds without a tick of the main thread after which the process does not work any more."""


class Reloaded(msgspec.Struct, frozen=True):
    """Outcome of the last reload.

    Attributes:
        at: Seconds since the epoch.
        problems: Why nothing was changed; empty if it went well.
    """

    at: float
    problems: Sequence[str]


class ReloadReport(msgspec.Struct, frozen=True):
    """The last reload, in the status."""

    time: str
    ok: bool
    problems: Sequence[str]


class JournalReport(msgspec.Struct, frozen=True):
    """The journal, in the status."""

    bytes: int
    trouble: str | None
    damaged_files: list[str]


class GapReport(msgspec.Struct, frozen=True):
    """A gap of a stream, in the status."""

    start: str
    end: str
    reason: str
    error: str


class StreamReport(StreamCounters, kw_only=True):
    """A stream, in the status: its state beside its counters."""

    connected: bool
    since: str
    reason: str | None
    error: str
    attempts: int
    next_attempt: datetime | None
    gap_seconds: float
    gaps: list[GapReport]


class SinkReport(SinkBacklog, kw_only=True):
    """A sink, in the status: its state beside its counters.

    Attributes:
        since: The time at which `up` changed.
        waiting: The last error of each reason why events wait for a retry.
        next_retry: When the next event of the retry queue is due.
        leaving: Why a sink that was removed or changed still runs.
    """

    filtered: int
    dead: int
    dropped: int
    replayed: int
    rewound: int
    discarded: int
    since: str
    reason: str | None
    failures: int
    waiting: Mapping[Reason, str]
    next_retry: str | None
    unavailable_seconds: float
    leaving: str | None


class Status(msgspec.Struct, frozen=True):
    """The answer of `/status`. The command `backlog` decodes the `SinkBacklog` in its sinks."""

    version: str
    started: str
    reload: ReloadReport | None
    problems: list[str]
    journal: JournalReport
    streams: dict[str, StreamReport]
    sinks: dict[str, SinkReport]


class Health:
    """Observes the running parts and the journal, from any thread, and changes nothing.

    Attributes:
        settings: Limits of readiness.
        reloaded: The last reload; None before the first.
    """

    def __init__(self, journal: Journal, running: Callable[[], Running], *, settings: HealthSettings, version: str) -> None:
        self.settings = settings
        self.reloaded: Reloaded | None = None
        self._journal = journal
        self._running = running
        self._version = version
        self._started = time.time()

    def counters(self) -> Counters:
        """Return all counters at one instant, with zeros for a configured stream without events."""
        return self._counters(self._running().streams)

    def gap_seconds(self) -> Mapping[str, float]:
        """Return the seconds for which each stream was disconnected since the process started."""
        return {stream.name: stream.gaps.total_seconds() for stream in self._running().streams}

    def lag_seconds(self) -> Mapping[str, float]:
        """Return the age of the oldest undelivered event of each sink; 0 if none, NaN if it can't be read."""
        return {forwarder.name: self._lag(forwarder.name) for forwarder in self._running().forwarders}

    def damaged_journals(self) -> int:
        """Return the number of damaged journals that were set aside and are still there."""
        return len(self._damaged())

    def alive(self, last_tick: float) -> bool:
        """Return True if the main thread, whose last tick was at this monotonic time, still works."""
        return time.monotonic() - last_tick < _STUCK

    def problems(self, *, within_grace: bool = False, texts: bool = True) -> list[str]:
        """Return the reasons why the process is not ready.

        Args:
            within_grace: Add what may become a reason, marked as such.
            texts: Add the words of peers, and paths.
        """
        now, problems = time.time(), []
        if trouble := self._journal.counters().last_error:
            problems.append(f"journal: {trouble}")
        elif not self._journal.accepts:
            problems.append("journal: still reads which events it knows; after that new ones are accepted")
        for stream in self._running().streams:
            status = stream.status
            down, grace = 0.0 if status.connected else now - status.since, self.settings.stream_grace
            if down > (0 if within_grace else grace):
                why = status.error or "no session yet"
                problems.append(f"stream {stream.name}: not connected for {down:.0f} s{_marked(down, grace)}: {why}")
        for forwarder in self._running().forwarders:
            down, grace = self._down_seconds(forwarder, now), self.settings.sink_grace
            # A delivery that has not returned is nothing to tell of before its time.
            if down > (0 if within_grace and not forwarder.status.up else grace):
                words = f"unavailable for {down:.0f} s{_marked(down, grace)}: {_words(forwarder)}"
                problems.append(f"sink {forwarder.name}: {words}")
        return (
            problems if texts else [": ".join(problem.split(": ")[: 1 + (problem[:8] != "journal:")]) for problem in problems]
        )

    def status(self, *, texts: bool = True) -> Status:
        """Everything that an operator may ask."""
        streams, forwarders, stopping, pauses = self._running()
        counters = self._counters(streams)
        return Status(
            version=self._version,
            started=_time(self._started),
            reload=_reload_report(self.reloaded) if self.reloaded else None,
            problems=self.problems(within_grace=True, texts=texts),
            journal=JournalReport(counters.bytes, counters.last_error, self._damaged()),
            streams={stream.name: _stream_report(stream, counters.streams[stream.name], pauses) for stream in streams},
            # A sink without counters was forgotten a moment ago.
            sinks={
                forwarder.name: self._sink_report(
                    forwarder, counters.sinks[forwarder.name], stopping.get(forwarder.name), pauses
                )
                for forwarder in forwarders
                if forwarder.name in counters.sinks
            },
        )

    def _counters(self, streams: Sequence[Stream]) -> Counters:
        counters = self._journal.counters()
        counters.streams = {stream.name: StreamCounters(malformed={}) for stream in streams} | counters.streams
        return counters

    def _sink_report(self, forwarder: Forwarder, counters: SinkCounters, leaving: str | None, pauses: Pauses) -> SinkReport:
        status, lag, due = forwarder.status, self._lag(forwarder.name), forwarder.next_due
        attempt = _next_attempt(pauses, f"sink-{forwarder.name}")
        return SinkReport(
            up=status.up,
            since=_time(status.since),
            reason=None if status.up else status.reason,
            error=status.error,
            failures=status.failures,
            waiting=forwarder.retry_reasons,
            next_attempt=None if status.up else attempt,
            # Not before the sink is tried again, and never in the past.
            next_retry=None if due is None else _time(max(due, (attempt or datetime.now(UTC)).timestamp())),
            unavailable_seconds=round(self._down_seconds(forwarder, time.time()), 3),
            leaving=leaving,
            lag_seconds=None if math.isnan(lag) else lag,
            **msgspec.structs.asdict(counters),
        )

    def _damaged(self) -> list[str]:
        try:
            return [str(path) for path in self._journal.damaged_files()]
        except OSError:
            # The journal's last error tells of a directory that can't be read.
            return []

    def _lag(self, sink: str) -> float:
        try:
            oldest = self._journal.oldest(sink)
        except KeyError:
            # It was forgotten a moment ago.
            return 0.0
        except JournalError:
            # The journal's last error tells of a failing disk; the rest of the status must not fail with it.
            return math.nan
        return age_seconds(oldest, time.time())

    def _down_seconds(self, forwarder: Forwarder, now: float) -> float:
        """Return the seconds for which a sink could not deliver; a delivery that hangs counts, too."""
        delivering = forwarder.delivering_since
        hanging = 0.0 if delivering is None else time.monotonic() - delivering
        return max(hanging, 0.0 if forwarder.status.up else now - forwarder.status.since)


def without_texts(status: Status) -> object:
    """Return the status for everybody: without the words of peers, and without paths."""
    found = msgspec.to_builtins(status)
    if found["reload"]:
        found["reload"]["problems"] = []
    found["journal"] |= {"trouble": found["journal"]["trouble"] and "see the log", "damaged_files": []}
    for part in (*found["streams"].values(), *found["sinks"].values()):
        part["error"] = part["error"] and "see the log"
        if "waiting" in part:
            part["waiting"] = {}
        else:
            part["gaps"] = []
    return found


def _marked(down: float, grace: float) -> str:
    return "" if down > grace else f" (within its grace of {grace:g} s)"


def _words(forwarder: Forwarder) -> str:
    status = forwarder.status
    return "a delivery has not returned" if status.up else status.error


def _reload_report(reloaded: Reloaded) -> ReloadReport:
    return ReloadReport(_time(reloaded.at), not reloaded.problems, reloaded.problems)


def _next_attempt(pauses: Pauses, name: str) -> datetime | None:
    until = pauses[name].until if name in pauses else None
    return None if until is None else datetime.fromtimestamp(until, UTC)


def _stream_report(stream: Stream, counters: StreamCounters, pauses: Pauses) -> StreamReport:
    status = stream.status
    return StreamReport(
        connected=status.connected,
        since=_time(status.since),
        reason=status.reason,
        error=status.error,
        attempts=status.attempts,
        next_attempt=None if status.connected else _next_attempt(pauses, f"stream-{stream.name}"),
        gap_seconds=round(stream.gaps.total_seconds(), 3),
        gaps=[GapReport(_time(gap.start), _time(gap.end), gap.reason, gap.error) for gap in list(stream.gaps.latest)],
        **msgspec.structs.asdict(counters),
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
