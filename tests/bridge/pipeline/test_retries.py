"""Decisions on failed events, one at a time; tests of the forwarder make them over whole deliveries."""

import uuid
from typing import Any

import pytest

from bridge.journal import Retry
from bridge.pipeline.retries import decide, new_retry, ordering_key
from bridge.sink import Entry, Failure, RetrySettings
from tests.support.forwarding import event

NOW = 1000.0
RESOURCE = "/api/app/v1/acme/service/x/"
UUID = str(uuid.UUID(int=1))


def entry(seq: int = 1, resource: str = RESOURCE) -> Entry:
    return Entry(seq, 900.0, event(seq, resource).json)


def longest(_: float, highest: float) -> float:
    return highest


def outcome(failure: Failure, attempts: int = 0, **settings: Any) -> tuple[Retry | None, str | None]:
    """Decide about an event that was tried so often before; return its retry, or the reason of its death."""
    retry = Retry(1, 900.0, b"{}", RESOURCE, attempts, 0.0, 500.0, "timeout", "")
    staying, dead = decide([(retry, failure)], RetrySettings(**settings), NOW, longest)
    assert len(staying) + len(dead) == 1
    return (staying[0], None) if staying else (None, dead[0].reason)


@pytest.mark.parametrize(
    ("resource", "ordering", "expected"), [(RESOURCE, "resource", RESOURCE), ("", "resource", UUID), (RESOURCE, "none", UUID)]
)
def test_the_ordering_key_is_the_resource_if_there_is_one_and_order_matters(
    resource: str, ordering: Any, expected: str
) -> None:
    assert ordering_key(entry(resource=resource), ordering) == expected
    assert new_retry(entry(resource=resource), ordering, NOW).ordering_key == expected


def test_an_event_that_was_held_was_not_tried() -> None:
    retry, _ = outcome(Failure.held(entry()), attempts=2)

    assert retry is not None
    assert (retry.attempts, retry.due) == (2, 0.0)


@pytest.mark.parametrize(("attempts", "delay"), [(0, 1.0), (1, 2.0), (2, 4.0), (9, 10.0)])
def test_each_failure_is_counted_and_doubles_the_delay(attempts: int, delay: float) -> None:
    retry, _ = outcome(Failure.retry(entry(), "server_error", "500"), attempts, first_delay=1.0, max_delay=10.0)

    assert retry is not None
    assert (retry.attempts, retry.due, retry.since) == (attempts + 1, NOW + delay, 500.0)
    assert (retry.reason, retry.error) == ("server_error", "500")


@pytest.mark.parametrize(
    ("failure", "settings", "reason"),
    [
        (Failure.rejected(entry(), "rejected", "400"), {}, "rejected"),
        (Failure.rejected(entry(), "too_large", "413"), {}, "too_large"),
        (Failure.retry(entry(), "timeout", ""), {"max_attempts": 3}, "too_many_attempts"),
        (Failure.retry(entry(), "timeout", ""), {"max_attempts": 4}, None),
        (Failure.retry(entry(), "timeout", ""), {"max_age": 499.0}, "too_old"),
        (Failure.retry(entry(), "timeout", ""), {"max_age": 500.0}, None),
    ],
)
def test_the_reason_of_a_dead_letter(failure: Failure, settings: dict[str, Any], reason: str | None) -> None:
    assert outcome(failure, attempts=2, **settings)[1] == reason
