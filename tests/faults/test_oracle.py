"""Each rule of the oracle can fail, and what is in order fails none."""

import json
from typing import Any

import pytest

from tests.faults.oracle import Oracle

SINKS = ("webhook", "stdout")


def event(number: int, resource: str = "a") -> dict[str, Any]:
    uri = f"/api/app/v1/acme/container/{resource}/"
    return {"type": "container", "resource_uri": uri, "uuid": f"00000000-0000-0000-0000-{number:012}"}


def arrival(number: int, resource: str = "a") -> dict[str, Any]:
    return {**event(number, resource), "namespace": "acme", "received_at": "2026-01-01T00:00:00.000000Z"}


def uuid(number: int) -> str:
    return str(event(number)["uuid"])


def after(sent: int, committed: int, arrived: int, window: int = 100) -> Oracle:
    """An oracle that has seen so many events, each of a resource of its own, arrive at every sink."""
    oracle = Oracle(SINKS, window=window)
    for number in range(1, sent + 1):
        oracle.sent(json.dumps(event(number, str(number))).encode())
    oracle.committed(1, [uuid(number) for number in range(1, committed + 1)])
    for sink in SINKS:
        for number in range(1, arrived + 1):
            oracle.arrived(sink, arrival(number, str(number)))
    return oracle


def broken(oracle: Oracle, **dead: set[str]) -> dict[str, int]:
    for sink, uuids in dead.items():
        oracle.buried(sink, uuids)
    oracle.finish()
    return dict(oracle.broken)


def test_nothing_is_wrong_if_what_was_committed_arrives_and_the_rest_does_not() -> None:
    oracle = after(sent=5, committed=3, arrived=3)

    assert oracle.missing() == 0
    assert broken(oracle) == {}
    assert [tally.arrived for tally in oracle.tallies.values()] == [3, 3]


def test_a_committed_event_that_does_not_arrive_at_one_sink_is_lost() -> None:
    oracle = after(sent=3, committed=3, arrived=2)
    oracle.arrived("stdout", arrival(3, "3"))

    assert oracle.missing() == 1
    assert broken(oracle) == {"lost": 1}
    assert oracle.violations[0].place == "webhook"
    assert uuid(3) in oracle.violations[0].evidence


def test_a_dead_letter_is_not_lost_at_its_own_sink_only() -> None:
    assert broken(after(sent=3, committed=3, arrived=2), webhook={uuid(3)}) == {"lost": 1}
    assert broken(after(sent=3, committed=3, arrived=2), webhook={uuid(3)}, stdout={uuid(3)}) == {}


@pytest.mark.parametrize("number", [3, 4])
def test_a_dead_letter_is_of_what_was_committed(number: int) -> None:
    oracle = after(sent=3, committed=2, arrived=2)

    assert broken(oracle, stdout={uuid(number)}) == {"unknown": 1}


def test_a_dead_letter_is_not_waited_for_and_forgotten_like_others() -> None:
    oracle = after(sent=9, committed=9, arrived=8, window=0)
    assert oracle.missing() == 2
    for sink in SINKS:
        oracle.buried(sink, {uuid(9)})
        oracle.buried(sink, {uuid(9)})
    oracle.classify()

    assert (oracle.missing(), oracle.remembered) == (0, 0)
    assert broken(oracle) == {}


def test_what_was_never_sent_may_not_arrive() -> None:
    oracle = after(sent=1, committed=1, arrived=1)
    oracle.arrived("stdout", arrival(2))

    assert broken(oracle) == {"unknown": 1}


def test_what_was_not_committed_may_not_arrive() -> None:
    oracle = after(sent=2, committed=1, arrived=1)
    oracle.arrived("stdout", arrival(2, "2"))

    assert broken(oracle) == {"uncommitted": 1}


@pytest.mark.parametrize(
    "changed",
    [
        {**arrival(1), "type": "service"},
        {**arrival(1), "more": 1},
        {name: value for name, value in arrival(1).items() if name != "type"},
        {name: value for name, value in arrival(1).items() if name != "received_at"},
    ],
)
def test_a_payload_may_not_change(changed: dict[str, Any]) -> None:
    oracle = Oracle(["stdout"])
    oracle.sent(json.dumps(event(1)).encode())
    oracle.committed(1, [uuid(1)])
    oracle.arrived("stdout", changed)

    assert broken(oracle) == {"changed": 1}


@pytest.mark.parametrize(("resources", "violations"), [("aa", {"order": 1}), ("ab", {})])
def test_first_arrivals_of_a_resource_may_not_overtake_each_other(resources: str, violations: dict[str, int]) -> None:
    oracle = Oracle(["stdout"])
    for number, resource in enumerate(resources, 1):
        oracle.sent(json.dumps(event(number, resource)).encode())
    oracle.committed(1, [uuid(1), uuid(2)])
    for number, resource in reversed(list(enumerate(resources, 1))):
        oracle.arrived("stdout", arrival(number, resource))

    assert broken(oracle) == violations


def test_what_was_sent_again_may_have_been_missed_before_so_that_its_order_is_not_known() -> None:
    oracle = Oracle(["stdout"])
    for number in (1, 2, 1, 3):
        oracle.sent(json.dumps(event(number)).encode())
    oracle.committed(1, [uuid(2), uuid(1), uuid(3)])
    for number in (2, 1, 3):
        oracle.arrived("stdout", arrival(number))

    assert oracle.sent_count == 3
    assert broken(oracle) == {}


def test_an_event_may_come_again_for_each_fault_at_which_it_was_in_flight_there() -> None:
    oracle = after(sent=3, committed=3, arrived=3)
    oracle.in_flight("stdout", range(2, 4))
    oracle.in_flight("stdout", [3, 99])
    for number in (2, 3, 3):
        oracle.arrived("stdout", arrival(number, str(number)))

    assert broken(oracle) == {}
    assert oracle.tallies["stdout"].explained == 3


@pytest.mark.parametrize(("sink", "number"), [("stdout", 1), ("webhook", 2)])
def test_any_other_repetition_is_not_explained(sink: str, number: int) -> None:
    oracle = after(sent=2, committed=2, arrived=2)
    oracle.in_flight("stdout", [2])
    oracle.arrived(sink, arrival(number, str(number)))

    assert broken(oracle) == {"repeated": 1}
    assert oracle.tallies[sink].unexplained == 1


def test_one_fault_explains_one_repetition() -> None:
    oracle = after(sent=1, committed=1, arrived=1)
    oracle.in_flight("stdout", [1])
    oracle.arrived("stdout", arrival(1, "1"))
    oracle.classify()
    oracle.arrived("stdout", arrival(1, "1"))

    assert broken(oracle) == {"repeated": 1}


@pytest.mark.parametrize(
    ("first", "uuids"),
    [
        (4, [uuid(4)]),  # A hole.
        (2, [uuid(3)]),  # A number that was taken.
        (3, [uuid(1)]),  # Committed before.
        (3, [uuid(9)]),  # Never sent.
        (3, [uuid(4), uuid(3)]),  # Not in the order in which they were sent.
    ],
)
def test_the_journal_holds_what_was_sent_once_and_in_order(first: int, uuids: list[str]) -> None:
    oracle = after(sent=4, committed=2, arrived=2)
    oracle.committed(first, uuids)

    assert oracle.broken == {"journal": 1}


def test_a_line_is_cut_short_once_for_each_kill() -> None:
    oracle = Oracle(["stdout"])
    oracle.kills = 1
    oracle.torn("stdout", b'{"uuid":')
    assert not oracle.broken

    oracle.torn("stdout", b'{"uuid":')
    assert oracle.broken == {"torn": 1}


def test_the_books_balance_and_their_counts_never_go_back() -> None:
    oracle = Oracle(["stdout"])
    oracle.balanced([], "here")
    oracle.counts({"accepted": 5.0}, "here")
    oracle.counts({"accepted": 5.0, "delivered": 1.0}, "here")
    assert not oracle.broken

    oracle.balanced(["1 is not 2"], "there")
    oracle.counts({"accepted": 4.0}, "there")

    assert [(violation.rule, violation.place) for violation in oracle.violations] == [("books", "there")] * 2


def test_what_has_come_to_its_end_is_forgotten_and_what_has_not_is_not() -> None:
    oracle = after(sent=50, committed=40, arrived=30, window=5)
    oracle.classify()
    assert oracle.remembered == 20

    for sink in SINKS:
        for number in range(31, 41):
            oracle.arrived(sink, arrival(number, str(number)))
    oracle.classify()

    assert oracle.remembered == 5
    oracle.arrived("stdout", arrival(1, "1"))
    assert broken(oracle) == {"unknown": 1}


def test_what_is_forgotten_without_being_committed_may_not_have_arrived() -> None:
    oracle = after(sent=9, committed=0, arrived=1, window=5)
    oracle.classify()

    assert oracle.broken == {"uncommitted": 2}


def test_the_evidence_of_one_rule_is_bounded_and_its_count_is_not() -> None:
    oracle = Oracle(["stdout"])
    for _ in range(1000):
        oracle.violate("lost", "stdout", "…")

    assert oracle.broken == {"lost": 1000}
    assert len(oracle.violations) == 200
