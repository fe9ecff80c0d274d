"""The forwarder between a real journal and a sink that does what the test says. Clocks and chance are made up."""

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from bridge.journal import Closed, JournalError, SinkCounters, Work
from bridge.sink import Entry, Failure, Unavailable
from tests.support.forwarding import (
    Bench,
    Make,
    ScriptedSink,
    Trouble,
    event,
    number_of,
    rejected,
    retry,
)

# The usual


def test_everything_is_delivered_in_order(make: Make) -> None:
    bench = make()
    bench.send((1, "/x/"), (2, "/y/"))
    bench.send((3, "/x/"))
    assert bench.step() == 0.0
    assert bench.sink.calls == [[1, 2, 3]]
    assert bench.counters == SinkCounters(3, 3, 0, 0, 0, pending=0, retrying=0, dead_letters=0)
    assert (bench.forwarder.busy, bench.forwarder.status.up, bench.metric("up")) == (True, True, 1.0)
    assert (bench.metric("latency_seconds_count"), bench.metric("delivery_seconds_count")) == (3.0, 1.0)


def test_without_events_it_waits_for_one_and_offers_nothing(make: Make) -> None:
    bench = make()
    assert bench.step() == 0.0
    assert bench.journal.asked == [1.0]
    assert (bench.sink.calls, bench.sink.looks) == ([], 1)
    assert (bench.forwarder.busy, bench.forwarder.status.up) == (False, True)
    assert bench.metric("delivery_seconds_count") == 0.0


@pytest.mark.parametrize("idle", ["no events", "none that it wants", "as many failed as may"])
def test_a_far_side_that_is_gone_is_noticed_without_an_event(make: Make, idle: str) -> None:
    bench = make(drop={"resource_uri": "/y/"}, retry={"max_pending": 1})
    bench.step()
    if idle == "none that it wants":
        bench.send((1, "/y/"))
    elif idle == "as many failed as may":
        bench.sink.bad = {1: retry}
        bench.send((1, "/x/"))
        bench.step()
    bench.sink.gone = Unavailable("the broker closed the connection")
    assert bench.step() == 0.5
    assert (bench.forwarder.status.up, bench.forwarder.status.reason, bench.metric("up")) == (False, "unreachable", 0.0)
    assert (bench.sink.opened, bench.sink.closed) == (1, 1)
    bench.sink.gone = None
    bench.step_after(0.5)
    works = (False, "retry_queue_full") if idle == "as many failed as may" else (True, None)
    assert (bench.forwarder.status.up, bench.forwarder.status.reason, bench.sink.opened) == (*works, 2)


def test_while_there_are_events_nobody_looks_for_the_far_side(make: Make) -> None:
    bench = make(batch={"max_events": 1})
    bench.send(*[(n, "/x/") for n in range(1, 6)])
    for _ in range(5):
        bench.step()
    assert (len(bench.sink.calls), bench.sink.looks) == (5, 0)


def test_an_idle_sink_that_was_well_for_long_is_opened_again_soon(make: Make) -> None:
    bench = make()
    bench.sink.refusals = deque([Unavailable("down")] * 4)
    assert [bench.step() for _ in range(4)] == [0.5, 1.0, 2.0, 4.0]
    bench.step()
    bench.sink.gone = Unavailable("gone")
    assert bench.step_after(5.0) == 8.0, "it was well for a moment only"
    bench.sink.gone = None
    bench.step()
    bench.sink.gone = Unavailable("gone")
    assert bench.step_after(61.0) == 0.5


def test_deliveries_keep_to_the_batch_limits(make: Make) -> None:
    bench = make(batch={"max_events": 3})
    bench.send(*[(n, "/x/") for n in range(1, 8)])
    for _ in range(3):
        bench.step()
    assert bench.sink.calls == [[1, 2, 3], [4, 5, 6], [7]]
    size = len(event(1, "/x/").json)
    bench.settings = bench.settings.model_copy(
        update={"batch": bench.settings.batch.model_copy(update={"max_bytes": 2 * size})}
    )
    bench.restart()
    bench.send(*[(n, "/x/") for n in range(11, 14)])
    bench.step()
    assert bench.last_call == [11, 12]


def test_what_the_sink_does_not_want_is_counted_and_not_offered(make: Make) -> None:
    bench = make(match={"resource_uri": "/x/*"}, drop={"resource_uri": "/x/noise/"})
    bench.send((1, "/x/1/"), (2, "/y/"), (3, "/x/noise/"), (4, "/x/2/"))
    bench.step()
    assert bench.sink.calls == [[1, 4]]
    assert (bench.counters.delivered, bench.counters.filtered) == (2, 2)
    bench.send((5, "/y/"))
    bench.step()
    assert bench.sink.calls == [[1, 4]], "nothing is no delivery"
    assert (bench.counters.filtered, bench.counters.pending) == (3, 0)


def test_it_waits_for_more_until_the_batch_is_full(make: Make) -> None:
    bench = make(batch={"max_events": 4, "max_wait": 5})
    bench.send((1, "/x/"))
    more = iter([2, 3, 4, 5])
    waited: list[float] = []

    def meanwhile(timeout: float) -> bool:
        waited.append(timeout)
        bench.clock.pass_(1.0)
        bench.send((next(more), "/x/"))
        return True

    bench.journal.meanwhile = meanwhile
    bench.step()
    assert bench.sink.calls == [[1, 2, 3, 4]]
    assert waited == [5.0, 4.0, 3.0]


def test_it_waits_no_longer_than_allowed_and_not_at_all_when_woken(make: Make) -> None:
    bench = make(batch={"max_events": 4, "max_wait": 5})
    bench.send((1, "/x/"))
    waits = 0

    def meanwhile(timeout: float) -> bool:
        nonlocal waits
        waits += 1
        bench.clock.pass_(min(3.0, timeout))
        bench.send((1 + waits, "/x/"))
        return True

    bench.journal.meanwhile = meanwhile
    bench.step()
    assert (bench.sink.calls, waits) == ([[1, 2, 3]], 2)
    bench.journal.meanwhile = lambda _: False
    bench.send((4, "/x/"))
    bench.step()
    assert bench.last_call == [4]


def test_a_batch_that_is_full_by_bytes_does_not_wait(make: Make) -> None:
    size = len(event(1, "/x/").json)
    bench = make(batch={"max_bytes": 5 * size, "max_wait": 60})
    bench.send(*[(number, "/x/") for number in range(1, 11)])
    waits: list[float] = []

    def meanwhile(timeout: float) -> bool:
        waits.append(timeout)
        return True

    bench.journal.meanwhile = meanwhile
    bench.step()
    bench.step()
    assert bench.sink.calls == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]
    assert waits == []


def test_events_that_trickle_in_are_loaded_about_twice(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make(batch={"max_events": 1000, "max_wait": 60})
    bench.send((1, "/x/"))
    loaded: list[int] = []
    next_work = bench.journal.next_work

    def noted(*args: Any, **kwargs: Any) -> Work:
        work = next_work(*args, **kwargs)
        loaded.append(len(work.entries))
        return work

    monkeypatch.setattr(bench.journal, "next_work", noted)
    numbers = iter(range(2, 10_000))

    def meanwhile(timeout: float) -> bool:
        bench.clock.pass_(min(0.0804, timeout))
        bench.send((next(numbers), "/x/"))
        return True

    bench.journal.meanwhile = meanwhile
    bench.step()
    assert len(bench.last_call) >= 745
    assert sum(loaded) <= 3 * len(bench.last_call)


# A sink that is not available


class CuttingSink(ScriptedSink):
    """A receiver that gets all events of a delivery in one request, and ends the connection if it does not like one."""

    evil: frozenset[int] = frozenset()

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        if self.evil & {number_of(entry) for entry in entries}:
            self.calls.append([number_of(entry) for entry in entries])
            raise Unavailable("the connection was closed")
        return super().deliver(entries)


def test_an_event_at_which_the_receiver_ends_the_connection_does_not_block_the_sink(make: Make) -> None:
    bench = make(retry={"max_age": "1h"})
    bench.sink.__class__ = CuttingSink
    evil = bench.sink.evil = frozenset({37, 38, 60})  # type: ignore[attr-defined]
    bench.send(*[(number, f"/{number % 10}/") for number in range(1, 101)])
    steps = 0
    while bench.counters.delivered < 100 - 3 - 16:  # Three that break it, and those behind them.
        bench.step_after(60.0)
        steps += 1
        assert steps < 100
    fresh = iter(range(101, 10_000))
    while bench.counters.dead < 3:
        bench.send((next(fresh), "/new/"))
        bench.step_after(30.0)
    for _ in range(10):
        bench.step_after(60.0)

    letters = bench.letters()
    assert {letter.seq for letter in letters} == evil
    assert {letter.reason for letter in letters} == {"too_old"}
    assert letters[0].error == "the connection ends when this event is sent alone: the connection was closed"
    assert bench.counters.pending == 0
    for resource in range(10):
        of_one = [number for number in bench.sink.got if number <= 100 and number % 10 == resource]
        assert of_one == sorted(of_one)


def test_a_receiver_that_is_away_for_an_hour_makes_no_event_older(make: Make) -> None:
    bench = make(retry={"max_age": "10m", "max_delay": 60})
    bench.sink.bad = {1: retry}
    bench.send((1, "/x/"), (2, "/y/"), (3, "/z/"))
    bench.step()
    bench.sink.script += [Unavailable("cut")] * 60
    for _ in range(60):
        bench.step_after(60.0)
    bench.sink.script.clear()
    bench.sink.bad = {}
    for _ in range(20):
        bench.step_after(60.0)

    assert (bench.counters.dead, bench.counters.pending, sorted(bench.sink.got)) == (0, 0, [1, 2, 3])


def test_an_unavailable_sink_is_closed_and_offered_the_same_again(make: Make) -> None:
    bench = make()
    bench.send((1, "/x/"), (2, "/y/"))
    bench.sink.script += [Unavailable("connection refused"), Unavailable("connection refused")]
    with capture_logs() as logs:
        assert bench.step() == 0.5
        assert (bench.sink.opened, bench.sink.closed) == (1, 1)
        status = bench.forwarder.status
        assert (status.up, status.reason, status.error, status.failures) == (False, "unreachable", "connection refused", 1)
        assert (bench.metric("up"), bench.metric("failures_total", reason="unreachable")) == (0.0, 1.0)
        assert not bench.forwarder.busy, "nothing has moved"
        bench.step_after(0.5)
        assert bench.forwarder.status.failures == 2
        bench.step_after(1.0)
    assert bench.sink.calls == [[1, 2]] * 3
    assert bench.sink.got == [1, 2]
    assert (bench.forwarder.status.up, bench.metric("up")) == (True, 1.0)
    assert [entry["event"] for entry in logs] == ["sink unavailable", "sink available"]
    assert (logs[1]["after_seconds"], logs[1]["failures"]) == (1.5, 2)


def test_delays_grow_while_a_sink_is_unavailable_and_begin_anew_after_a_delivery(make: Make) -> None:
    bench = make()
    bench.send((1, "/x/"))
    bench.sink.script += [Unavailable("no")] * 9
    assert [bench.step() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    bench.step()
    assert bench.sink.got == [1]
    bench.send((2, "/x/"))
    bench.sink.script += [Unavailable("no")]
    assert bench.step() == 0.5


def test_delays_do_not_grow_while_a_sink_takes_some_before_it_fails(make: Make) -> None:
    bench = make()
    for number in range(1, 9):
        bench.send((number, f"/{number}/"))
    bench.sink.script += [Unavailable("no", delivered={number}) for number in range(1, 6)]

    assert [bench.step() for _ in range(5)] == [0.5] * 5


def test_delays_are_those_of_the_sinks_settings(make: Make) -> None:
    bench = make(backoff={"first": "2s", "max": "5s"})
    bench.send((1, "/x/"))
    bench.sink.script += [Unavailable("no")] * 4

    assert [bench.step() for _ in range(4)] == [2, 4, 5, 5]


def test_a_sink_that_opens_but_never_delivers_has_not_recovered(make: Make) -> None:
    bench = make()
    bench.sink.refusals += [Unavailable("no"), Unavailable("no")]
    assert [bench.step(), bench.step(), bench.step()] == [0.5, 1.0, 0.0]
    bench.send((1, "/x/"))
    bench.sink.script += [Unavailable("no")]
    assert bench.step() == 2.0
    assert bench.sink.calls == [[1]]


@pytest.mark.parametrize(("asked", "delay"), [(20.0, 22.0), (5000.0, 600.0), (0.0, 0.5)])
def test_the_patience_that_a_sink_asks_for_is_kept_within_limits(make: Make, asked: float, delay: float) -> None:
    bench = make()
    bench.send((1, "/x/"))
    bench.sink.script += [Unavailable("slow down", "throttled", retry_after=asked)]
    assert bench.step() == delay


def test_what_was_acknowledged_at_the_beginning_is_settled_at_once(make: Make) -> None:
    bench = make(drop={"resource_uri": "/noise/"})
    bench.send((1, "/noise/"), (2, "/x/"), (3, "/noise/"), (4, "/y/"), (5, "/z/"))
    bench.sink.script += [Unavailable("broke", delivered=[2])]
    bench.step()
    assert (bench.counters.delivered, bench.counters.filtered, bench.counters.pending) == (1, 2, 2)
    bench.restart()
    bench.step()
    assert bench.sink.calls == [[4, 5]]
    assert bench.counters == SinkCounters(5, 3, 2, 0, 0, pending=0, retrying=0, dead_letters=0)


def test_what_was_acknowledged_in_the_middle_is_not_offered_again(make: Make) -> None:
    bench = make()
    bench.send((1, "/a/"), (2, "/b/"), (3, "/c/"), (4, "/d/"))
    bench.sink.script += [Unavailable("broke", delivered={2, 4}), Unavailable("broke", delivered={1})]
    bench.step()
    assert bench.counters.delivered == 0
    bench.send((5, "/e/"))
    bench.step()
    assert bench.counters.delivered == 2
    bench.step()
    assert bench.sink.calls == [[1, 2, 3, 4], [1, 3, 5], [3, 5]]
    assert bench.counters == SinkCounters(5, 5, 0, 0, 0, pending=0, retrying=0, dead_letters=0)


def killed() -> None:
    raise ConnectionError("as if the process had died")


def test_what_was_acknowledged_is_recorded_while_the_delivery_goes_on(make: Make) -> None:
    bench = make(drop={"resource_uri": "/noise/"})
    bench.send((1, "/a/"), (2, "/noise/"), (3, "/c/"), (4, "/d/"), (5, "/e/"), (6, "/f/"))

    def take(*seqs: int) -> None:
        bench.sink.delivered |= set(seqs)
        bench.forwarder.record_progress()

    def deliver() -> None:
        take(1)
        assert (bench.counters.delivered, bench.counters.filtered, bench.counters.pending) == (1, 1, 4)
        take(5)
        take(3)
        assert (bench.counters.delivered, bench.counters.pending) == (2, 3)
        killed()

    bench.sink.script.append(deliver)
    bench.step()
    bench.restart()
    bench.sink.script.append(lambda: take(4))
    bench.sink.bad = {6: rejected}
    bench.step()
    assert bench.sink.calls == [[4, 5, 6]]
    assert bench.counters == SinkCounters(6, 4, 1, 1, 0, pending=0, retrying=0, dead_letters=1)
    assert bench.metric("latency_seconds_count") == 4.0
    assert not bench.forwarder.record_progress(), "none is under way"


def test_retries_that_were_acknowledged_are_recorded_while_the_delivery_goes_on(make: Make) -> None:
    bench = make()
    bench.sink.bad = dict.fromkeys((1, 2, 3), retry)
    bench.send((1, "/a/"), (2, "/b/"), (3, "/c/"))
    bench.step()

    def deliver() -> None:
        bench.sink.delivered = {2}
        bench.forwarder.record_progress()
        assert (bench.counters.delivered, bench.counters.retrying) == (1, 2)
        killed()

    bench.sink.script.append(deliver)
    bench.step_after(1.0)
    bench.restart()
    bench.step_after(1.0)
    assert bench.sink.calls == [[1, 3]]


def test_who_takes_over_does_not_offer_again_what_was_acknowledged(make: Make) -> None:
    bench = make()
    bench.send((1, "/a/"), (2, "/b/"), (3, "/c/"))
    bench.sink.script.append(Unavailable("broke", delivered={2, 3}))
    bench.step()
    before = bench.forwarder
    bench.restart()
    bench.forwarder.inherit_from(before)
    bench.step()

    assert bench.sink.calls == [[1]]
    assert bench.counters.delivered == 3


def test_what_was_acknowledged_and_what_fails_afterwards_are_told_apart(make: Make) -> None:
    bench = make()
    bench.send((1, "/a/"), (2, "/b/"), (3, "/c/"))
    bench.sink.script += [Unavailable("broke", delivered={3})]
    bench.step()
    bench.sink.bad = {1: retry, 2: rejected}
    bench.step()
    assert bench.last_call == [1, 2]
    assert bench.counters == SinkCounters(3, 1, 0, 1, 0, pending=1, retrying=1, dead_letters=1)


def test_retries_stay_when_the_sink_breaks_except_for_what_was_acknowledged(make: Make) -> None:
    bench = make()
    bench.sink.bad = {1: retry, 2: retry}
    bench.send((1, "/a/"), (2, "/b/"), (3, "/c/"))
    bench.step()
    bench.sink.script += [Unavailable("broke", delivered=[2, 2, 3])]
    bench.step_after(1.0)
    assert bench.last_call == [1, 2]
    assert bench.counters == SinkCounters(3, 2, 0, 0, 0, pending=1, retrying=1, dead_letters=0)
    bench.sink.bad = {}
    bench.step()
    bench.step()
    assert bench.last_call == [1]
    assert bench.journal.counters().sinks["a"].retrying == 0


def test_why_events_wait_is_told_once_per_reason_and_that_none_do_any_more(make: Make) -> None:
    bench = make()
    bench.send((1, "/a/"), (2, "/b/"), (3, "/c/"), (4, "/a/"))
    bench.sink.bad = {1: retry, 2: retry, 3: lambda entry: Failure.retry(entry, "unauthorized", "topic c: forbidden")}

    with capture_logs() as logs:
        bench.step()
        assert bench.forwarder.retry_reasons == {
            "server_error": "the receiver answers 500",
            "unauthorized": "topic c: forbidden",
        }
        bench.send((5, "/d/"))
        bench.sink.bad[5] = lambda entry: Failure.retry(entry, "unauthorized", "topic d: forbidden")
        bench.step()
        bench.step_after(1.0)
        assert bench.forwarder.retry_reasons["unauthorized"] == "topic d: forbidden"
        bench.sink.bad = {}
        bench.step_after(600.0)
        bench.step()
        assert bench.journal.counters().sinks["a"].retrying == 0

    assert bench.forwarder.retry_reasons == {}
    told = [(line["log_level"], line.get("reason")) for line in logs if "wait" in line["event"]]
    assert sorted(told[:2], key=str) == [("warning", "server_error"), ("warning", "unauthorized")]
    assert told[2:] == [("info", None)]


def test_a_retry_that_breaks_the_sink_does_not_keep_new_events_from_being_tried(make: Make) -> None:
    bench = make()
    bench.sink.bad = {1: retry}
    bench.send((1, "/a/"))
    bench.step()
    bench.send((2, "/b/"), (3, "/a/"))
    broken = Unavailable("the connection was cut")
    for _ in range(2):
        bench.sink.script.append(broken)
        bench.step_after(1.0)
        bench.step()
    assert bench.sink.calls == [[1], [1], [2], [1, 3], [1, 3]]
    assert bench.sink.got == [2], "what waits behind it still waits"
    bench.sink.bad = {}
    bench.step_after(10.0)
    assert bench.last_call == [1, 3]
    assert bench.counters.pending == 0


def test_what_is_due_and_what_is_new_go_in_turn_however_much_is_due(make: Make) -> None:
    bench = make(batch={"max_events": 1})
    bench.sink.bad = dict.fromkeys((1, 2, 3), retry)
    bench.send((1, "/a/"), (2, "/b/"), (3, "/c/"))
    for _ in range(3):
        bench.step()
    bench.send((4, "/d/"), (5, "/e/"))
    bench.clock.pass_(10.0)
    for _ in range(5):
        bench.step()

    assert [call[0] for call in bench.sink.calls[3:]] == [1, 4, 2, 5, 3]


def test_a_full_retry_queue_is_tried_again_first_even_if_it_breaks_the_sink(make: Make) -> None:
    bench = make(retry={"max_pending": 1})
    bench.sink.bad = {1: retry}
    bench.send((1, "/a/"))
    bench.step()
    bench.send((2, "/b/"))
    bench.sink.script += [Unavailable("no")] * 3
    for _ in range(3):
        bench.step_after(1.0)
        assert bench.forwarder.status.reason == "unreachable", "and not something else every other time"
    assert bench.sink.calls == [[1]] * 4


def test_a_bug_in_a_sink_loses_nothing_and_is_logged_once(make: Make) -> None:
    bench = make()
    bench.send((1, "/x/"))
    bench.sink.script += [KeyError("oops"), KeyError("oops"), ZeroDivisionError()]
    with capture_logs() as logs:
        assert [bench.step() for _ in range(3)] == [0.5, 1.0, 2.0]
        status = bench.forwarder.status
        assert (status.reason, status.error) == ("internal", "ZeroDivisionError in the sink, see the log")
        bench.step()
    assert bench.sink.got == [1]
    assert [entry["event"] for entry in logs if entry.get("exc_info")] == ["the sink has a bug; its events wait"]
    bench.send((2, "/x/"))
    bench.sink.script += [KeyError("oops")]
    with capture_logs() as logs:
        bench.step()
    assert any(entry.get("exc_info") for entry in logs), "it had recovered, so this is news"


def test_a_bug_while_opening_or_closing_is_survived(make: Make) -> None:
    bench = make()
    bench.send((1, "/x/"))
    bench.sink.refusals += [RuntimeError("can't open")]
    bench.sink.close_error = RuntimeError("can't close")
    with capture_logs() as logs:
        assert bench.step() == 0.5
    assert [entry["event"] for entry in logs if entry.get("exc_info")] == [
        "the sink has a bug; its events wait",
        "the sink has a bug: its close() must not raise",
    ]
    bench.step()
    assert bench.sink.got == [1]
    bench.forwarder.close()
    bench.forwarder.close()


def test_how_long_a_delivery_lasts_can_be_seen_from_outside(make: Make) -> None:
    bench = make()
    bench.send((1, "/x/"))
    seen: list[float | None] = []

    def take_long() -> None:
        seen.append(bench.forwarder.delivering_since)
        bench.clock.pass_(3.0)

    bench.sink.script += [take_long]
    began = bench.clock.monotonic
    bench.step()
    assert seen == [began]
    assert bench.forwarder.delivering_since is None
    assert bench.metric("delivery_seconds_sum") == 3.0


# The journal's part


def test_the_end_of_the_journal_is_no_fault_of_the_sink(make: Make) -> None:
    bench = make()
    bench.send((1, "/x/"))
    bench.sink.script += [bench.journal.close]
    with pytest.raises(Closed):
        bench.forwarder.step()
    with pytest.raises(Closed):
        bench.forwarder.step()
    assert (bench.sink.closed, bench.metric("failures_total", reason="internal")) == (0, 0.0)
    bench.start()
    bench.step()
    assert bench.sink.got == [1], "it was delivered, but nobody knows"


def test_a_journal_that_can_not_be_read_is_no_fault_of_the_sink(make: Make) -> None:
    bench = make()
    bench.send((1, "/x/"))
    with closing(sqlite3.connect(bench.path)) as db:
        db.execute("ALTER TABLE batches RENAME TO gone")
        with pytest.raises(JournalError, match="no such table: batches"):
            bench.forwarder.step()
        db.execute("ALTER TABLE gone RENAME TO batches")
    assert bench.sink.closed == 0
    bench.step()
    assert bench.sink.got == [1]


def test_events_that_are_dropped_while_they_are_delivered_are_counted_as_what_became_of_them(make: Make) -> None:
    bench = make({"max_bytes": 200_000, "when_full": "drop_oldest"}, batch={"max_events": 10})
    fresh = iter(range(1, 1_000_000))

    def flood() -> None:
        """Append until the journal drops something."""
        before = bench.counters.dropped
        while bench.counters.dropped == before:
            bench.send(*[(next(fresh), "/x/") for _ in range(10)])

    flood()
    first = bench.counters.dropped + 1
    bench.sink.bad = {first + 5: retry, first + 7: rejected}
    bench.sink.script += [flood]
    bench.step()
    assert bench.last_call == list(range(first, first + 10))
    assert (bench.counters.delivered, bench.counters.retrying, bench.counters.dead) == (5, 5, 0)
    bench.sink.bad = {}
    while bench.counters.pending:
        bench.step_after(1000.0)
    dropped = bench.counters.dropped
    assert dropped >= first + 9
    assert bench.counters.delivered == bench.counters.accepted - dropped


# Everything at once

fates = st.sampled_from(["ok", "ok", "ok", "retry", "retry after", "rejected"])
breaks = st.sampled_from(["no", "no", "no", "told", "silent", "bug"])


class FickleSink(ScriptedSink):
    """Does anything that the contract allows; what it has rejected once, it always rejects."""

    def __init__(self, data: st.DataObject, record_progress: Callable[[], object]) -> None:
        super().__init__()
        self._data = data
        self._record_progress = record_progress

    def open(self) -> None:
        if self._data.draw(breaks) == "told":
            raise Unavailable("not now")

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        end = self._data.draw(breaks)
        upto = len(entries) if end == "no" else self._data.draw(st.integers(0, len(entries)))
        failures, failed, acknowledged = list[Failure](), set[str](), set[int]()
        self.delivered = acknowledged
        looks = self._data.draw(st.booleans())
        for entry in entries[:upto]:
            fate = self._data.draw(fates)
            if entry.fields.resource_uri in failed:
                fate = "held"
            elif fate == "rejected" or number_of(entry) in self.bad:
                fate, self.bad[number_of(entry)] = "rejected", rejected
            if fate == "ok":
                acknowledged.add(entry.seq)
                self.got.append(number_of(entry))
                if looks:
                    self._record_progress()
                continue
            if fate != "rejected":
                failed.add(entry.fields.resource_uri)
            by_fate: dict[str, Trouble] = {
                "held": Failure.held,
                "retry": retry,
                "retry after": lambda entry: Failure.retry(entry, "throttled", "429", retry_after=7.0),
                "rejected": rejected,
            }
            failures.append(by_fate[fate](entry))
        if end == "told":
            raise Unavailable("broke", delivered=acknowledged)
        if end != "no":
            raise ConnectionError if end == "silent" else KeyError("bug")
        return failures


@settings(max_examples=60, deadline=None)
@given(data=st.data(), ordering=st.sampled_from(["resource", "none"]), max_attempts=st.none() | st.integers(1, 4))
def test_whatever_a_sink_does_every_event_is_delivered_in_order_or_a_dead_letter(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, ordering: str, max_attempts: int | None
) -> None:
    retries = {"max_attempts": max_attempts, "max_pending": 6, "first_delay": 1, "max_delay": 8}
    bench = Bench(tmp_path_factory.mktemp("fickle"), {}, {"ordering": ordering, "retry": retries, "batch": {"max_events": 5}})
    bench.forwarder._sink = fickle = FickleSink(data, bench.forwarder.record_progress)
    resources: dict[int, str] = {}
    with capture_logs():
        for _ in range(data.draw(st.integers(1, 30))):
            if data.draw(st.booleans()):
                fresh = {len(resources) + i: data.draw(st.sampled_from(["/x/", "/y/", "/z/"])) for i in range(1, 4)}
                resources |= fresh
                bench.send(*fresh.items())
            bench.step_after(data.draw(st.sampled_from([0.0, 0.0, 0.5, 10.0])))
        bench.forwarder._sink = bench.sink
        bench.sink.got, bench.sink.bad = fickle.got, fickle.bad
        for _ in range(200):
            bench.step_after(10.0)
    assert bench.counters.pending == 0
    dead = {UUID(bytes=event(n, "/x/").key).int for n in resources} - set(bench.sink.got)
    letters = bench.letters()
    assert len(letters) == bench.counters.dead
    assert dead <= {letter.seq for letter in letters}
    if ordering == "resource":
        for resource in ("/x/", "/y/", "/z/"):
            first_time = list(dict.fromkeys(n for n in bench.sink.got if resources[n] == resource))
            assert all(before < after for before, after in pairwise(first_time))
    bench.journal.close()


# New secrets


def test_a_sink_made_with_new_secrets_takes_over_when_it_is_opened_again(make: Make) -> None:
    bench = make()
    other = ScriptedSink()
    bench.send((1, "/x/"))
    bench.step()
    bench.sink.script.append(Unavailable("401", "unauthorized"))
    bench.send((2, "/x/"))
    bench.step()
    bench.renewals += [None, other]
    bench.sink.refusals.append(Unavailable("401", "unauthorized"))
    bench.step_after(60.0)
    assert (bench.sink.opened, other.opened) == (2, 0)
    bench.step_after(60.0)
    bench.send((3, "/x/"))
    bench.step()

    assert (bench.sink.got, other.got) == ([1], [2, 3])
    assert (bench.sink.opened, other.opened) == (2, 1)
    assert bench.forwarder.status.up
    bench.forwarder.close()
    assert other.closed == 1


def test_while_a_sink_is_open_nobody_asks_for_another(make: Make) -> None:
    bench = make()
    bench.step()
    bench.renewals.append(ScriptedSink())
    bench.send((1, "/x/"))
    bench.step()

    assert bench.sink.got == [1]


def test_a_sink_that_can_t_be_made_with_new_secrets_is_a_bug_and_is_tried_again(make: Make) -> None:
    bench = make()
    bench.send((1, "/x/"))
    bench.renewals.append(ValueError("no such key"))
    bench.step()
    assert bench.forwarder.status.reason == "internal"
    bench.step_after(60.0)
    assert bench.sink.got == [1]
