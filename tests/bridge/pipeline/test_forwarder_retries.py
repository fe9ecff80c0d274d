"""Events that fail by themselves: retries, their order and their end as dead letters."""

from collections.abc import Sequence
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.journal import SinkCounters
from bridge.sink import Entry, Failure, Unavailable
from tests.support.forwarding import START, Make, ScriptedSink, event, rejected, retry
from tests.support.journal_work import next_due


def test_an_event_that_failed_is_tried_again_when_it_is_due(make: Make) -> None:
    bench = make()
    bench.send((1, "/x/"), (2, "/y/"), (3, "/z/"))
    bench.sink.bad = {2: retry}
    bench.step()
    assert bench.sink.got == [1, 3]
    assert (bench.counters.delivered, bench.counters.retrying, bench.counters.pending) == (2, 1, 1)
    assert bench.metric("failures_total", reason="server_error") == 1.0
    bench.step_after(0.75)
    assert bench.journal.asked[-1] == pytest.approx(0.25)
    assert len(bench.sink.calls) == 1
    bench.sink.bad = {}
    bench.step_after(0.25)
    assert bench.last_call == [2]
    assert bench.counters == SinkCounters(3, 3, 0, 0, 0, pending=0, retrying=0, dead_letters=0)


def test_delays_between_attempts_double_up_to_a_limit(make: Make) -> None:
    bench = make(retry={"first_delay": 2, "max_delay": 10})
    bench.send((1, "/x/"))
    bench.sink.bad = {1: retry}
    bench.step()
    for delay in (2, 4, 8, 10, 10):
        assert next_due(bench.journal, "a") == bench.clock.day + delay
        bench.step_after(delay)
    assert len(bench.sink.calls) == 6


@pytest.mark.parametrize(("asked", "delay"), [(30.0, 33.0), (1000.0, 600.0), (0.0, 1.0)])
def test_the_time_that_the_far_side_asks_for_is_kept_within_limits(make: Make, asked: float, delay: float) -> None:
    bench = make()
    bench.send((1, "/x/"))
    bench.sink.bad = {1: lambda entry: Failure.retry(entry, "throttled", "429", retry_after=asked)}
    bench.step()
    assert next_due(bench.journal, "a") == bench.clock.day + delay


def test_later_events_of_the_resource_wait_and_all_others_flow(make: Make) -> None:
    bench = make()
    bench.sink.bad = {1: retry}
    bench.send((1, "/x/"), (2, "/x/"), (3, "/y/"))
    bench.step()
    bench.send((4, "/x/"), (5, "/y/"))
    bench.step()
    bench.send((6, "/x/"))
    bench.step()
    assert bench.sink.calls == [[1, 2, 3], [5]], "nothing is offered that has to wait"
    assert bench.sink.got == [3, 5]
    assert bench.counters.retrying == 4
    bench.step_after(1.0)
    assert bench.last_call == [1, 2, 4, 6], "they come along, and wait again"
    bench.sink.bad = {4: retry}
    bench.step_after(2.0)
    assert bench.last_call == [1, 2, 4, 6]
    assert bench.sink.got == [3, 5, 1, 2]
    bench.sink.bad = {}
    bench.step_after(1.0)
    assert bench.sink.got == [3, 5, 1, 2, 4, 6]
    assert bench.counters == SinkCounters(6, 6, 0, 0, 0, pending=0, retrying=0, dead_letters=0)


def test_without_ordering_nobody_waits_for_anybody(make: Make) -> None:
    bench = make(ordering="none")
    bench.sink.bad = {1: retry}
    bench.send((1, "/x/"))
    bench.step()
    bench.send((2, "/x/"))
    bench.step()
    assert bench.sink.got == [2]
    bench.send((3, "/x/"))
    bench.sink.bad = {3: retry}
    bench.step_after(1.0)
    assert bench.last_call == [1]
    bench.step()
    bench.step_after(1.0)
    assert bench.sink.calls == [[1], [2], [1], [3], [3]]


def test_retries_keep_to_the_batch_limits(make: Make) -> None:
    size = len(event(1, "/1/").json)
    bench = make(batch={"max_bytes": 3 * size})
    for number in range(1, 8):
        bench.send((number, f"/{number}/"))
    bench.sink.bad = dict.fromkeys(range(1, 8), retry)
    while bench.counters.retrying < 7:
        bench.step()
    bench.sink.calls, bench.sink.bad = [], {}
    bench.clock.pass_(1.0)
    for _ in range(3):
        bench.step()
    assert bench.sink.calls == [[1, 2, 3], [4, 5, 6], [7]]


def test_many_events_that_fail_mean_that_the_sink_is_down(make: Make) -> None:
    bench = make(retry={"max_pending": 3})
    bench.sink.bad = {1: retry, 2: retry, 3: retry}
    bench.send((1, "/x/"), (2, "/y/"), (3, "/z/"))
    bench.step()
    bench.send((4, "/new/"))
    assert bench.step() == 1.0
    assert bench.step_after(0.75) == pytest.approx(0.25)
    assert len(bench.sink.calls) == 1
    assert not bench.forwarder.busy
    bench.sink.bad = {2: retry, 3: retry}
    bench.step_after(0.25)
    bench.step()
    assert bench.sink.calls == [[1, 2, 3], [1, 2, 3], [4]]


def test_a_sink_that_gets_nothing_new_is_not_up_and_says_why(make: Make) -> None:
    bench = make(retry={"max_pending": 2})
    bench.send((1, "/x/"))
    bench.step()
    assert (bench.forwarder.status.up, bench.forwarder.next_due) == (True, None)
    bench.sink.bad = {2: retry, 3: retry}
    bench.send((2, "/y/"), (3, "/z/"))
    with capture_logs() as logs:
        bench.step()
        began = bench.clock.day
        for _ in range(2):
            bench.step_after(0.1)
        status = bench.forwarder.status
        assert (status.up, status.since, status.reason, bench.metric("up")) == (False, began, "retry_queue_full", 0.0)
        assert status.error == "2 events wait for a retry (retry.max_pending); new ones are tried when fewer do"
        assert bench.forwarder.next_due == began + 1.0
        bench.restart()
        bench.step()
        assert (bench.forwarder.status.reason, bench.metric("up")) == ("retry_queue_full", 0.0)
        bench.step_after(1.0)
        assert (bench.forwarder.status.up, bench.metric("up")) == (True, 1.0)
        bench.step()
        assert bench.forwarder.next_due is None
    told = [entry["event"] for entry in logs if entry["event"].startswith("sink")]
    assert told == ["sink unavailable", "sink unavailable", "sink available"], "changes only"


def test_a_sink_that_breaks_while_it_gets_nothing_new_has_been_unavailable_from_the_beginning(make: Make) -> None:
    bench = make(retry={"max_pending": 1})
    bench.sink.bad = {1: retry}
    bench.send((1, "/x/"))
    bench.step()
    began = bench.forwarder.status.since
    bench.sink.script.append(Unavailable("connection refused"))
    bench.step_after(1.0)
    assert (bench.forwarder.status.reason, bench.forwarder.status.since) == ("unreachable", began)
    bench.step_after(1.0)
    assert (bench.forwarder.status.reason, bench.forwarder.status.since) == ("retry_queue_full", began)


def test_what_the_far_side_rejects_becomes_a_dead_letter_and_holds_nobody_up(make: Make) -> None:
    bench = make()
    bench.send((1, "/x/"), (2, "/x/"), (3, "/y/"))
    bench.sink.bad = {1: rejected, 3: lambda entry: Failure.rejected(entry, "too_large", "413")}
    with capture_logs() as logs:
        bench.step()
    assert bench.sink.got == [2]
    first, second = bench.letters()
    assert (first.seq, first.reason, first.error, first.attempts) == (1, "rejected", "the receiver answers 400", 1)
    assert (first.first_failed, first.died, first.json) == (START, START, event(1, "/x/").json)
    assert (second.seq, second.reason) == (3, "too_large")
    assert (bench.counters.delivered, bench.counters.dead, bench.counters.pending) == (1, 2, 0)
    assert [(entry["count"], entry["reason"]) for entry in logs if entry["log_level"] == "error"] == [(2, "rejected")]


@pytest.mark.parametrize("attempts", [1, 3])
def test_after_so_many_attempts_it_is_a_dead_letter(make: Make, attempts: int) -> None:
    bench = make(retry={"max_attempts": attempts})
    bench.sink.bad = {1: retry}
    bench.send((1, "/x/"), (2, "/x/"))
    bench.step()
    for _ in range(attempts - 1):
        assert bench.counters.dead == 0
        bench.step_after(10.0)
    (letter,) = bench.letters()
    assert (letter.attempts, letter.reason, letter.error) == (attempts, "too_many_attempts", "the receiver answers 500")
    assert bench.step() == 0.0
    assert bench.sink.got == [2], "who waited behind it is free at once"
    assert len(bench.sink.calls) == attempts + 1


def test_what_failed_for_too_long_becomes_a_dead_letter(make: Make) -> None:
    bench = make(retry={"max_age": 100, "max_delay": 60})
    bench.sink.bad = {1: retry}
    bench.send((1, "/x/"))
    bench.step()
    bench.step_after(60.0)
    assert bench.counters.dead == 0
    bench.step_after(60.0)
    (letter,) = bench.letters()
    assert (letter.reason, letter.attempts, letter.died - letter.first_failed) == ("too_old", 3, 120.0)
    assert bench.counters.pending == 0


def test_a_rejected_retry_is_a_dead_letter_too(make: Make) -> None:
    bench = make()
    bench.sink.bad = {1: retry}
    bench.send((1, "/x/"), (2, "/x/"))
    bench.step()
    bench.sink.bad = {1: rejected}
    bench.step_after(1.0)
    assert bench.sink.got == [2]
    assert (bench.counters.dead, bench.counters.delivered, bench.counters.retrying) == (1, 1, 0)


def test_a_sink_that_names_an_event_twice_or_one_that_it_was_not_given_does_no_harm(make: Make) -> None:
    bench = make(retry={"max_attempts": 2})
    bench.send((1, "/x/"), (2, "/y/"))

    class Confused(ScriptedSink):
        def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
            return [retry(entries[0]), retry(entries[0]), retry(Entry(77, 0.0, b""))]

    bench.sink.__class__ = Confused
    bench.step()
    assert (bench.counters.delivered, bench.counters.retrying) == (1, 1)
    bench.step_after(1.0)
    assert (bench.counters.delivered, bench.counters.retrying, bench.counters.dead) == (1, 0, 1)
    assert len(bench.letters()) == 1


def test_retries_survive_a_restart_in_their_order(make: Make) -> None:
    bench = make()
    bench.sink.bad = {1: retry}
    bench.send((1, "/x/"), (2, "/x/"), (3, "/y/"))
    bench.step()
    bench.restart()
    bench.send((4, "/x/"), (5, "/y/"))
    bench.step()
    assert bench.sink.calls == [[5]]
    bench.sink.bad = {1: retry}
    bench.step_after(1.0)
    assert next_due(bench.journal, "a") == bench.clock.day + 2.0, "the second attempt of its life"
    bench.sink.bad = {}
    bench.step_after(2.0)
    assert bench.sink.got == [5, 1, 2, 4]


def test_a_clock_that_is_set_forth_by_an_hour_and_back_buries_nothing_and_hides_nothing(make: Make) -> None:
    bench = make(retry={"max_age": "2h", "max_delay": 60})
    bench.send((1, "/x/"))
    bench.sink.bad = {1: retry}
    bench.step()
    for hours in (1, -1, -1, 1):
        bench.clock.day += hours * 3600
        bench.step()
        bench.step_after(61)
    assert (bench.counters.dead, bench.counters.retrying) == (0, 1)
    assert len(bench.sink.calls) >= 6, "it is tried whatever the clock says"
    bench.sink.bad = {}
    bench.clock.day -= 3600
    bench.step_after(61)
    bench.step()
    assert (bench.counters.delivered, bench.counters.pending) == (1, 0)
    assert bench.metric("latency_seconds_sum") is not None
    assert (bench.metric("latency_seconds_sum") or 0.0) >= 0.0


@pytest.mark.parametrize("set_back", [60.0, 900.0, 3600.0, 86400.0])
def test_a_clock_that_is_set_back_delays_retries_by_little(make: Make, set_back: float) -> None:
    bench = make(retry={"first_delay": 300, "max_delay": 600})
    bench.sink.bad = {1: retry}
    bench.send((1, "/x/"))
    bench.step()
    bench.sink.bad = {}
    bench.clock.day -= set_back
    waited = 0.0
    while not bench.sink.got:
        bench.step()
        bench.step_after(60.0)
        waited += 60.0
        assert waited <= 2 * 600


@pytest.mark.parametrize(
    ("limits", "max_pending", "busy"),
    [({}, 5, "/busy/"), ({"max_bytes": 1_500_000}, 1000, f"/{'x' * 5000}/")],
    ids=["by their number", "by their bytes"],
)
def test_one_event_that_fails_for_ever_and_a_busy_resource_do_not_stop_the_sink(
    make: Make, limits: dict[str, Any], max_pending: int, busy: str
) -> None:
    bench = make(limits, retry={"max_pending": max_pending, "max_delay": 600}, batch={"max_events": 20})
    bench.sink.bad = {1: retry}
    bench.send((1, busy))
    for number in range(2, 400, 2):
        bench.send((number, busy), (number + 1, "/others/"))
        for _ in range(3):
            bench.step()
        bench.clock.pass_(1.0)
    for _ in range(100):
        bench.step_after(1.0)

    assert bench.counters.pending == 0
    assert [(letter.seq, letter.reason) for letter in bench.letters()] == [(1, "too_many_attempts")]
    assert bench.sink.got[-1] == 400 - 1
    assert [number for number in bench.sink.got if number % 2 == 0] == list(range(2, 400, 2)), "in order, without the first"


def test_what_one_topic_refuses_does_not_stop_what_others_take(make: Make) -> None:
    bench = make(retry={"max_pending": 10}, batch={"max_events": 10})
    refused = range(1, 3000, 3)
    bench.sink.bad = dict.fromkeys(refused, retry)
    bench.send(*[(number, f"/{number}/") for number in range(1, 3000)])
    most = 0
    for _ in range(2000):
        bench.step_after(0.5)
        most = max(most, bench.counters.retrying)

    assert [number for number in bench.sink.got if number % 3 != 1] == [n for n in range(1, 3000) if n % 3 != 1]
    assert most <= 10 * 10 + 10, "the queue is bounded all the same"
    assert {letter.reason for letter in bench.letters()} == {"too_many_attempts"}
    assert min(letter.attempts for letter in bench.letters()) >= 6


def test_while_nothing_is_taken_new_events_are_tried_now_and_then(make: Make) -> None:
    bench = make(retry={"max_pending": 2, "max_delay": 7}, backoff={"max": 60})
    bench.sink.bad = {1: retry, 2: retry}
    bench.send((1, "/x/"), (2, "/y/"))
    bench.step()
    bench.send((3, "/z/"))
    began = bench.clock.monotonic
    while not bench.sink.got:
        bench.step_after(1.0)

    assert bench.sink.got == [3]
    assert 55.0 <= bench.clock.monotonic - began <= 65.0
    bench.step()
    assert bench.forwarder.status.up, "it takes others"


@pytest.mark.parametrize("years", [1, 100])
@pytest.mark.parametrize("restart", [False, True])
def test_a_clock_that_is_set_forth_kills_no_retry(make: Make, years: int, restart: bool) -> None:
    bench = make(retry={"max_age": "1h", "max_delay": 60})
    bench.send((1, "/x/"), (2, "/x/"), (3, "/y/"))
    bench.sink.bad = {1: retry, 3: retry}
    bench.step()
    bench.step_after(1.0)
    bench.clock.day += years * 365 * 86400
    if restart:
        bench.restart()
        bench.sink.bad = {1: retry, 3: retry}
    for _ in range(20):
        bench.step_after(60.0)
    assert (bench.counters.dead, bench.counters.retrying) == (0, 3)
    for _ in range(60):
        bench.step_after(60.0)

    assert [letter.reason for letter in bench.letters()] == ["too_old", "too_old"]
    assert all(3600 < letter.died - letter.first_failed <= 3600 + 600 + 60 for letter in bench.letters())
    assert bench.sink.got == [2], "it has an age of its own"


def test_dead_letters_are_logged_at_once_and_then_as_sums(make: Make) -> None:
    bench = make()
    bench.sink.bad = dict.fromkeys(range(1, 1000), rejected)
    with capture_logs() as logs:
        for number in range(1, 301):
            bench.send((number, f"/{number}/"))
            bench.step_after(0.1)
        for _ in range(60):
            bench.step_after(1.0)

    told = [line["count"] for line in logs if line["log_level"] == "error"]
    assert (told[0], sum(told)) == (1, 300)
    assert len(told) <= 4
