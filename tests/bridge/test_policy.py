"""Decisions, with made-up clocks and dice."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.event import Fields
from bridge.policy import Brake, Filter, Keepalive, LossTracker, Rule, Summary, backoff, obey, parse_retry_after, retry_delay

NOW = datetime(2026, 11, 23, 17, 0, 0, tzinfo=UTC)


def highest(_: float, high: float) -> float:
    return high


def lowest(low: float, _: float) -> float:
    return low


# --- backoff, retry ----------------------------------------------------------------------------------------------------


def test_backoff_doubles_up_to_its_ceiling_and_goes_on_for_ever() -> None:
    assert list(islice(backoff(0.5, 10.0, highest), 8)) == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_backoff_has_full_jitter() -> None:
    assert list(islice(backoff(0.5, 10.0, lowest), 5)) == [0.0] * 5


@given(st.integers(), st.floats(0.001, 100), st.floats(100, 1000))
def test_no_backoff_is_longer_than_its_ceiling(seed: int, first: float, ceiling: float) -> None:
    assert all(0 <= delay <= ceiling for delay in islice(backoff(first, ceiling, random.Random(seed).uniform), 100))


def test_a_far_side_that_asks_for_time_gets_a_little_more() -> None:
    assert obey(10.0, 60.0, lowest) == 10.0
    assert obey(10.0, 60.0, highest) == 11.0


def test_a_far_side_that_asks_for_a_day_gets_our_ceiling() -> None:
    assert obey(86400.0, 60.0, lowest) == 60.0


def test_the_delay_of_a_retry_doubles_with_full_jitter() -> None:
    assert [retry_delay(attempts, 1.0, 10.0, None, highest) for attempts in range(1, 7)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert [retry_delay(attempts, 1.0, 10.0, None, lowest) for attempts in range(1, 7)] == [0.0] * 6


def test_the_delay_of_the_millionth_retry_is_the_ceiling() -> None:
    assert retry_delay(1_000_000, 1.0, 600.0, None, highest) == 600.0


def test_a_retry_comes_when_the_far_side_asked_for_it() -> None:
    assert retry_delay(9, 1.0, 600.0, 30.0, lowest) == 30.0
    assert retry_delay(1, 1.0, 600.0, 3600.0, lowest) == 600.0


@pytest.mark.parametrize("attempts", [1, 9])
def test_a_far_side_that_asks_for_no_delay_at_all_is_not_hammered(attempts: int) -> None:
    assert retry_delay(attempts, 1.0, 600.0, 0.0, lowest) == 0.5


def test_a_ceiling_below_the_first_delay_holds() -> None:
    assert retry_delay(1, 10.0, 4.0, None, highest) == 4.0
    assert retry_delay(1, 10.0, 4.0, 0.0, highest) == 4.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Mon, 23 Nov 2026 17:02:00 GMT", 120.0),
        ("Mon, 23 Nov 2026 18:02:00 +0100", 120.0),
        ("Mon, 23 Nov 2026 17:02:00 -0000", 120.0),
        ("Mon, 23 Nov 2026 16:00:00 GMT", 0.0),
        ("9" * 400, float("inf")),
    ],
)
def test_retry_after_is_understood_in_both_forms(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == seconds


@pytest.mark.parametrize("value", [None, "", "soon", "-5", "1.5", "12 s", "\u0663", "Mon, 99 Nov 2026", "0x10"])
def test_a_retry_after_that_makes_no_sense_is_none(value: str | None) -> None:
    assert parse_retry_after(value, NOW) is None


@given(st.text())
def test_no_retry_after_makes_it_raise(value: str) -> None:
    assert (parse_retry_after(value, NOW) or 0.0) >= 0.0


# --- keepalive ---------------------------------------------------------------------------------------------------------


def keepalive(idle_timeout: float | None = None) -> Keepalive:
    return Keepalive(interval=10.0, timeout=5.0, idle_timeout=idle_timeout, now=100.0)


def test_a_ping_is_due_after_an_interval_of_silence() -> None:
    peer = keepalive()

    assert peer.due(109.9) is None
    assert peer.wait(103.0) == 7.0
    assert peer.due(110.0) == "ping"


def test_a_ping_is_due_once() -> None:
    peer = keepalive()

    assert peer.due(110.0) == "ping"
    assert peer.due(112.0) is None
    assert peer.wait(112.0) == 3.0


def test_a_half_open_connection_is_found_after_interval_and_timeout() -> None:
    peer = keepalive()
    peer.due(110.0)

    assert peer.due(114.9) is None
    assert peer.due(115.0) == "dead"
    assert peer.wait(115.0) == 0.0


@pytest.mark.parametrize("event", [True, False])
def test_anything_counts_as_life(event: bool) -> None:
    peer = keepalive()
    peer.due(110.0)
    peer.heard(114.0, event=event)

    assert peer.due(123.9) is None
    assert peer.wait(114.0) == 10.0
    assert peer.due(124.0) == "ping"


def test_a_late_look_pings_before_it_declares_anybody_dead() -> None:
    peer = keepalive()

    assert peer.wait(500.0) == 0.0
    assert peer.due(500.0) == "ping"
    assert peer.due(504.0) is None
    assert peer.due(505.0) == "dead"


def test_without_an_idle_timeout_a_stream_may_be_silent_for_ever() -> None:
    peer = keepalive()
    for now in range(110, 100_000, 10):
        assert peer.due(float(now)) == "ping"
        peer.heard(float(now), event=False)
        assert peer.due(now + 1.0) is None


def test_a_stream_without_events_is_idle_even_if_it_answers_pings() -> None:
    peer = keepalive(idle_timeout=25.0)
    for now in (110.0, 120.0):
        assert peer.due(now) == "ping"
        peer.heard(now, event=False)

    assert peer.wait(122.0) == 3.0
    assert peer.due(124.9) is None
    assert peer.due(125.0) == "idle"


def test_an_event_starts_the_idle_timeout_anew() -> None:
    peer = keepalive(idle_timeout=25.0)
    peer.heard(120.0, event=True)

    assert peer.due(144.9) == "ping"
    assert peer.due(145.0) == "idle"


@given(st.lists(st.tuples(st.floats(0.01, 20), st.booleans(), st.booleans()), max_size=50))
def test_after_waiting_there_is_something_to_do_and_before_there_is_not(steps: Sequence[tuple[float, bool, bool]]) -> None:
    peer, now = keepalive(idle_timeout=60.0), 100.0
    for pause, heard, event in steps:
        wait = peer.wait(now)
        if wait > 0.001:
            assert peer.due(now + wait / 2) is None
        if pause < wait:
            now += pause
            if heard:
                peer.heard(now, event=event)
            continue
        now += wait + 0.001
        assert peer.due(now) is not None
        peer.heard(now, event=True)


# --- filter ------------------------------------------------------------------------------------------------------------


def fields(**changes: object) -> Fields:
    values: dict[str, object] = {
        "type": "container",
        "action": "update",
        "state": "Not running",
        "resource_uri": "/api/app/v1/acme/container/7/",
        "parents": ["/api/app/v1/acme/service/8/", "/api/infra/v1/acme/node/9/"],
        "uuid": "093ba3bb-08dd-48f0-8f12-4d3b85ef85b3",
        "datetime": "2016-02-01T16:47:28Z",
        "namespace": "acme",
        "received_at": "2026-11-23T17:00:00.123456Z",
    }
    return Fields(**(values | changes))  # type: ignore[arg-type]


def test_a_filter_without_rules_lets_everything_pass() -> None:
    everything = Filter([], [])

    assert not everything
    assert everything.accepts(fields())


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        ({"type": ["container"]}, True),
        ({"type": ["service", "container"]}, True),
        ({"type": ["service"]}, False),
        # The original service wrote both "Not Running" and "Not running".
        ({"state": ["Not Running"]}, True),
        ({"state": ["*run*"]}, True),
        ({"state": ["not?running"]}, True),
        ({"state": ["[mn]ot running"]}, True),
        ({"state": ["run"]}, False),
        ({"state": ["Not running\n"]}, False),
        ({"state": [""]}, False),
        ({"resource_uri": ["*/container/*"]}, True),
        ({"namespace": ["acme"]}, True),
        ({"action": ["create", "delete"]}, False),
        # Any parent.
        ({"parents": ["*/node/9/"]}, True),
        ({"parents": ["*/node/8/"]}, False),
        # Every field.
        ({"type": ["container"], "state": ["Running"]}, False),
        ({"type": ["container"], "state": ["Not running"]}, True),
        # No pattern is fitted by nothing.
        ({"state": []}, False),
    ],
)
def test_a_rule_fits_if_every_field_matches_by_any_pattern(rule: Rule, *, fits: bool) -> None:
    assert Filter([rule], []).accepts(fields()) is fits
    assert Filter([], [rule]).accepts(fields()) is not fits


def test_one_of_several_rules_is_enough() -> None:
    only = Filter([{"type": ["node"]}, {"state": ["not running"]}], [])

    assert only
    assert only.accepts(fields())
    assert not only.accepts(fields(state="Running"))


def test_what_is_dropped_is_dropped_even_if_it_matches() -> None:
    some = Filter([{"type": ["container"]}], [{"state": ["Running"]}, {"state": ["Starting"]}])

    assert some.accepts(fields())
    assert not some.accepts(fields(state="Starting"))
    assert not some.accepts(fields(type="node"))


def test_an_event_without_parents_fits_no_rule_about_them() -> None:
    assert not Filter([{"parents": ["*"]}], []).accepts(fields(parents=[]))


def test_dots_and_brackets_mean_themselves() -> None:
    assert not Filter([{"state": ["a.b"]}], []).accepts(fields(state="axb"))
    assert Filter([{"state": ["[[]ok]"]}], []).accepts(fields(state="[OK]"))


def test_a_state_of_several_lines_is_matched_as_a_whole() -> None:
    assert Filter([{"state": ["a*b"]}], []).accepts(fields(state="a\nb"))
    assert not Filter([{"state": ["a"]}], []).accepts(fields(state="a\n"))


# --- events that fail again and again -------------------------------------------------------------------------------------


def test_a_sink_that_takes_nothing_gets_new_events_only_now_and_then() -> None:
    brake = Brake(max_pending=10, pause=60.0, now=0.0)
    assert brake.limit(0.0) == 10, "nothing is known of it"
    assert (brake.paused_at(9), brake.paused_at(10)) == (None, 10)
    assert brake.limit(60.0) == 100
    brake.tried(0, 5, 60.0, new=False)
    assert brake.limit(60.0) == 100, "no new ones were tried"
    brake.tried(0, 5, 60.0, new=True)
    assert (brake.limit(61.0), brake.limit(120.0)) == (10, 100)


def test_a_sink_that_takes_others_is_paused_at_ten_times_as_many() -> None:
    brake = Brake(max_pending=10, pause=60.0, now=0.0)
    brake.tried(1, 5, 1.0, new=True)
    assert (brake.limit(1.0), brake.paused_at(99), brake.paused_at(100)) == (100, None, 100)
    brake.tried(0, 1000, 1.0, new=False)
    assert not brake.takes_nothing, "retries that fail again say nothing of the sink"
    brake.tried(0, 10, 1.0, new=True)
    assert (brake.paused_at(10), brake.takes_nothing) == (10, True)


def test_an_event_that_loses_the_connection_is_offered_alone_and_to_blame_after_five_times() -> None:
    tracker = LossTracker()
    told = [(tracker.limit, tracker.lost(first=7, offered=tracker.limit or 100)) for _ in range(5)]

    assert told == [(None, False), (None, False), (None, False), (1, False), (1, True)]


def test_after_a_suspicion_twice_as_many_are_offered_each_time() -> None:
    tracker = LossTracker()
    for _ in range(3):
        tracker.lost(first=7, offered=100)
    limits = []
    while tracker.limit is not None:
        limits.append(tracker.limit)
        tracker.delivered()

    assert limits == [2**power for power in range(21)]
    assert not tracker.lost(first=200, offered=1)
    assert tracker.limit is None


def test_another_event_is_not_to_blame_for_the_losses_of_the_one_before() -> None:
    tracker = LossTracker()
    assert [tracker.lost(first, 1) for first in (1, 1, 1, 1, 2, 2, 2, 2, 2)] == [False] * 8 + [True]


def test_what_happens_again_and_again_is_told_at_once_and_then_as_sums() -> None:
    summary, told = Summary(), {}
    for second in range(10_000):
        if counts := summary.add({"a": 1, "b": 0}, float(second)):
            told[second] = counts.pop("a")
            assert not counts
    assert told == {0: 1, 10: 10, 30: 20, 70: 40, 150: 80, 310: 160, 630: 320, 1270: 640, 2550: 1280, 5110: 2560, 8710: 3600}

    assert summary.add({}, 12310.0) == {"a": 1289}
    assert summary.add({}, 99_999.0) == {}
    assert summary.add({"a": 5}, 100_000.0) == {"a": 5}
    assert summary.add({"a": 2, "b": 1}, 100_009.0) == {}
    assert summary.add({"b": 1}, 100_010.0) == {"a": 2, "b": 2}
