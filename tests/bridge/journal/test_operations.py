"""What an operator changes: a cursor set back, an event set aside; and what is kept for that."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge.journal import Batch, DeadLetterQuery, Journal, JournalSettings, Retry, Settlement, UnknownSinkError
from tests.support.journal_samples import assert_balanced, event
from tests.support.journal_work import due_retries, read

HOUR = 3600.0
START = 1_700_000_000.0


class Clock:
    """A time of day and a monotonic clock that go together."""

    def __init__(self) -> None:
        self.now = START

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now - START


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(tmp_path: Path, clock: Clock) -> Iterator[Journal]:
    with closing(opened(tmp_path, clock)) as made:
        yield made


def opened(path: Path, clock: Clock, **settings: object) -> Journal:
    changes = {"durability": "normal", "retention": 24 * HOUR, **settings}
    made = Journal(
        JournalSettings.model_validate({"path": path / "journal.db", **changes}), clock=clock.time, monotonic=clock.monotonic
    )
    made.add_sink("a", "earliest")
    made.add_sink("b", "earliest")
    return made


def append(journal: Journal, received: float, *numbers: int) -> None:
    journal.append(Batch("acme", received, [event(number) for number in numbers], []))


def deliver(journal: Journal, sink: str) -> list[int]:
    """Deliver all that waits; return the sequence numbers."""
    delivered: list[int] = []
    while entries := read(journal, sink, 100, 1 << 20, 0.0):
        delivered += [entry.seq for entry in entries]
        journal.settle(sink, Settlement(entries[0].seq, entries[-1].seq + 1, delivered=len(entries)))
    return delivered


def test_a_sink_that_is_set_back_gets_everything_again_in_order_and_the_other_notices_nothing(journal: Journal) -> None:
    append(journal, START, 1, 2, 3)
    append(journal, START + 1, 4, 5)
    assert deliver(journal, "a") == deliver(journal, "b") == [1, 2, 3, 4, 5]
    journal.prune_all()

    done = journal.rewind("a", 2)

    assert (done.first, done.events) == (2, 4)
    assert_balanced(journal.counters())
    assert journal.counters().sinks["a"].pending == 4
    append(journal, START + 2, 6)
    assert (deliver(journal, "a"), deliver(journal, "b")) == ([2, 3, 4, 5, 6], [6])
    assert_balanced(journal.counters())
    assert journal.counters().sinks["a"].rewound == 4


def test_a_cursor_can_be_set_back_to_a_time(journal: Journal) -> None:
    for hour in range(5):
        append(journal, START + hour * HOUR, 10 * hour + 1, 10 * hour + 2)
    deliver(journal, "a")

    assert journal.rewind("a", datetime.fromtimestamp(START + 1.5 * HOUR, UTC)).first == 5
    assert deliver(journal, "a") == list(range(5, 11))
    assert journal.rewind("a", datetime.fromtimestamp(START + 9 * HOUR, UTC)).events == 0


def test_a_rehearsal_changes_nothing(journal: Journal) -> None:
    append(journal, START, 1, 2, 3)
    deliver(journal, "a")

    assert journal.rewind("a", 1, dry_run=True).events == 3
    assert journal.counters().sinks["a"].pending == 0


def test_what_waits_for_a_retry_is_given_once(journal: Journal) -> None:
    append(journal, START, 1, 2, 3)
    entries = read(journal, "a", 10, 1 << 20, 0.0)
    retry = Retry(2, entries[1].received, entries[1].json, "x", 1, START + 60, START, "server_error", "no")
    journal.settle("a", Settlement(1, 4, delivered=2, retries=[retry]))

    assert journal.rewind("a", 1).events == 3
    assert_balanced(journal.counters())
    assert due_retries(journal, "a", START + 100, START + 200, 10, 1 << 20) == []
    assert deliver(journal, "a") == [1, 2, 3]
    assert_balanced(journal.counters())


def test_a_delivery_under_way_while_the_cursor_is_set_back_counts_for_nothing(journal: Journal) -> None:
    append(journal, START, 1, 2, 3, 4)
    first = read(journal, "a", 2, 1 << 20, 0.0)
    journal.settle("a", Settlement(1, 3, delivered=len(first)))
    under_way = read(journal, "a", 2, 1 << 20, 0.0)
    journal.rewind("a", 1)
    journal.settle("a", Settlement(under_way[0].seq, under_way[-1].seq + 1, delivered=2))

    assert deliver(journal, "a") == [1, 2, 3, 4]
    assert_balanced(journal.counters())


def test_a_sink_can_be_set_back_behind_its_own_beginning_and_a_restart_finds_it_in_order(tmp_path: Path, clock: Clock) -> None:
    with closing(opened(tmp_path, clock)) as journal:
        append(journal, START, 1, 2, 3)
        journal.add_sink("late", "latest")
        assert journal.rewind("late", 1).events == 3
        assert_balanced(journal.counters())
    with closing(opened(tmp_path, clock)) as again:
        again.add_sink("late", "latest")
        assert again.damaged_files() == []
        assert deliver(again, "late") == [1, 2, 3]
        assert_balanced(again.counters())


@pytest.mark.parametrize("start_at", [START + 1.5 * HOUR, "earliest", "latest"])
def test_a_new_sink_begins_where_it_is_told(journal: Journal, start_at: float) -> None:
    for hour in range(4):
        append(journal, START + hour * HOUR, hour + 1)
    journal.add_sink("new", start_at)

    expected = {"earliest": [1, 2, 3, 4], "latest": []}.get(str(start_at), [3, 4])
    assert deliver(journal, "new") == expected


def test_delivered_events_are_kept_for_as_long_as_wanted_and_no_longer(journal: Journal, clock: Clock) -> None:
    append(journal, START, 1, 2)
    append(journal, START + 2 * HOUR, 3)
    deliver(journal, "a")
    deliver(journal, "b")
    clock.now = START + 24 * HOUR
    journal.prune_all()
    assert journal.rewind("a", 0, dry_run=True).first == 1
    clock.now = START + 25 * HOUR
    journal.prune_all()
    assert journal.rewind("a", 0, dry_run=True).first == 3
    clock.now = START + 27 * HOUR
    journal.prune_all()
    assert journal.rewind("a", 0, dry_run=True).events == 0


def test_what_is_kept_makes_room_for_new_events(tmp_path: Path, clock: Clock) -> None:
    with closing(opened(tmp_path, clock, max_bytes=16 << 20)) as journal:
        for number in range(0, 60_000, 500):
            append(journal, START, *range(number, number + 500))
            deliver(journal, "a")
            deliver(journal, "b")
        kept = journal.rewind("a", 0, dry_run=True)
        assert journal.counters().last_error is None

    assert 0 < kept.events < 60_000


def test_without_retention_nothing_is_kept(tmp_path: Path, clock: Clock) -> None:
    with closing(opened(tmp_path, clock, retention=0)) as journal:
        append(journal, START, 1, 2)
        deliver(journal, "a")
        deliver(journal, "b")
        journal.prune_all()
        assert journal.rewind("a", 0).events == 0


def test_the_event_at_the_head_is_set_aside_and_can_be_sent_again(journal: Journal) -> None:
    append(journal, START, 1, 2, 3)
    read(journal, "a", 10, 1 << 20, 0.0)

    assert journal.skip("a") == 1
    (letter,) = journal.dead_letters(DeadLetterQuery(sink="a")).dead_letters
    assert (letter.seq, letter.reason, letter.error) == (1, "skipped", "set aside by an operator")
    assert_balanced(journal.counters())
    assert deliver(journal, "a") == [2, 3]
    assert journal.replay("a", [letter.id]).replayed == 1
    assert journal.skip("a") is None
    assert_balanced(journal.counters())


def test_a_sink_that_is_not_configured_is_left_alone(journal: Journal) -> None:
    with pytest.raises(UnknownSinkError, match="no sink other is configured"):
        journal.rewind("other", 1)
    with pytest.raises(UnknownSinkError, match="no sink other is configured"):
        journal.skip("other")
    assert journal.counters().last_error is None
