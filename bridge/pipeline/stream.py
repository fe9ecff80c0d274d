"""A stream: one source of events, kept connected for ever.

Kinds of streams differ in how a session is opened and read (`bridge.source`, implemented in `bridge.sources`). The rest is the
same for all: normalize the messages of a read, commit them as one batch, wait with backoff after the session has ended.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol

import msgspec
import structlog

from bridge.event import OLDEST, Control, Event, Malformed, age_seconds, fields_of, normalize_all
from bridge.journal import Batch
from bridge.logs import debug
from bridge.metrics import StreamMetrics
from bridge.pipeline.gaps import LONG_SECONDS, GapTracker
from bridge.policy import Uniform, backoff
from bridge.source import Ended, EndReason, Read, Session, Source, SourceSettings
from bridge.text import without

log = structlog.get_logger(__name__)

_MOVED_SECONDS: Final = 1.0
"""Time between two records of a position that moves without events."""

_HEARD_SECONDS: Final = 10.0
"""Time between two records of a sign of life: a gap after a kill is too long by so much at most."""

_MALFORMED_LOG_SECONDS: Final = 60.0
"""Time between two log lines about malformed messages; the metrics count them all."""


class Destination(Protocol):
    """Receiver of a stream's batches: the journal, or a printer of events."""

    def append(self, batch: Batch) -> object:
        """Store a batch; it is durable when this returns."""

    def position(self, stream: str) -> str | None:
        """Return the position from which the stream resumes, or None."""


class Mark(NamedTuple):
    """The state of a stream as the journal keeps it, in the text that it calls a position.

    Attributes:
        position: From where the source resumes; None if it has no replay.
        heard: When the stream was last known to work, in seconds since the epoch; None if that was not recorded.
    """

    position: str | None = None
    heard: float | None = None

    def __str__(self) -> str:
        return f"{self.position or ''}@{self.heard:.3f}"

    @classmethod
    def parse(cls, text: str | None) -> "Mark":
        """Read what `str` wrote, or a bare position, which earlier versions recorded."""
        position, _, heard = (text or "").rpartition("@")
        try:
            return cls(position or None, float(heard))
        except ValueError:
            return cls(text or None)


class StreamStatus(msgspec.Struct, frozen=True):
    """Status of a stream.

    Attributes:
        connected: A session is open.
        since: Time of the last change of `connected`, in seconds since the epoch.
        reason: Reason for which the last session ended, or could not be opened; None before that happened.
        error: The same as text.
        attempts: Failed attempts since the last session.
    """

    connected: bool
    since: float
    reason: EndReason | None = None
    error: str = ""
    attempts: int = 0


class Stream:
    """Keeps one source connected and commits its messages.

    Args:
        name: The stream's name, for the journal, logs and metrics.
        settings: Namespace of the events (empty: each resource URI has it), and times of reconnecting.
        source: Opens sessions.
        journal: Receiver of the batches.
        metrics: The stream's metrics.
        max_event_bytes: Larger messages are malformed.
        gaps: Gap tracker of the stream being replaced, or None. If given, the new session opens at once but is read only after
            `start_reading`: the old session may still commit older events.
        clock: Time of day in seconds since the epoch.
        monotonic: Monotonic clock.
        uniform: Source of randomness.

    Attributes:
        gaps: Times without a session.
    """

    def __init__(
        self,
        name: str,
        settings: SourceSettings,
        source: Source,
        journal: Destination,
        *,
        metrics: StreamMetrics,
        max_event_bytes: int,
        gaps: GapTracker | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Uniform = random.uniform,
    ) -> None:
        self.name = name
        self._settings = settings
        self._source = source
        self._journal = journal
        self._metrics = metrics
        self._max_event_bytes = max_event_bytes
        self._clock = clock
        self._monotonic = monotonic
        self._uniform = uniform
        self._session: Session | None = None
        self._stopping = False
        self._may_read = threading.Event()
        if gaps is None:
            self._may_read.set()
        self._mark = self._recorded = Mark.parse(journal.position(name))
        self._recorded_at = -math.inf
        self._opened: float | None = None
        self._delays = self._new_delays()
        self._auth_delays = self._new_auth_delays()
        self.gaps = gaps or GapTracker(metrics.connected.set, clock, monotonic, self._mark.heard)
        self._heard = monotonic()
        self._quiet_until = 0.0
        self.status = StreamStatus(connected=False, since=clock())

    def step(self) -> float:
        """Open a session and read it to its end; return the seconds to wait before the next.

        Raises:
            Closed: The journal was closed.
        """
        self._opened = None
        try:
            self._session = self._source.open(self._mark.position)
            if not self._stopping:
                self._connected()
                self._may_read.wait()
            while not self._stopping:
                self._take(self._session.read())
        except Ended as end:
            return self._ended(end)
        except BaseException:
            self._ended(Ended("a bug, or the end of the process; see the log", "internal"))
            raise
        finally:
            if self._session is not None:
                self._session.close()
                self._session = None
        return self._ended(Ended("stopped by us", "closed"))

    def start_reading(self) -> None:
        """Begin to read: the replaced stream commits nothing any more."""
        self._may_read.set()

    def stop(self) -> None:
        """End the session from another thread; the next `step` is not to be called."""
        self._stopping = True
        self._may_read.set()
        session = self._session
        if session is not None:
            session.abort()

    def _take(self, read: Read) -> None:
        """Commit the messages of one read."""
        now = self._clock()
        if read.heard:
            self._heard = self._monotonic()
            self._metrics.last_frame.set(now)
        if read.ignored:
            self._metrics.ignored.inc(read.ignored)
        received = datetime.fromtimestamp(now, UTC)
        events, malformed, controls = normalize_all(read.messages, self._settings.namespace, received, self._max_event_bytes)
        mark = Mark(read.position or self._mark.position, now if read.heard or events else self._mark.heard)
        if events or malformed or self._is_due(mark):
            self._commit(events, malformed, mark, now)
            self._observe(events, now)
        self._mark = mark
        if malformed and self._monotonic() >= self._quiet_until:
            self._quiet_until = self._monotonic() + _MALFORMED_LOG_SECONDS
            log.warning("messages that are no events were put into quarantine", stream=self.name, reason=malformed[0].reason)
        for control in controls:
            self._control(control, read.secrets)

    def _is_due(self, mark: Mark) -> bool:
        """Return whether a mark is worth a commit without events."""
        if mark.heard is None or mark == self._recorded:
            return False
        pause = _HEARD_SECONDS if mark.position == self._recorded.position else _MOVED_SECONDS
        return self._monotonic() - self._recorded_at >= pause

    def _commit(self, events: list[Event], malformed: list[Malformed], mark: Mark, now: float) -> None:
        self.gaps.waits_since = began = self._monotonic()
        try:
            self._journal.append(Batch(self.name, now, events, malformed, str(mark), self._settings.namespace))
            self._recorded, self._recorded_at = mark, self._monotonic()
            debug("committed", stream=self.name, events=len(events), malformed=len(malformed))
            if self._recorded_at - began >= LONG_SECONDS:
                self.gaps.waited()
                self._heard = self._recorded_at
        finally:
            self.gaps.waits_since = None

    def _observe(self, events: Sequence[Event], now: float) -> None:
        undated = sum(not event.dated for event in events) + any(fields_of(e.json).datetime < OLDEST for e in events[:1])
        if undated:
            self._metrics.undated.inc(undated)
        if events:
            self._metrics.lag.observe_all(age_seconds(events[0].json, now), len(events))
            self._metrics.last_event.set(now)

    def _control(self, control: Control, secrets: Sequence[str]) -> None:
        self._metrics.control[control.type].inc()
        log.info("control frame", stream=self.name, type=control.type, text=without(secrets, control.text)[:200])
        if control.unauthorized:
            raise Ended("the server says UNAUTHORIZED", "unauthorized")

    def _connected(self) -> None:
        now = self._clock()
        self._opened = self._heard = self._monotonic()
        self._recorded_at = -math.inf
        gap = self.gaps.opened()
        log.info("stream connected", stream=self.name, gap_seconds=round(gap, 3), attempts=self.status.attempts)
        self.status = StreamStatus(connected=True, since=now, reason=self.status.reason, error=self.status.error)

    def _ended(self, end: Ended) -> float:
        """Record the end of a session, or a failure to open one; return the seconds to wait."""
        before, was_open, silent = self.status, self._opened is not None, 0.0
        if was_open:
            # Messages sent after the last sign of life may be lost: the gap begins there, not when we noticed.
            silent = self._monotonic() - self._heard if end.reason == "dead" else 0.0
            self.gaps.closed(end, silent)
        elif not self._stopping:
            self.gaps.failed(end)
        self.status = StreamStatus(
            connected=False,
            since=self._clock() - silent if was_open else before.since,
            reason=end.reason,
            error=end.error,
            attempts=0 if was_open else before.attempts + 1,
        )
        if self._stopping:
            mark = self._mark._replace(heard=self._clock() - silent)
            long_ago = self._monotonic() - self._recorded_at >= _MOVED_SECONDS
            if was_open and long_ago and self._mark.heard is not None and end.reason != "internal":
                self._commit([], [], mark, self._clock())
            return 0.0
        self._metrics.reconnects[end.reason].inc()
        delay = self._delay(end)
        debug("session ended", stream=self.name, reason=end.reason, error=end.error, next_try_seconds=round(delay, 1))
        if was_open or end.reason != before.reason:
            log.warning(
                "stream disconnected", stream=self.name, reason=end.reason, error=end.error, next_try_seconds=round(delay, 1)
            )
        return delay

    def _delay(self, end: Ended) -> float:
        if self._opened is not None and self._monotonic() - self._opened >= self._settings.stable_after:
            self._delays, self._auth_delays = self._new_delays(), self._new_auth_delays()
        again = self._settings.auth_backoff
        asked = min(end.retry_after or 0.0, again.max)
        if end.reason == "unauthorized":
            # The jitter comes on top: even rare attempts in quick succession lock the account.
            return max(asked, min(again.max, again.first + next(self._auth_delays)))
        return max(asked, next(self._delays))

    def _new_delays(self) -> Iterator[float]:
        return backoff(self._settings.backoff.first, self._settings.backoff.max, self._uniform)

    def _new_auth_delays(self) -> Iterator[float]:
        return backoff(self._settings.auth_backoff.first, self._settings.auth_backoff.max, self._uniform)
