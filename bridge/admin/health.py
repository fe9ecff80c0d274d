"""What the process says of itself: books for the metrics, readiness with reasons, and the status as JSON."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from bridge.admin.settings import HealthSettings
from bridge.event import fields_of
from bridge.forwarder import Forwarder
from bridge.journal import Counters, Journal, JournalError, SinkCounters, StreamCounters
from bridge.stream import Stream, seconds_of
from bridge.supervisor import Running

_STUCK: Final = 30.0
"""Seconds without a tick of the main thread after which the process does not work any more."""


class Reloaded(msgspec.Struct, frozen=True):
    """How the last reload went.

    Attributes:
        at: When, in seconds since the epoch.
        problems: Why nothing was changed; empty if it went well.
    """

    at: float
    problems: Sequence[str]


class Health:
    """Looks at what runs and at the journal; changes nothing. Any thread may ask.

    Attributes:
        settings: When it says that the process is not ready.
        reloaded: What it tells of the last reload; None before the first.
    """

    def __init__(self, journal: Journal, running: Callable[[], Running], *, settings: HealthSettings, version: str) -> None:
        self.settings = settings
        self.reloaded: Reloaded | None = None
        self._journal = journal
        self._running = running
        self._version = version
        self._started = time.time()

    def counters(self) -> Counters:
        """All counts at one instant; a configured stream that has said nothing yet is there with zeros."""
        return self._counters(self._running().streams)

    def gap_seconds(self) -> Mapping[str, float]:
        """For how long each stream was disconnected since the process started."""
        return {stream.name: stream.gaps.total_seconds() for stream in self._running().streams}

    def lag_seconds(self) -> Mapping[str, float]:
        """How old the oldest event is, by its own time, that each sink has not delivered; 0 if none, NaN if nobody knows."""
        return {forwarder.name: self._lag(forwarder.name) for forwarder in self._running().forwarders}

    def damaged_journals(self) -> int:
        """How many damaged journals were set aside and are still there."""
        return len(self._damaged())

    def alive(self, last_tick: float) -> bool:
        """Whether the main thread, whose last tick was at this monotonic time, still works."""
        return time.monotonic() - last_tick < _STUCK

    def problems(self) -> list[str]:
        """Why the process is not able to do its job, in words; empty if it is."""
        now, problems = time.time(), []
        if trouble := self._journal.counters().last_error:
            problems.append(f"journal: {trouble}")
        elif not self._journal.accepts:
            problems.append("journal: still reads which events it knows; after that new ones are accepted")
        for stream in self._running().streams:
            status = stream.status
            if not status.connected and now - status.since > self.settings.stream_grace:
                why = status.error or "no session yet"
                problems.append(f"stream {stream.name}: not connected for {now - status.since:.0f} s: {why}")
        for forwarder in self._running().forwarders:
            down = self._down_seconds(forwarder, now)
            if down > self.settings.sink_grace:
                problems.append(f"sink {forwarder.name}: unavailable for {down:.0f} s: {_words(forwarder)}")
        return problems

    def status(self) -> dict[str, Any]:
        """Everything that an operator may ask, ready for JSON."""
        streams, forwarders, stopping = self._running()
        counters = self._counters(streams)
        return {
            "version": self._version,
            "started": _time(self._started),
            "reload": None if self.reloaded is None else _reload(self.reloaded),
            "problems": self.problems(),
            "journal": {"bytes": counters.bytes, "trouble": counters.last_error, "damaged_files": self._damaged()},
            "streams": {stream.name: _stream(stream, counters.streams[stream.name]) for stream in streams},
            # A sink without books was forgotten a moment ago.
            "sinks": {
                forwarder.name: self._sink(forwarder, counters.sinks[forwarder.name], stopping.get(forwarder.name))
                for forwarder in forwarders
                if forwarder.name in counters.sinks
            },
        }

    def _counters(self, streams: Sequence[Stream]) -> Counters:
        counters = self._journal.counters()
        counters.streams = {stream.name: StreamCounters(malformed={}) for stream in streams} | counters.streams
        return counters

    def _sink(self, forwarder: Forwarder, counters: SinkCounters, leaving: str | None) -> dict[str, Any]:
        status, lag = forwarder.status, self._lag(forwarder.name)
        return {
            "up": status.up,
            "since": _time(status.since),
            "reason": None if status.up else status.reason,
            "error": status.error,
            "failures": status.failures,
            "waiting": forwarder.retry_reasons,
            "next_retry": None if forwarder.next_due is None else _time(forwarder.next_due),
            "unavailable_seconds": round(self._down_seconds(forwarder, time.time()), 3),
            "leaving": leaving,
            "lag_seconds": None if math.isnan(lag) else lag,
            **msgspec.structs.asdict(counters),
        }

    def _damaged(self) -> list[str]:
        try:
            return [str(path) for path in self._journal.damaged_files()]
        except OSError:
            # A directory that can't be read is told of by the journal's trouble.
            return []

    def _lag(self, sink: str) -> float:
        try:
            oldest = self._journal.oldest(sink)
        except KeyError:
            # It was forgotten a moment ago.
            return 0.0
        except JournalError:
            # A failing disk is told of by the journal's trouble; it must not take everything else with it.
            return math.nan
        return 0.0 if oldest is None else max(0.0, time.time() - seconds_of(fields_of(oldest).datetime))

    def _down_seconds(self, forwarder: Forwarder, now: float) -> float:
        """For how long a sink has not been able to deliver; one that hangs in a delivery counts, too."""
        delivering = forwarder.delivering_since
        hanging = 0.0 if delivering is None else time.monotonic() - delivering
        return max(hanging, 0.0 if forwarder.status.up else now - forwarder.status.since)


def _words(forwarder: Forwarder) -> str:
    status = forwarder.status
    return "a delivery has not returned" if status.up else status.error


def _stream(stream: Stream, counters: StreamCounters) -> dict[str, Any]:
    status = stream.status
    return {
        "connected": status.connected,
        "since": _time(status.since),
        "reason": status.reason,
        "error": status.error,
        "attempts": status.attempts,
        "gap_seconds": round(stream.gaps.total_seconds(), 3),
        "gaps": [
            {"start": _time(gap.start), "end": _time(gap.end), "reason": gap.reason, "error": gap.error}
            for gap in list(stream.gaps.latest)
        ],
        **msgspec.structs.asdict(counters),
    }


def _reload(reloaded: Reloaded) -> dict[str, Any]:
    return {"time": _time(reloaded.at), "ok": not reloaded.problems, "problems": list(reloaded.problems)}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
