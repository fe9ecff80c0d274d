"""A forwarder moves one sink's cursor: from the journal to the sink, and the outcome back into the journal.

One `step` takes what is due (the retry queue first, then what lies after the cursor), offers it to the sink and settles the
outcome. Whatever is wrong with the sink as a whole, nothing moves: close, wait, open, and offer the same again. An idle sink
that has `check_connection` is asked about once a second, so that a lost connection is found before the next event.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec
import structlog

from bridge.journal import Closed, DeadLetter, DeathReason, Journal, JournalError, Retry, Settlement
from bridge.metrics import SinkMetrics
from bridge.policy import Filter, Uniform, backoff, obey, retry_delay
from bridge.sink import Entry, Failure, Reason, Sink, SinkSettings, Unavailable

log = structlog.get_logger(__name__)

_IDLE: Final = 1.0
"""Seconds that a step waits for new events at most."""


class SinkStatus(msgspec.Struct, frozen=True):
    """What is known of a sink now.

    Attributes:
        up: Whether it is open, did not fail since, and is given new events.
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
        name: The sink's name, for the journal, logs and metrics.
        sink: Where events go.
        settings: The part of its settings that all sinks have.
        journal: Where events come from; it must know the sink already.
        metrics: The sink's metrics.
        renewed: Asked before the sink is opened: another one that takes its place, made with new secrets; mostly None.
        clock: The time of day in seconds since the epoch.
        monotonic: Seconds of a clock that nobody sets.
        uniform: Chance.

    Attributes:
        settings: As above.
        busy: Whether the last step moved anything.
        delivering_since: The monotonic time at which a delivery began that has not returned yet.
        waiting: Why events wait for a retry: each reason since the queue was empty, with the last words to it.
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
        renewed: Callable[[], Sink | None] = lambda: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        uniform: Uniform = random.uniform,
    ) -> None:
        self.name = name
        self.status = SinkStatus(up=False, since=clock())
        self.busy = False
        self.delivering_since: float | None = None
        self.waiting: Mapping[Reason, str] = {}
        self.next_due: float | None = None
        self._sink = sink
        self.settings = settings
        self._filter = Filter(settings.match, settings.drop)
        self._journal = journal
        self._metrics = metrics
        self._renewed = renewed
        self._clock = clock
        self._monotonic = monotonic
        self._uniform = uniform
        self._open = False
        self._delays = self._new_delays()
        # Of what lies after the cursor: acknowledged before the sink broke, not to be offered again.
        self._acknowledged: set[int] = set()
        # After what was due come new events, if there are any: what is due may break the sink, or take long each time.
        self._new_first = False

    def step(self) -> float:
        """Move what can be moved now, waiting a second for it at most; return the seconds to wait before the next step.

        Raises:
            Closed: The journal was closed.
            JournalError: The journal can't be read, which is no fault of the sink.
        """
        self.busy = False
        try:
            if not self._open:
                self._sink = self._renewed() or self._sink
                self._sink.open()
                self._open = True
            wait, braked = self._forward()
        except (Closed, JournalError):
            raise
        except Unavailable as error:
            return self._failed(error.reason, str(error), error.retry_after)
        except Exception as error:
            if self.status.reason != "internal":
                log.exception("the sink has a bug; its events wait", sink=self.name)
            return self._failed("internal", f"{type(error).__name__} in the sink, see the log", None)
        if braked:
            self._brake()
        elif not self.status.up:
            self._up()
        return wait

    def take_over(self, other: "Forwarder") -> None:
        """Know what the one before this, which has ended, would not have offered again."""
        self._acknowledged = other._acknowledged  # noqa: SLF001 - one of us

    def close(self) -> None:
        """Close the sink."""
        self._open = False
        try:
            self._sink.close()
        except Exception:
            log.exception("the sink has a bug: its close() must not raise", sink=self.name)

    def _forward(self) -> tuple[float, bool]:
        """Deliver what is due; return the seconds to wait, and whether nothing new may be tried."""
        now, retry, batch = self._clock(), self.settings.retry, self.settings.batch
        due = self._journal.due_retries(self.name, now, now + 2 * retry.max_delay, batch.max_events, batch.max_bytes)
        entries = self._read(0.0) if due and self._new_first and not self._is_full() else []
        self._new_first = bool(due) and not entries
        if self._new_first:
            self.busy = True
            self._deliver_again(due)
            return 0.0, self._is_full()
        self.next_due = self._journal.next_due(self.name)
        wait = _IDLE if self.next_due is None else min(_IDLE, max(0.0, self.next_due - now))
        if self._is_full():
            self._offer(())
            return wait, True
        entries = entries or self._read(wait)
        if entries:
            self.busy = True
            self._deliver_new(entries)
        else:
            self._offer(())
        return 0.0, self._is_full()

    def _is_full(self) -> bool:
        """Whether so many events wait for a retry that they can't all be at fault: the sink is down in fact."""
        return self._journal.retrying(self.name) >= self.settings.retry.max_pending

    def _read(self, wait: float) -> list[Entry]:
        batch = self.settings.batch
        entries = self._journal.read(self.name, batch.max_events, batch.max_bytes, wait)
        if entries and batch.max_wait and len(entries) < batch.max_events:
            until = self._monotonic() + batch.max_wait
            while len(entries) < batch.max_events and (left := until - self._monotonic()) > 0 and self._journal.wait(left):
                entries = self._journal.read(self.name, batch.max_events, batch.max_bytes, 0.0)
        return entries

    def _deliver_new(self, entries: Sequence[Entry]) -> None:
        wanted = [entry for entry in entries if self._filter.accepts(entry.fields)] if self._filter else entries
        lanes = self._journal.waiting_lanes(self.name) if self.settings.ordering == "resource" else set()
        behind = [entry for entry in wanted if self._lane(entry) in lanes] if lanes else []
        offered = _without(wanted, {entry.seq for entry in behind} | self._acknowledged)
        try:
            failures = self._offer(offered)
        except Unavailable as error:
            self._acknowledged |= set(error.delivered)
            self._settle_beginning(entries, {entry.seq for entry in wanted})
            raise
        now = self._clock()
        by_seq = {failure.seq: failure for failure in failures}
        failed = [(self._waiting(entry, now), by_seq[entry.seq]) for entry in offered if entry.seq in by_seq]
        failed += [(self._waiting(entry, now), Failure.held(entry)) for entry in behind]
        staying, dead = self._judge(failed, now)
        outcome = Settlement(
            first=entries[0].seq,
            upto=entries[-1].seq + 1,
            delivered=len(wanted) - len(staying) - len(dead),
            filtered=len(entries) - len(wanted),
            retries=staying,
            dead=dead,
        )
        self._acknowledged = set()
        self._settle(outcome, entries[0].received if outcome.delivered else None)

    def _settle_beginning(self, entries: Sequence[Entry], wanted: set[int]) -> None:
        """Move the cursor over what was acknowledged before the sink broke, as far as nothing is missing in between."""
        count = 0
        while count < len(entries) and (entries[count].seq in self._acknowledged or entries[count].seq not in wanted):
            count += 1
        if not count:
            return
        begun = {entry.seq for entry in entries[:count]}
        delivered = len(begun & wanted)
        self._acknowledged -= begun
        outcome = Settlement(entries[0].seq, entries[0].seq + count, delivered=delivered, filtered=count - delivered)
        self._settle(outcome, entries[0].received if delivered else None)

    def _deliver_again(self, due: Sequence[Retry]) -> None:
        waiting = {retry.seq: retry for retry in due}
        offered = [Entry(retry.seq, retry.received, retry.json) for retry in due]
        try:
            failures = self._offer(offered)
        except Unavailable as error:
            done = sorted(waiting.keys() & set(error.delivered))
            if done:
                self._settle(Settlement(delivered=len(done), resolved=done), waiting[done[0]].received)
            raise
        now = self._clock()
        by_seq = {failure.seq: failure for failure in failures}
        staying, dead = self._judge([(retry, by_seq[seq]) for seq, retry in waiting.items() if seq in by_seq], now)
        resolved = list(waiting.keys() - {retry.seq for retry in staying})
        delivered = len(resolved) - len(dead)
        outcome = Settlement(delivered=delivered, retries=staying, resolved=resolved, dead=dead)
        self._settle(outcome, due[0].received if delivered else None)

    def _offer(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        """Deliver and count; without entries, check the connection if the sink can."""
        began = self.delivering_since = self._monotonic()
        try:
            failures = self._sink.deliver(entries) if entries else self._check_connection()
        finally:
            self.delivering_since = None
            if entries:
                self._metrics.delivery.observe(self._monotonic() - began)
        for reason, count in Counter(failure.reason for failure in failures).items():
            self._metrics.failures[reason].inc(count)
        if len(failures) < len(entries):
            self._delays = self._new_delays()
        return failures

    def _check_connection(self) -> Sequence[Failure]:
        check: Callable[[], None] | None = getattr(self._sink, "check_connection", None)
        if check is not None:
            check()
        return ()

    def _settle(self, outcome: Settlement, oldest_received: float | None) -> None:
        self._journal.settle(self.name, outcome)
        if outcome.retries or outcome.resolved:
            self._tell_why_they_wait(outcome.retries)
        if oldest_received is not None:
            self._metrics.latency.observe(max(0.0, self._clock() - oldest_received))
        if outcome.dead:
            worst = outcome.dead[0]
            log.error(
                "events became dead letters", sink=self.name, count=len(outcome.dead), reason=worst.reason, error=worst.error
            )

    def _tell_why_they_wait(self, retries: Sequence[Retry]) -> None:
        """Of a reason why events wait it is told when it is new, and when no event waits any more."""
        if not self._journal.retrying(self.name):
            if self.waiting:
                log.info("no event waits for a retry any more", sink=self.name)
            self.waiting = {}
            return
        found: dict[Reason, str] = {retry.reason: retry.error for retry in retries if retry.reason != "held"}
        for reason in found.keys() - self.waiting.keys():
            log.warning("events wait for a retry", sink=self.name, reason=reason, error=found[reason])
        self.waiting = {**self.waiting, **found}

    def _lane(self, entry: Entry) -> str:
        """What keeps an event's order: its resource if it has one, else nothing but itself."""
        fields = entry.fields
        return (fields.resource_uri if self.settings.ordering == "resource" else "") or fields.uuid

    def _waiting(self, entry: Entry, now: float) -> Retry:
        """An event as it enters the retry queue, before anything is said about why."""
        held = Failure.held(entry)
        return Retry(entry.seq, entry.received, entry.json, self._lane(entry), 0, 0.0, now, held.reason, held.error)

    def _judge(self, failed: Sequence[tuple[Retry, Failure]], now: float) -> tuple[list[Retry], list[DeadLetter]]:
        """Decide which events wait for another attempt, and which become dead letters."""
        staying: list[Retry] = []
        dead: list[DeadLetter] = []
        for retry, failure in failed:
            if failure.outcome == "held":
                staying.append(retry)
                continue
            tried = msgspec.structs.replace(retry, attempts=retry.attempts + 1, reason=failure.reason, error=failure.error)
            reason = self._given_up(tried, failure, now)
            if reason is None:
                staying.append(msgspec.structs.replace(tried, due=now + self._retry_delay(tried.attempts, failure.retry_after)))
            else:
                dead.append(
                    DeadLetter(
                        seq=tried.seq,
                        received=tried.received,
                        json=tried.json,
                        lane=tried.lane,
                        attempts=tried.attempts,
                        first_failed=tried.since,
                        died=now,
                        reason=reason,
                        error=tried.error,
                    )
                )
        return staying, dead

    def _given_up(self, tried: Retry, failure: Failure, now: float) -> DeathReason | None:
        retry = self.settings.retry
        if failure.outcome == "rejected":
            return "too_large" if failure.reason == "too_large" else "rejected"
        if retry.max_attempts is not None and tried.attempts >= retry.max_attempts:
            return "too_many_attempts"
        return "too_old" if now - tried.since > retry.max_age else None

    def _retry_delay(self, attempts: int, asked: float | None) -> float:
        retry = self.settings.retry
        return retry_delay(attempts, retry.first_delay, retry.max_delay, asked, self._uniform)

    def _failed(self, reason: Reason, error: str, retry_after: float | None) -> float:
        """The sink is not available: close it, and tell for how long to wait."""
        self.busy = False
        self.close()
        self._metrics.failures[reason].inc()
        self._metrics.up.set(0)
        now = self._clock()
        if self.status.up and now - self.status.since > self.settings.backoff.max:
            # It was well for so long, if without an event that proved it, that an earlier outage has no say in this one.
            self._delays = self._new_delays()
        delay = next(self._delays)
        if retry_after is not None:
            # Never sooner than by our own delay: some ask for no time at all.
            delay = max(delay, obey(retry_after, self.settings.retry.max_delay, self._uniform))
        before = self.status
        if before.up or before.reason != reason:
            log.warning("sink unavailable", sink=self.name, reason=reason, error=error, next_try_seconds=round(delay, 1))
        since = now if before.up else before.since
        self.status = SinkStatus(up=False, since=since, reason=reason, error=error, failures=before.failures + 1)
        return delay

    def _new_delays(self) -> Iterator[float]:
        return backoff(self.settings.backoff.first, self.settings.backoff.max, self._uniform)

    def _brake(self) -> None:
        """Nothing new is tried: tell it as of a sink that is not available."""
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


def _without(entries: Sequence[Entry], seqs: set[int]) -> Sequence[Entry]:
    return [entry for entry in entries if entry.seq not in seqs] if seqs else entries
