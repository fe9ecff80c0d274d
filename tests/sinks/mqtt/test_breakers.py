"""What breaks connections, by what a broker took and what it closed at; without a clock."""

from bridge.sink import Entry, Failure
from sinks.classification import Classification
from sinks.mqtt.breakers import Breakers
from sinks.mqtt.publication import Publication
from tests.contract.harness import make_entry

Published = tuple[Entry, list[Publication]]


def event(seq: int, topic: str = "a", size: int = 400) -> Published:
    return make_entry(seq), [Publication(topic.encode(), b"x" * size, retain=False, properties=None)]


def accept(breakers: Breakers, *events: Published) -> None:
    publications = [publication for _, some in events for publication in some]
    topics, sizes = {one.topic for one in publications}, [len(one.payload) for one in publications]
    breakers.accepted({entry.seq for entry, _ in events}, topics, max(sizes))


def lose(breakers: Breakers, *events: Published, accepts: bool = True, refusal: Classification | None = None) -> bool:
    in_flight = [(entry.seq, publication) for entry, publications in events for publication in publications]
    return breakers.disconnected(in_flight, refusal, accepts=accepts)


def find(breakers: Breakers, breaker: Published) -> Failure:
    """Let an event break the connection until it is blamed; return its failure."""
    while not lose(breakers, breaker):
        pass
    failure = breakers.judge(*breaker, now=0.0, alone=True)
    assert isinstance(failure, Failure)
    return failure


def judged(breakers: Breakers, *events: Published, now: float = 0.0, alone: bool = False) -> list[str]:
    """Tell for each event: sent, alone, last or a failure's reason."""
    words = list[str]()
    for one in events:
        found = breakers.judge(*one, now=now, alone=alone)
        words.append(
            "sent" if found is None else found.reason if isinstance(found, Failure) else "alone" if found < 100 else "last"
        )
    return words


def try_in_vain(breakers: Breakers, breaker: Published, now: float = 0.0) -> None:
    assert judged(breakers, breaker, now=now, alone=True) == ["sent"]
    assert lose(breakers, breaker)
    assert judged(breakers, breaker, now=now) == ["server_error"]


def test_what_was_in_flight_is_sent_alone_until_it_was_accepted() -> None:
    breakers, first, second, other = Breakers(), event(1), event(2), event(3)
    accept(breakers, event(0))

    assert not lose(breakers, first, second)

    unknown = event(4, "b"), event(5, size=500)
    assert judged(breakers, first, second, other, *unknown) == ["alone", "alone", "sent", "alone", "alone"]
    accept(breakers, first, second, *unknown)
    assert judged(breakers, first, second) == ["sent", "sent"]
    assert not breakers.active


def test_a_topic_on_which_nothing_was_accepted_is_to_blame() -> None:
    breakers, good = Breakers(), event(1, "good", 500)
    accept(breakers, good)

    failure = find(breakers, event(2, "bad topic"))

    assert 'on the topic bad topic; perhaps over the space in it (set `replace: {" ": "_"}`)' in failure.error
    assert (failure.outcome, failure.reason) == ("retry", "server_error")
    assert judged(breakers, event(3, "bad topic"), event(4, "good"), event(5, "new", 2000)) == ["last", "sent", "sent"]


def test_a_size_that_was_never_accepted_is_to_blame_on_a_topic_that_is() -> None:
    breakers = Breakers()
    accept(breakers, event(1, "a", 500))

    failure = find(breakers, event(2, "a", 3000))

    assert "over events of 3000 bytes and more; those above `max_event_bytes` become dead letters" in failure.error
    assert judged(breakers, event(3, "a", 2999), event(4, "b", 3000)) == ["sent", "last"]


def test_a_size_is_to_blame_too_if_each_event_has_its_own_topic() -> None:
    breakers = Breakers()
    accept(breakers, event(1, "1", 500))
    for seq, size in ((2, 4000), (3, 3000), (4, 5000)):
        assert "on the topic" in find(breakers, event(seq, str(seq), size)).error or size == 5000

    assert judged(breakers, event(5, "5", 3000), event(6, "2", 2000)) == ["last", "sent"]


def test_topics_are_to_blame_if_larger_events_were_accepted() -> None:
    breakers = Breakers()
    accept(breakers, event(1, "1", 2500))
    for seq, size in ((2, 4000), (3, 3000), (4, 5000)):
        find(breakers, event(seq, str(seq), size))

    assert judged(breakers, event(5, "5", 6000), event(6, "2", 2000)) == ["sent", "last"]


def test_an_event_alone_is_to_blame_if_its_topic_and_size_are_accepted() -> None:
    breakers = Breakers()
    accept(breakers, event(1), event(2))

    failure = find(breakers, event(3))

    assert failure.error == "the connection broke each time when this event was sent alone, and took others"
    assert judged(breakers, event(3), event(4)) == ["last", "sent"]


def test_a_topic_that_was_accepted_once_is_to_blame_when_its_events_break_one_after_another() -> None:
    breakers = Breakers()
    accept(breakers, event(1))
    find(breakers, event(2))
    find(breakers, event(3))

    assert judged(breakers, event(4)) == ["last"]


def test_of_all_that_breaks_one_is_tried_at_intervals_that_grow() -> None:
    breakers, breaker, same = Breakers(), event(1, "bad"), event(2, "bad")
    accept(breakers, event(0, "good"))
    find(breakers, breaker)
    try_in_vain(breakers, breaker)

    failure = breakers.judge(*same, now=15.0, alone=True)
    assert isinstance(failure, Failure)
    assert failure.retry_after == 45.0
    assert judged(breakers, breaker, same, now=59.9) == ["server_error"] * 2
    for now in (60.0, 180.0, 420.0, 900.0, 1500.0, 2100.0):
        assert judged(breakers, breaker, same, now=now - 0.1) == ["server_error"] * 2
        try_in_vain(breakers, same, now)


def test_what_is_accepted_at_a_trial_is_cleared_and_the_next_one_is_tried_at_once() -> None:
    breakers, other = Breakers(), event(4, "other")
    accept(breakers, event(0, "good"))
    find(breakers, event(1, "bad"))
    find(breakers, other)
    try_in_vain(breakers, event(2, "bad"))
    assert judged(breakers, event(3, "bad"), now=60.0, alone=True) == ["sent"]

    accept(breakers, event(3, "bad"))

    assert judged(breakers, event(5, "bad"), other, now=61.0) == ["sent", "last"]


def test_a_size_that_is_accepted_is_no_limit_any_more() -> None:
    breakers = Breakers()
    accept(breakers, event(0))
    find(breakers, event(1, size=3000))
    assert judged(breakers, event(2, size=4000), alone=True) == ["sent"]

    accept(breakers, event(2, size=4000))

    assert judged(breakers, event(3, size=3000)) == ["sent"]


def test_a_broker_that_accepts_nothing_is_at_fault_itself() -> None:
    breakers, only = Breakers(), event(1)

    lose(breakers, only, accepts=False)

    assert not any(lose(breakers, only, accepts=False) for _ in range(10))
    assert judged(breakers, only) == ["alone"]


def test_the_reason_of_the_broker_decides() -> None:
    breakers, large = Breakers(), event(1)
    assert not lose(breakers, large, refusal=Classification("sink", "retry", "throttled", "server busy"))
    assert not breakers.active

    assert lose(breakers, large, refusal=Classification("event", "rejected", "too_large", "packet too large"))

    failure = breakers.judge(*large, now=0.0, alone=False)
    assert isinstance(failure, Failure)
    assert (failure.outcome, failure.error) == ("rejected", "the broker ended the connection over it: packet too large")


def test_memory_has_a_limit() -> None:
    breakers = Breakers()
    for start in range(0, 12_000, 2000):
        lose(breakers, *[event(start + number, f"{start + number}") for number in range(2000)])
        accept(breakers, *[event(start + number, f"{start + number}") for number in range(100, 2000)])

    assert len(breakers._suspects) <= 12_000
    assert len(breakers._accepted) <= 12_000
