"""Decisions on failed events: which wait for another attempt and until when, and which become dead letters. No I/O."""

from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from bridge.journal import DeadLetter, DeathReason, Retry
from bridge.policy import Uniform, retry_delay
from bridge.sink import Entry, Failure, RetrySettings

CROWDED_ATTEMPTS: Final = 6
"""Attempts after which an event that fails again is given up, if the retry queue is full and the sink takes other events."""


def ordering_key(entry: Entry, ordering: Literal["resource", "none"]) -> str:
    """Return the resource of an event, or its own uuid if it has none or nothing is ordered."""
    fields = entry.fields
    return (fields.resource_uri if ordering == "resource" else "") or fields.uuid


def new_retry(entry: Entry, ordering: Literal["resource", "none"], now: float) -> Retry:
    """Return an event as it enters the retry queue: never tried, waiting behind an earlier one."""
    held = Failure.held(entry)
    key = ordering_key(entry, ordering)
    return Retry(entry.seq, entry.received, entry.json, key, 0, 0.0, now, held.reason, held.error)


def decide(
    failed: Iterable[tuple[Retry, Failure]], settings: RetrySettings, now: float, uniform: Uniform, *, crowded: bool = False
) -> tuple[list[Retry], list[DeadLetter]]:
    """Divide failed events into those that wait for another attempt, with their due time, and dead letters.

    If the retry queue is `crowded`, and the sink takes other events, those that fail again and again are given up.
    """
    staying: list[Retry] = []
    dead: list[DeadLetter] = []
    for retry, failure in failed:
        if failure.outcome == "held":
            staying.append(retry)
            continue
        attempts, since = retry.attempts + 1, now - _age(retry, settings, now)
        tried = msgspec.structs.replace(retry, attempts=attempts, since=since, reason=failure.reason, error=failure.error)
        reason = _death_reason(tried, failure, settings, now)
        if reason is None and crowded and attempts >= CROWDED_ATTEMPTS:
            reason = "too_many_attempts"
        if reason is None:
            delay = retry_delay(tried.attempts, settings.first_delay, settings.max_delay, failure.retry_after, uniform)
            staying.append(msgspec.structs.replace(tried, due=now + delay))
        else:
            dead.append(_dead_letter(tried, reason, now))
    return staying, dead


def _age(retry: Retry, settings: RetrySettings, now: float) -> float:
    """Return the seconds for which an event has been retried, whatever the clock was set to meanwhile.

    That is the time until it was due, by the clock of then, and after that no more than ten minutes or the longest delay: the
    time in which the sink was away, or the process did not run, is not the event's.
    """
    due = max(retry.due, retry.since)
    return due - retry.since + min(max(0.0, now - due), max(settings.max_delay, 600.0))


def _death_reason(tried: Retry, failure: Failure, settings: RetrySettings, now: float) -> DeathReason | None:
    if failure.outcome == "rejected":
        return "too_large" if failure.reason == "too_large" else "rejected"
    if settings.max_attempts is not None and tried.attempts >= settings.max_attempts:
        return "too_many_attempts"
    return "too_old" if now - tried.since > settings.max_age else None


def _dead_letter(tried: Retry, reason: DeathReason, now: float) -> DeadLetter:
    return DeadLetter(
        seq=tried.seq,
        received=tried.received,
        json=tried.json,
        ordering_key=tried.ordering_key,
        attempts=tried.attempts,
        first_failed=tried.since,
        died=now,
        reason=reason,
        error=tried.error,
    )
