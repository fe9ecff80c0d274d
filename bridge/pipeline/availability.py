"""The state of a sink, as `/status` shows it, and the delays between attempts to reach one that is away."""

from collections.abc import Callable, Iterator

import msgspec
import structlog

from bridge.journal import Paused
from bridge.logs import debug
from bridge.metrics import SinkMetrics
from bridge.policy import Uniform, backoff, obey
from bridge.sink import Reason, SinkSettings

log = structlog.get_logger(__name__)


class SinkStatus(msgspec.Struct, frozen=True):
    """The state of a sink.

    Attributes:
        up: The sink is open, did not fail since, and is given new events.
        since: When that began, in seconds since the epoch.
        reason: Why it is not up: a failure's label, or why it gets no new events; None before the first failure.
        error: The same in words.
        failures: Failed attempts in a row.
    """

    up: bool
    since: float
    reason: Reason | Paused | None = None
    error: str = "not opened yet"
    failures: int = 0


class Availability:
    """Keeps the state of one sink, and logs its changes.

    Attributes:
        status: The state now.
        acknowledged: The sink has acknowledged an event since it failed last.
    """

    def __init__(
        self, name: str, settings: SinkSettings, metrics: SinkMetrics, clock: Callable[[], float], uniform: Uniform
    ) -> None:
        self.status = SinkStatus(up=False, since=clock())
        self._name = name
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._uniform = uniform
        self._delays = self._new_delays()
        self.acknowledged = False

    def failed(self, reason: Reason, error: str, retry_after: float | None) -> float:
        """Note that the sink is not available; return the seconds to wait before the next attempt."""
        self._metrics.failures[reason].inc()
        self._show(up=False)
        now, before = self._clock(), self.status
        # A sink that was up for that long, even without an event to prove it, begins with the shortest delay.
        if self.acknowledged or (before.up and now - before.since > self._settings.backoff.max):
            self._delays = self._new_delays()
        self.acknowledged = False
        delay = next(self._delays)
        if retry_after is not None:
            # Never sooner than by our own delay: some ask for no time at all.
            delay = max(delay, obey(retry_after, self._settings.retry.max_delay, self._uniform))
        if before.up or before.reason != reason:
            log.warning("sink unavailable", sink=self._name, reason=reason, error=error, next_try_seconds=round(delay, 1))
        debug("attempt failed", sink=self._name, reason=reason, error=error, next_try_seconds=round(delay, 1))
        since = now if before.up else before.since
        self.status = SinkStatus(up=False, since=since, reason=reason, error=error, failures=before.failures + 1)
        return delay

    def works(self, paused: Paused | None = None, count: int = 0) -> None:
        """Note that the sink is open, and why it gets no new events: so many events that wait for a retry, or dead letters."""
        before, now = self.status, self._clock()
        if (before.up, before.reason) == (not paused, paused):
            return
        self._show(up=not paused, paused=paused)
        if paused:
            error = (
                "its dead letters are at their limit (journal.dead_letters.max_bytes); `event-bridge dead-letters` drops some"
            )
            if paused == "retry_queue_full":
                error = f"{count} events wait for a retry (retry.max_pending); new ones are tried when fewer do"
            log.warning("sink unavailable", sink=self._name, reason=paused, error=error)
            self.status = SinkStatus(up=False, since=now if before.up else before.since, reason=paused, error=error)
            return
        self.status = SinkStatus(up=True, since=now, error="")
        log.info("sink available", sink=self._name, after_seconds=round(now - before.since, 1), failures=before.failures)

    def _show(self, *, up: bool, paused: Paused | None = None) -> None:
        self._metrics.up.set(up)
        for reason, gauge in self._metrics.paused.items():
            gauge.set(reason == paused)

    def _new_delays(self) -> Iterator[float]:
        return backoff(self._settings.backoff.first, self._settings.backoff.max, self._uniform)
