"""A forwarder moves one sink's cursor: from the journal to the sink, and the outcome back into the journal.

One `step` asks the journal for work (due retries first, then what lies after the cursor), delivers it and settles the outcome.
If the sink as a whole fails, nothing moves: close, wait, open, and deliver the same events again. An idle sink that has
`check_connection` is asked about once a second, so that a lost connection is found before the next event.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import structlog

from bridge.journal import Closed, DeadLetter, Journal, JournalError, Limits, Paused, Retry, Settlement, Work
from bridge.logs import debug
from bridge.metrics import SinkMetrics
from bridge.pipeline.availability import Availability, SinkStatus
from bridge.pipeline.delivery import DueRetries, NewEvents, is_full
from bridge.pipeline.retries import CROWDED_ATTEMPTS, decide, new_retry, ordering_key
from bridge.policy import Brake, Filter, LossTracker, Summary, Uniform
from bridge.sink import Failure, Reason, Sink, SinkSettings, Unavailable

log = structlog.get_logger(__name__)

_IDLE_SECONDS: Final = 1.0


class Forwarder:
    """Delivers to one sink.

    Args:
        journal: It must know the sink already.
        rebuild_sink: Called before the sink is opened; returns the sink made with new secrets that replaces it, mostly None.
        clock: The time of day in seconds since the epoch.

    Attributes:
        busy: True if the last step moved anything.
        delivering_since: The monotonic time at which a delivery began that has not returned yet.
        retry_reasons: Each reason for a retry since the retry queue was empty, with its last error.
        next_due: When the next event of the retry queue is due, in seconds since the epoch; None if there was none.
        delivery_begins: Called when `record_progress` is worth a call again and again.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        settings: SinkSettings,
        journal: Journal,
        *,
        metrics: SinkMetrics,
        rebuild_sink: Callable[[], Sink | None] = lambda: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Uniform = random.uniform,
    ) -> None:
        self.name = name
        self.busy = False
        self.delivering_since: float | None = None
        self.retry_reasons: Mapping[Reason, str] = {}
        self.next_due: float | None = None
        self.delivery_begins: Callable[[], None] = lambda: None
        self.settings = settings
        self._sink = sink
        self._filter = Filter(settings.match, settings.drop) if settings.match or settings.drop else None
        self._journal = journal
        self._metrics = metrics
        self._rebuild_sink = rebuild_sink
        self._clock = clock
        self._monotonic = monotonic
        self._uniform = uniform
        self._availability = Availability(name, settings, metrics, clock, uniform)
        self._open = False
        # The delivery under way; held while it is settled, by the forwarder's thread or by another one.
        self._delivery: NewEvents | DueRetries | None = None
        self._settling = threading.Lock()
        # Sequence numbers after the cursor that were acknowledged before the sink broke: not to be delivered again.
        self._acknowledged: AbstractSet[int] = set()
        # Retries and new events take turns: retries may break the sink, or take long each time.
        self._new_first = False
        self._retrying = 0
        self._brake = Brake(settings.retry.max_pending, settings.backoff.max, monotonic())
        self._losses = {NewEvents: LossTracker(), DueRetries: LossTracker()}
        self._deaths = Summary()
        self._last_death: DeadLetter | None = None
        self._paused: Paused | None = None

    @property
    def status(self) -> SinkStatus:
        """The state of the sink."""
        return self._availability.status

    def step(self) -> float:
        """Move what can be moved now, waiting a second for it at most; return the seconds to wait before the next step.

        Raises:
            Closed: The journal was closed.
            JournalError: The journal can't be read, which is not the sink's failure.
        """
        self.busy = False
        try:
            if not self._open:
                self._sink = self._rebuild_sink() or self._sink
                self._sink.open()
                self._open = True
            wait = self._forward()
        except (Closed, JournalError):
            raise
        except Unavailable as error:
            self.close()
            return self._availability.failed(error.reason, str(error), error.retry_after)
        except Exception as error:
            if self.status.reason != "internal":
                log.exception("the sink has a bug; its events wait", sink=self.name)
            self.close()
            return self._availability.failed("internal", f"{type(error).__name__} in the sink, see the log", None)
        paused, limit = self._paused, self._brake.paused_at(self._retrying) if self._retrying else None
        if limit or (paused == "retry_queue_full" and self.busy):
            paused = "retry_queue_full" if limit else None  # The delivery may have made room.
        if paused or not self.status.up:
            self._availability.works(paused, limit or self._retrying)
        return wait

    def record_progress(self) -> bool:
        """Record what the delivery under way has brought up to now, in another thread; return whether there is one.

        Raises:
            Closed: The journal was closed.
        """
        if self._delivery is not None:
            with self._settling:
                if self._delivery is not None:
                    delivered: Container[int] = getattr(self._sink, "delivered", ())
                    self._settle(self._delivery, self._delivery.progress(delivered))
                    return True
        return False

    def inherit_from(self, replaced: "Forwarder") -> None:
        """Take over the acknowledged events of the replaced forwarder, which has ended, so that none is sent twice."""
        self._acknowledged = replaced._acknowledged  # noqa: SLF001 - the same class

    def close(self) -> None:
        """Close the sink."""
        self._open = self.busy = False
        try:
            self._sink.close()
        except Exception:
            log.exception("the sink has a bug: its close() must not raise", sink=self.name)

    def _forward(self) -> float:
        """Deliver what there is to deliver; return the seconds to wait."""
        now = self._clock()
        limits = self._limits(now)
        work = self._journal.next_work(self.name, now, limits, new_first=self._new_first, timeout=_IDLE_SECONDS)
        self._retrying, self._paused = work.retrying, work.paused
        self.busy = bool(work.due or work.entries)
        self._new_first = bool(work.due) and not work.entries
        if self._new_first:
            # An event that waits already gets older only if others are taken meanwhile.
            self._deliver(DueRetries(work.due[: self._losses[DueRetries].limit]), may_blame=self._availability.acknowledged)
            return 0.0
        self.next_due = work.next_due
        if work.entries:
            self._deliver_new(self._filled(work, limits, now) if self.settings.batch.max_wait else work, now)
            return 0.0
        self._check_connection()
        self._log_deaths(())
        if not work.paused:
            return 0.0
        return _IDLE_SECONDS if work.next_due is None else min(_IDLE_SECONDS, max(0.0, work.next_due - now))

    def _limits(self, now: float) -> Limits:
        retry, batch = self.settings.retry, self.settings.batch
        horizon = 2 * retry.max_delay
        if self._is_crowded():
            # Those that were tried so often do not wait for their time.
            horizon = min(horizon, retry.first_delay * 2.0**CROWDED_ATTEMPTS)
        most = self._brake.limit(self._monotonic()) if self._retrying else retry.max_pending
        return Limits(batch.max_events, batch.max_bytes, most, now + horizon)

    def _filled(self, work: Work, limits: Limits, now: float) -> Work:
        """Wait until a batch is full, for `batch.max_wait` at most. It is read again when there are twice as many events."""
        until, known = self._monotonic() + self.settings.batch.max_wait, len(work.entries)
        while not is_full(work.entries, limits):
            first, enough = work.entries[0].seq, min(2 * len(work.entries), limits.max_events)
            while known < enough and (left := until - self._monotonic()) > 0 and self._journal.wait(first + known, left):
                known += 1
            if known == len(work.entries):
                break
            more = self._journal.next_work(self.name, now, limits, new_first=True)
            if len(more.entries) <= len(work.entries):
                break
            work = more
            if known < enough:
                break
            known = len(work.entries)
        return work

    def _deliver_new(self, work: Work, now: float) -> None:
        """Deliver new events, except for those that the filter leaves out, wait for an earlier one or were acknowledged."""
        ordering, unwanted, behind = self.settings.ordering, set[int](), set[int]()
        entries = work.entries[: self._losses[NewEvents].limit]
        if self._filter is not None:
            unwanted = {entry.seq for entry in entries if not self._filter.accepts(entry.fields)}
        if work.waiting_keys and ordering == "resource":
            behind = {e.seq for e in entries if e.seq not in unwanted and ordering_key(e, ordering) in work.waiting_keys}
        delivery = NewEvents(entries, unwanted, behind, self._acknowledged, lambda entry: new_retry(entry, ordering, now))
        try:
            self._deliver(delivery, may_blame=len(work.entries) > 1)
        except Unavailable as error:
            self._acknowledged = delivery.acknowledged(error.delivered)
            raise
        self._acknowledged = set()

    def _deliver(self, delivery: NewEvents | DueRetries, *, may_blame: bool) -> None:
        """Offer events, and settle them. One that ends the connection again and again waits for a retry, if `may_blame`."""
        failures: Sequence[Failure] = ()
        offered, losses = delivery.offered, self._losses[type(delivery)]
        if not offered:
            self._check_connection()
        try:
            failures = self._offer(delivery) if offered else ()
        except Unavailable as error:
            self._availability.acknowledged |= bool(error.delivered)
            self._settle(delivery, delivery.progress(set(error.delivered)))
            first = next((entry for entry in offered if entry.seq not in error.delivered), None)
            if first and error.reason == "unreachable" and losses.lost(first.seq, len(offered)) and may_blame:
                blamed = Failure.retry(first, error.reason, f"the connection ends when this event is sent alone: {error}")
                self._settle(delivery, delivery.end([blamed], self._decide))
            raise
        debug("delivered", sink=self.name, events=len(offered), failed=len(failures), again=isinstance(delivery, DueRetries))
        for reason, count in Counter(failure.reason for failure in failures).items():
            self._metrics.failures[reason].inc(count)
        if offered:
            delivered, failed = len(offered) - len(failures), sum(failure.outcome != "held" for failure in failures)
            self._availability.acknowledged |= delivered > 0
            self._brake.tried(delivered, failed, self._monotonic(), new=isinstance(delivery, NewEvents))
            if losses.limit:
                losses.delivered()
        self._settle(delivery, delivery.end(failures, self._decide))

    def _offer(self, delivery: NewEvents | DueRetries) -> Sequence[Failure]:
        """Let the sink deliver; meanwhile, `record_progress` records what it has acknowledged."""
        began = self.delivering_since = self._monotonic()
        self._delivery = delivery
        self.delivery_begins()
        try:
            return self._sink.deliver(delivery.offered)
        finally:
            with self._settling:
                self._delivery = self.delivering_since = None
            self._metrics.delivery.observe(self._monotonic() - began)

    def _check_connection(self) -> None:
        """Ask the sink whether its connection is lost, if it can tell."""
        if check_connection := getattr(self._sink, "check_connection", None):
            check_connection()

    def _decide(self, failed: Iterable[tuple[Retry, Failure]]) -> tuple[list[Retry], list[DeadLetter]]:
        return decide(failed, self.settings.retry, self._clock(), self._uniform, crowded=self._is_crowded())

    def _is_crowded(self) -> bool:
        """Return True if events that fail again and again have to go: the retry queue is full, and the sink takes others."""
        return self._paused == "retry_queue_full" and not self._brake.takes_nothing

    def _settle(self, delivery: NewEvents | DueRetries, outcome: Settlement | None) -> None:
        """Record an outcome, if there is one."""
        if outcome is None:
            return
        self._retrying = self._journal.settle(self.name, outcome)
        if outcome.retries or outcome.resolved:
            self._log_retry_reasons(outcome.retries)
        if outcome.delivered:
            now = self._clock()
            self._metrics.latency.observe_all(max(0.0, now - delivery.received), outcome.delivered)
            self._metrics.last_delivery.set(now)
        self._log_deaths(outcome.dead)

    def _log_deaths(self, dead: Sequence[DeadLetter]) -> None:
        last = self._last_death = dead[0] if dead else self._last_death
        if last and (counts := self._deaths.add(Counter(one.reason for one in dead), self._monotonic())):
            log.error(
                "events became dead letters", sink=self.name, count=sum(counts.values()), reason=last.reason, error=last.error
            )

    def _log_retry_reasons(self, retries: Sequence[Retry]) -> None:
        """Log each new reason for a retry, and the end of the retry queue."""
        if not self._retrying:
            if self.retry_reasons:
                log.info("no event waits for a retry any more", sink=self.name)
            self.retry_reasons = {}
            return
        errors: dict[Reason, str] = {retry.reason: retry.error for retry in retries if retry.reason != "held"}
        for reason in errors.keys() - self.retry_reasons.keys():
            log.warning("events wait for a retry", sink=self.name, reason=reason, error=errors[reason])
        self.retry_reasons = {**self.retry_reasons, **errors}
