"""A forwarder moves one sink's cursor: from the journal to the sink, and the outcome back into the journal.

One `step` asks the journal for work (due retries first, then what lies after the cursor), delivers it and settles the outcome.
If the sink as a whole fails, nothing moves: close, wait, open, and deliver the same events again. An idle sink that has
`check_connection` is asked about once a second, so that a lost connection is found before the next event.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Literal

import msgspec
import structlog

from bridge.journal import Closed, DeadLetter, Journal, JournalError, Limits, Retry, Settlement, Work
from bridge.metrics import SinkMetrics
from bridge.pipeline.retries import decide, decide_new, ordering_key, settle_beginning
from bridge.policy import Filter, Uniform, backoff, obey
from bridge.sink import Entry, Failure, Reason, Sink, SinkSettings, Unavailable

log = structlog.get_logger(__name__)

_IDLE_SECONDS: Final = 1.0


class SinkStatus(msgspec.Struct, frozen=True):
    """The state of a sink.

    Attributes:
        up: The sink is open, did not fail since, and is given new events.
        since: When that began, in seconds since the epoch.
        reason: Why it is not up: a failure's label, or that too many events wait for a retry; None before the first failure.
        error: The same in words.
        failures: Failed attempts in a row.
    """

    up: bool
    since: float
    reason: Reason | Literal["retry_queue_full"] | None = None
    error: str = "not opened yet"
    failures: int = 0


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
        self.status = SinkStatus(up=False, since=clock())
        self.busy = False
        self.delivering_since: float | None = None
        self.retry_reasons: Mapping[Reason, str] = {}
        self.next_due: float | None = None
        self._sink = sink
        self.settings = settings
        self._filter = Filter(settings.match, settings.drop) if settings.match or settings.drop else None
        self._journal = journal
        self._metrics = metrics
        self._rebuild_sink = rebuild_sink
        self._clock = clock
        self._monotonic = monotonic
        self._uniform = uniform
        self._open = False
        # None after a delivery: the next failure begins with the shortest delay.
        self._delays: Iterator[float] | None = None
        # Sequence numbers after the cursor that were acknowledged before the sink broke: not to be delivered again.
        self._acknowledged: set[int] = set()
        # Retries and new events take turns: retries may break the sink, or take long each time.
        self._new_first = False
        self._retrying = 0

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
            return self._failed(error.reason, str(error), error.retry_after)
        except Exception as error:
            if self.status.reason != "internal":
                log.exception("the sink has a bug; its events wait", sink=self.name)
            return self._failed("internal", f"{type(error).__name__} in the sink, see the log", None)
        if self._retrying >= self.settings.retry.max_pending:
            self._pause_new_events()
        elif not self.status.up:
            self._up()
        return wait

    def inherit_from(self, replaced: "Forwarder") -> None:
        """Take over the acknowledged events of the replaced forwarder, which has ended, so that none is sent twice."""
        self._acknowledged = replaced._acknowledged  # noqa: SLF001 - the same class

    def close(self) -> None:
        """Close the sink."""
        self._open = False
        try:
            self._sink.close()
        except Exception:
            log.exception("the sink has a bug: its close() must not raise", sink=self.name)

    def _forward(self) -> float:
        """Deliver what there is to deliver; return the seconds to wait."""
        now = self._clock()
        work = self._next_work(now)
        self._retrying = work.retrying
        self.busy = bool(work.due or work.entries)
        self._new_first = bool(work.due) and not work.entries
        if self._new_first:
            self._deliver_again(work.due)
            return 0.0
        self.next_due = work.next_due
        if work.entries:
            self._deliver_new(work.entries, work.waiting_keys)
            return 0.0
        self._offer(())
        if work.retrying < self.settings.retry.max_pending:
            return 0.0
        return _IDLE_SECONDS if work.next_due is None else min(_IDLE_SECONDS, max(0.0, work.next_due - now))

    def _next_work(self, now: float) -> Work:
        """Ask the journal for work; wait until a batch of new events is full, for `batch.max_wait` at most."""
        retry, batch = self.settings.retry, self.settings.batch
        limits = Limits(batch.max_events, batch.max_bytes, retry.max_pending, now + 2 * retry.max_delay)
        work = self._journal.next_work(self.name, now, limits, new_first=self._new_first, timeout=_IDLE_SECONDS)
        until = self._monotonic() + batch.max_wait
        while 0 < len(work.entries) < batch.max_events and (left := until - self._monotonic()) > 0:
            if not self._journal.wait(work.entries[-1].seq + 1, left):
                break
            more = self._journal.next_work(self.name, now, limits, new_first=True)
            work = more if more.entries else work
        return work

    def _deliver_new(self, entries: Sequence[Entry], waiting_keys: AbstractSet[str]) -> None:
        wanted = entries
        if self._filter is not None:
            wanted = [entry for entry in entries if self._filter.accepts(entry.fields)]
        behind: list[Entry] = []
        if waiting_keys and self.settings.ordering == "resource":
            behind = [entry for entry in wanted if ordering_key(entry, "resource") in waiting_keys]
        offered = wanted
        if behind or self._acknowledged:
            skipped = self._acknowledged.union(entry.seq for entry in behind)
            offered = [entry for entry in wanted if entry.seq not in skipped]
        try:
            failures = self._offer(offered)
        except Unavailable as error:
            self._acknowledged |= set(error.delivered)
            beginning = settle_beginning(entries, {entry.seq for entry in wanted}, self._acknowledged)
            if beginning is not None:
                self._acknowledged.difference_update(range(beginning.first_seq, beginning.next_seq))
                self._settle(beginning, entries[0].received)
            raise
        retries: list[Retry] = []
        dead: list[DeadLetter] = []
        if failures or behind:
            reasons = {failure.seq: failure for failure in (*failures, *map(Failure.held, behind))}
            failed = [(entry, reasons[entry.seq]) for entry in (*offered, *behind) if entry.seq in reasons]
            retries, dead = decide_new(failed, self.settings, self._clock(), self._uniform)
        delivered, filtered = len(wanted) - len(retries) - len(dead), len(entries) - len(wanted)
        outcome = Settlement(entries[0].seq, entries[-1].seq + 1, delivered, filtered, retries=retries, dead=dead)
        self._acknowledged = set()
        self._settle(outcome, entries[0].received)

    def _deliver_again(self, due: Sequence[Retry]) -> None:
        by_seq = {retry.seq: retry for retry in due}
        try:
            failures = self._offer([Entry(retry.seq, retry.received, retry.json) for retry in due])
        except Unavailable as error:
            done = sorted(by_seq.keys() & set(error.delivered))
            if done:
                self._settle(Settlement(delivered=len(done), resolved=done), by_seq[done[0]].received)
            raise
        reasons = {failure.seq: failure for failure in failures}
        failed = [(retry, reasons[retry.seq]) for retry in due if retry.seq in reasons]
        retries, dead = decide(failed, self.settings.retry, self._clock(), self._uniform)
        resolved = list(by_seq.keys() - {retry.seq for retry in retries})
        delivered = len(resolved) - len(dead)
        self._settle(Settlement(delivered=delivered, retries=retries, resolved=resolved, dead=dead), due[0].received)

    def _offer(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        """Deliver and count; without entries, check the connection if the sink can."""
        failures: Sequence[Failure] = ()
        began = self.delivering_since = self._monotonic()
        try:
            if entries:
                failures = self._sink.deliver(entries)
            elif check_connection := getattr(self._sink, "check_connection", None):
                check_connection()
        finally:
            self.delivering_since = None
            if entries:
                self._metrics.delivery.observe(self._monotonic() - began)
        if failures:
            for reason, count in Counter(failure.reason for failure in failures).items():
                self._metrics.failures[reason].inc(count)
        if len(failures) < len(entries):
            self._delays = None
        return failures

    def _settle(self, outcome: Settlement, oldest_received: float) -> None:
        self._retrying = self._journal.settle(self.name, outcome)
        if outcome.retries or outcome.resolved:
            self._log_retry_reasons(outcome.retries)
        if outcome.delivered:
            self._metrics.latency.observe(max(0.0, self._clock() - oldest_received))
        if outcome.dead:
            worst = outcome.dead[0]
            log.error(
                "events became dead letters", sink=self.name, count=len(outcome.dead), reason=worst.reason, error=worst.error
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

    def _failed(self, reason: Reason, error: str, retry_after: float | None) -> float:
        """Close the sink, which is not available; return the seconds to wait before the next attempt."""
        self.busy = False
        self.close()
        self._metrics.failures[reason].inc()
        self._metrics.up.set(0)
        now, before = self._clock(), self.status
        # A sink that was up for that long, even without an event to prove it, begins with the shortest delay.
        proved = before.up and now - before.since > self.settings.backoff.max
        if self._delays is None or proved:
            self._delays = backoff(self.settings.backoff.first, self.settings.backoff.max, self._uniform)
        delay = next(self._delays)
        if retry_after is not None:
            # Never sooner than by our own delay: some ask for no time at all.
            delay = max(delay, obey(retry_after, self.settings.retry.max_delay, self._uniform))
        if before.up or before.reason != reason:
            log.warning("sink unavailable", sink=self.name, reason=reason, error=error, next_try_seconds=round(delay, 1))
        since = now if before.up else before.since
        self.status = SinkStatus(up=False, since=since, reason=reason, error=error, failures=before.failures + 1)
        return delay

    def _pause_new_events(self) -> None:
        """Set the status of a sink that gets no new events, since the retry queue is full."""
        before = self.status
        if not before.up and before.reason == "retry_queue_full":
            return
        most = self.settings.retry.max_pending
        error = f"{most} events wait for a retry (retry.max_pending); new ones are tried when fewer do"
        self._metrics.up.set(0)
        log.warning("sink unavailable", sink=self.name, reason="retry_queue_full", error=error)
        since = self._clock() if before.up else before.since
        self.status = SinkStatus(up=False, since=since, reason="retry_queue_full", error=error)

    def _up(self) -> None:
        before, now = self.status, self._clock()
        self._metrics.up.set(1)
        self.status = SinkStatus(up=True, since=now, error="")
        log.info("sink available", sink=self.name, after_seconds=round(now - before.since, 1), failures=before.failures)
