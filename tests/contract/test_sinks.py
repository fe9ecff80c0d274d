"""The contract of `bridge.sink`, held against every sink that comes with the bridge, or against a stranger's."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from bridge.sink import Entry, Failure, Sink, Unavailable
from tests.contract.harness import Ability, Harness, make_entries, make_entry, strangers
from tests.support.processes import open_descriptors
from tests.support.waiting import until

if not (HARNESSES := strangers()):
    from tests.contract.ours import HARNESSES


def sinks_that_can(*abilities: Ability) -> Callable[[Any], Any]:
    """Run a test for every type of sink whose receiver has these abilities."""
    able = [harness for harness in HARNESSES if harness.abilities.issuperset(abilities)]
    if not able:
        return pytest.mark.skip(reason=f"no harness here is able to: {', '.join(abilities)}")
    return pytest.mark.parametrize("harness", able, indirect=True, ids=lambda harness: harness.__name__)


@pytest.fixture
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    harness: Harness = request.param()
    yield harness
    harness.close()


@pytest.fixture
def sink(harness: Harness) -> Iterator[Sink]:
    sink = harness.make_sink()
    yield sink
    sink.close()


def by_resource(events: Sequence[bytes]) -> dict[str, list[bytes]]:
    found = defaultdict(list)
    for event in events:
        found[Entry(0, 0.0, event).fields.resource_uri].append(event)
    return found


class Delivery(threading.Thread):
    """One `deliver` in a thread of its own."""

    def __init__(self, sink: Sink, entries: Sequence[Entry]) -> None:
        super().__init__(daemon=True)
        self._sink = sink
        self._entries = entries
        self.failures: Sequence[Failure] | None = None
        self.start()

    def run(self) -> None:
        self.failures = self._sink.deliver(self._entries)

    def still_runs_after(self, seconds: float) -> bool:
        self.join(seconds)
        return self.is_alive()


@sinks_that_can()
def test_every_event_arrives_once_and_in_the_order_of_its_resource(harness: Harness, sink: Sink) -> None:
    entries = make_entries(300)
    sink.open()

    assert not sink.deliver(entries[:200])
    assert not sink.deliver(entries[200:])

    assert by_resource(harness.arrived()) == by_resource([entry.json for entry in entries])


@sinks_that_can()
def test_ten_thousand_events_in_a_row_arrive(harness: Harness, sink: Sink) -> None:
    entries = make_entries(10_000, resources=97)
    sink.open()

    for start in range(0, len(entries), 1000):
        assert not sink.deliver(entries[start : start + 1000])

    assert by_resource(harness.arrived()) == by_resource([entry.json for entry in entries])


@sinks_that_can()
@pytest.mark.parametrize(
    "entry",
    [
        make_entry(1, state="Läuft 運行中 🐳 \u2028 \x7f \\ \" ' \t"),
        make_entry(1, action="", state="", resource_uri="", parents=[]),
        make_entry(1, environment="x" * 1_000_000),
    ],
    ids=["unicode", "almost empty", "a megabyte"],
)
def test_an_event_arrives_byte_for_byte(harness: Harness, sink: Sink, entry: Entry) -> None:
    sink.open()

    assert not sink.deliver([entry])

    assert harness.arrived() == [entry.json]


@sinks_that_can()
def test_nothing_to_deliver_is_no_delivery(harness: Harness, sink: Sink) -> None:
    sink.open()
    assert not sink.deliver([])
    assert not sink.deliver(())
    check_connection(sink)
    assert harness.arrived() == []

    assert not sink.deliver([make_entry(1)])
    assert not sink.deliver([])
    check_connection(sink)
    sink.close()
    with pytest.raises(Unavailable):
        sink.deliver([])

    assert harness.arrived() == [make_entry(1).json]


@sinks_that_can("withhold")
def test_nothing_to_deliver_waits_for_nobody(harness: Harness, sink: Sink) -> None:
    sink.open()
    harness.withhold()
    check_connection(sink)
    delivery = Delivery(sink, [])

    assert not delivery.still_runs_after(1)
    harness.repair()

    assert not delivery.failures
    assert not sink.deliver([make_entry(1)])
    assert harness.arrived() == [make_entry(1).json]


@sinks_that_can("notice")
def test_a_receiver_that_is_gone_is_noticed_without_an_event(harness: Harness, sink: Sink) -> None:
    sink.open()
    harness.break_off()

    until(lambda: not is_connected(sink), "it is noticed", 10)
    sink.close()
    harness.repair()
    sink.open()

    assert is_connected(sink)
    assert harness.arrived() == []


@sinks_that_can("withhold")
def test_deliver_returns_only_after_the_acknowledgement(harness: Harness, sink: Sink) -> None:
    entry = make_entry(1)
    sink.open()
    harness.withhold()
    delivery = Delivery(sink, [entry])

    assert delivery.still_runs_after(0.2)
    harness.repair()
    assert not delivery.still_runs_after(10)

    assert delivery.failures is not None
    assert not delivery.failures
    assert harness.arrived() == [entry.json]


@sinks_that_can("break")
def test_a_receiver_that_is_gone_is_an_exception_and_nothing_is_lost(harness: Harness, sink: Sink) -> None:
    entries = make_entries(20)
    sink.open()
    assert not sink.deliver(entries[:10])
    before = harness.arrived()

    harness.break_off()
    with pytest.raises(Unavailable) as unavailable:
        sink.deliver(entries[10:])
    sink.close()
    assert unavailable.value.reason == "unreachable"
    assert not unavailable.value.delivered

    harness.repair()
    sink.open()
    assert not sink.deliver(entries[10:])

    assert by_resource(before) == by_resource([entry.json for entry in entries[:10]])
    assert by_resource(harness.arrived()) == by_resource([entry.json for entry in entries])


@sinks_that_can("stop")
def test_what_was_acknowledged_before_things_broke_is_told_and_not_repeated(harness: Harness, sink: Sink) -> None:
    entries = make_entries(100)
    sink.open()
    harness.stop_after(30)

    with pytest.raises(Unavailable) as unavailable:
        sink.deliver(entries)
    sink.close()
    delivered = set(unavailable.value.delivered)
    assert 30 <= len(delivered) < 100
    if hasattr(sink, "delivered"):
        assert delivered == {entry.seq for entry in entries if entry.seq in sink.delivered}

    harness.repair()
    sink.open()
    assert not sink.deliver([entry for entry in entries if entry.seq not in delivered])

    assert by_resource(harness.arrived()) == by_resource([entry.json for entry in entries])


@sinks_that_can("reject")
def test_one_rejected_event_is_rejected_alone(harness: Harness, sink: Sink) -> None:
    entries = make_entries(50)
    sink.open()
    harness.reject(entries[17])

    failures = sink.deliver(entries)

    assert [(failure.seq, failure.outcome, failure.reason) for failure in failures] == [(18, "rejected", "rejected")]
    expected = [entry.json for entry in entries if entry.seq != 18]
    assert by_resource(harness.arrived()) == by_resource(expected)


@sinks_that_can("fail")
def test_nothing_of_the_same_resource_is_sent_after_an_event_that_failed(harness: Harness, sink: Sink) -> None:
    entries = make_entries(50)
    sink.open()
    harness.fail(entries[17])

    failures = sink.deliver(entries)

    outcomes = {failure.seq: failure.outcome for failure in failures}
    assert set(outcomes.values()) == {"retry", "held"}
    for resource in by_resource([entry.json for entry in entries]):
        unsent = [outcomes.get(entry.seq, "sent") for entry in entries if entry.fields.resource_uri == resource]
        first = unsent.index("retry") if "retry" in unsent else len(unsent)
        assert unsent[:first] == ["sent"] * first
        assert unsent[first + 1 :] == ["held"] * len(unsent[first + 1 :])
    assert 18 in outcomes
    expected = [entry.json for entry in entries if entry.seq not in outcomes]
    assert by_resource(harness.arrived()) == by_resource(expected)


@sinks_that_can()
def test_it_may_be_closed_at_any_time_and_opened_again(harness: Harness, sink: Sink) -> None:
    entries = make_entries(3)
    sink.close()
    sink.open()
    sink.open()
    assert not sink.deliver(entries[:1])
    sink.close()
    sink.close()
    with pytest.raises(Unavailable):
        sink.deliver(entries[1:])
    sink.open()
    assert not sink.deliver(entries[1:])

    assert by_resource(harness.arrived()) == by_resource([entry.json for entry in entries])


@sinks_that_can("break")
def test_opening_fails_until_the_receiver_is_back(harness: Harness, sink: Sink) -> None:
    entries = make_entries(3)
    harness.break_off()
    for _ in range(3):
        with pytest.raises(Unavailable):
            open_and_deliver(sink, entries)
        sink.close()
    harness.repair()

    assert not open_and_deliver(sink, entries)

    assert by_resource(harness.arrived()) == by_resource([entry.json for entry in entries])


@sinks_that_can()
def test_remarks_are_lines_that_leave_nothing_behind(harness: Harness, sink: Sink) -> None:
    sink.open()

    for remark in getattr(sink, "remarks", lambda _: ())(1_000_000):
        assert remark
        assert remark.splitlines() == [remark]

    assert harness.arrived() == []
    assert not sink.deliver(make_entries(1))
    assert len(harness.arrived()) == 1


@sinks_that_can()
def test_opening_and_closing_leaves_no_descriptors_behind(harness: Harness, sink: Sink) -> None:
    open_and_deliver(sink, make_entries(1))
    sink.close()
    before = open_descriptors()
    for seq in range(2, 20):
        open_and_deliver(sink, [make_entry(seq)])
        sink.close()

    # A receiver in a thread of this process may be a moment behind with closing its ends.
    until(lambda: open_descriptors() <= before)
    assert len(harness.arrived()) == 19


def check_connection(sink: Sink) -> None:
    """Check the connection as a forwarder does."""
    getattr(sink, "check_connection", lambda: None)()


def is_connected(sink: Sink) -> bool:
    """Return True if the sink, which can tell, takes the receiver for reachable."""
    assert hasattr(sink, "check_connection")
    try:
        check_connection(sink)
    except Unavailable:
        return False
    return True


def open_and_deliver(sink: Sink, entries: Sequence[Entry]) -> Sequence[Failure]:
    sink.open()
    return sink.deliver(entries)
