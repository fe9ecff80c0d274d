"""What is recorded of a delivery, and when; tests of the forwarder do it with a journal."""

from collections.abc import Iterable

import pytest

from bridge.journal import DeadLetter, Retry, Settlement
from bridge.pipeline.delivery import DueRetries, NewEvents
from bridge.pipeline.retries import decide, new_retry
from bridge.sink import Entry, Failure, RetrySettings
from tests.support.forwarding import event

NOW = 1000.0


def entry(seq: int) -> Entry:
    return Entry(seq, 900.0, event(seq, "/x/").json)


def enter(one: Entry) -> Retry:
    return new_retry(one, "resource", NOW)


def judge(failed: Iterable[tuple[Retry, Failure]]) -> tuple[list[Retry], list[DeadLetter]]:
    return decide(failed, RetrySettings(), NOW, lambda _, highest: highest)


def new(*seqs: int, unwanted: Iterable[int] = (), behind: Iterable[int] = (), before: Iterable[int] = ()) -> NewEvents:
    return NewEvents([entry(seq) for seq in seqs], set(unwanted), set(behind), set(before), enter)


def offered(delivery: NewEvents | DueRetries) -> list[int]:
    return [one.seq for one in delivery.offered]


@pytest.mark.parametrize(
    ("unwanted", "acknowledged", "expected"),
    [
        ((), {1, 2}, Settlement(1, 3, delivered=2)),
        ({2}, {1}, Settlement(1, 3, delivered=1, filtered=1)),
        ((), {2, 3}, None),
        ({1, 2, 3}, set(), Settlement(1, 4, filtered=3)),
    ],
)
def test_the_beginning_is_settled_up_to_the_first_that_is_open(
    unwanted: Iterable[int], acknowledged: set[int], expected: Settlement | None
) -> None:
    assert new(1, 2, 3, unwanted=unwanted).progress(acknowledged) == expected


def test_an_event_is_settled_once_however_often_one_looks() -> None:
    delivery = new(1, 2, 3, 4, unwanted=[4])
    delivered = {1}

    assert delivery.progress(delivered) == Settlement(1, 2, delivered=1)
    assert delivery.progress(delivered) is None
    delivered.add(2)
    assert delivery.progress(delivered) == Settlement(2, 3, delivered=1)
    assert delivery.end([], judge) == Settlement(3, 5, delivered=1, filtered=1)
    assert delivery.end([], judge) is None


def test_what_waits_behind_an_earlier_event_is_settled_as_that() -> None:
    delivery = new(1, 2, 3, behind=[1])

    assert offered(delivery) == [2, 3]
    assert delivery.progress({2}) == Settlement(1, 3, delivered=1, retries=[enter(entry(1))])


def test_what_was_acknowledged_out_of_order_is_not_offered_again() -> None:
    delivery = new(1, 2, 3, before=[2])

    assert offered(delivery) == [1, 3]
    assert delivery.progress({3}) is None
    assert delivery.acknowledged({3}) == {2, 3}
    assert delivery.end([Failure.retry(entry(1), "timeout", "")], judge) == Settlement(
        1, 4, delivered=2, retries=judge([(enter(entry(1)), Failure.retry(entry(1), "timeout", ""))])[0]
    )


def test_a_new_event_becomes_a_dead_letter_with_all_that_is_known() -> None:
    settled = new(7).end([Failure.rejected(entry(7), "rejected", "answered 400")], judge)

    assert settled is not None
    assert (settled.delivered, settled.retries) == (0, [])
    (dead,) = settled.dead
    assert (dead.seq, dead.received, dead.json, dead.ordering_key) == (7, 900.0, entry(7).json, "/x/")
    assert (dead.attempts, dead.first_failed, dead.died, dead.error) == (1, NOW, NOW, "answered 400")


def test_retries_are_settled_in_any_order_and_once() -> None:
    delivery = DueRetries([enter(entry(seq)) for seq in (1, 2, 3)])

    assert delivery.progress({3}) == Settlement(delivered=1, resolved=[3])
    assert delivery.progress({3}) is None
    settled = delivery.end([Failure.held(entry(1))], judge)
    assert settled == Settlement(delivered=1, retries=[enter(entry(1))], resolved=[2])
    assert delivery.end([], judge) is None
