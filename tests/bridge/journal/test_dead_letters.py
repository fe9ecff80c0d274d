"""Dead letters that are sent back or deleted: once, counted, and whatever else happens meanwhile."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.field_types import Bytes
from bridge.journal import (
    Batch,
    Closed,
    DeadLetter,
    DeadLetterQuery,
    Journal,
    JournalError,
    Retry,
    Settlement,
    SinkCounters,
    StoredDeadLetter,
    queues,
)
from bridge.journal.settings import DeadLetterSettings
from tests.support.dead_letters import written
from tests.support.journal_samples import assert_balanced, journal_settings
from tests.support.journal_work import due_retries, next_due, read, waiting_keys
from tests.support.plain_events import event

NOW = 200.0


def append(journal: Journal, *numbers: int, size: int = 0) -> None:
    journal.append(Batch("s", 100.0, [event(number, size) for number in numbers], []))


def kill(journal: Journal, sink: str = "a", key: str = "x", size: int = 1 << 20) -> None:
    """Make dead letters of all that lies after a sink's cursor."""
    while entries := read(journal, sink, 100, size, 0.0):
        dead = [DeadLetter(e.seq, e.received, e.json, key, 3, 100.0, 101.0 + e.seq, "rejected", "not wanted") for e in entries]
        journal.settle(sink, Settlement(entries[0].seq, entries[-1].seq + 1, dead=dead))


def found(journal: Journal, **query: Any) -> list[StoredDeadLetter]:
    return journal.dead_letters(DeadLetterQuery(**query)).dead_letters


def due(journal: Journal, sink: str = "a", now: float = NOW) -> list[Retry]:
    return due_retries(journal, sink, now, now + 1000.0, 1000, 1 << 20)


Open = Callable[..., Journal]


@pytest.fixture
def open_journal(path: Path) -> Iterator[Open]:
    """Opens the journal, the one before being closed."""
    opened: list[Journal] = []

    def open_(sinks: Sequence[str] = ("a",), **options: Any) -> Journal:
        if opened:
            opened[-1].close()
        opened.append(Journal(journal_settings(path, **{"durability": "normal", **options}), clock=lambda: NOW))
        for sink in sinks:
            opened[-1].add_sink(sink, "earliest")
        return opened[-1]

    yield open_
    for journal in opened:
        journal.close()


def before_and_after_a_restart(journal: Journal, open_journal: Open, *sinks: str) -> Iterator[Journal]:
    yield journal
    yield open_journal(sinks or ("a",))


def test_a_replayed_letter_is_due_at_once_in_its_lane_as_if_it_were_new(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1, 2, 3)
    kill(journal)
    ids = [stored.id for stored in found(journal)]
    assert waiting_keys(journal, "a") == set()
    assert journal.replay("a", ids[:2]).replayed == 2
    for again in before_and_after_a_restart(journal, open_journal):
        assert waiting_keys(again, "a") == {"x"}
        assert next_due(again, "a") == NOW
        assert due(again) == [
            Retry(seq, 100.0, event(seq).json, "x", 0, NOW, NOW, "held", "sent again after: not wanted") for seq in (1, 2)
        ]
        assert [stored.id for stored in found(again)] == ids[2:]
        assert again.counters().sinks["a"] == SinkCounters(3, 0, 0, 3, 0, 2, retrying=2, dead_letters=1, replayed=2)
        assert_balanced(again.counters())


def test_replaying_twice_sends_once(open_journal: Open) -> None:
    journal = open_journal(["a", "b"])
    append(journal, 1, 2)
    kill(journal)
    kill(journal, "b")
    ids = [stored.id for stored in found(journal)]
    assert [journal.replay("a", each).replayed for each in (ids, ids, [])] == [2, 0, 0]
    assert len(found(journal, sink="b")) == 2, "another sink's"
    journal.settle("a", Settlement(delivered=2, resolved=[1, 2]))
    assert journal.replay("a", ids).replayed == 0
    assert due(journal) == []
    assert_balanced(journal.counters())


def test_a_letter_may_die_again_and_be_sent_again(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1)
    kill(journal)
    for _ in range(3):
        ((id_, letter),) = written(journal).items()
        assert journal.replay("a", [id_]).replayed == 1
        journal.settle("a", Settlement(resolved=[1], dead=[letter]))
        assert_balanced(journal.counters())
    assert journal.counters().sinks["a"] == SinkCounters(1, 0, 0, 4, 0, 0, retrying=0, dead_letters=1, replayed=3)


def test_a_replayed_letter_goes_before_what_waits_in_its_lane(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1)
    kill(journal)
    append(journal, 2)
    later = Retry(2, 100.0, event(2).json, "x", 1, NOW + 50, 100.0, "timeout", "no answer")
    journal.settle("a", Settlement(2, 3, retries=[later]))
    assert due(journal) == []
    journal.replay("a", [1])
    assert [retry.seq for retry in due(journal)] == [1, 2]


def test_a_sink_that_is_not_configured_gets_nothing(open_journal: Open) -> None:
    journal = open_journal(["a", "b"])
    append(journal, 1)
    kill(journal, "b")
    journal.forget_sinks_except({"a"})
    with pytest.raises(JournalError, match="no sink b is configured"):
        journal.replay("b", [1])
    assert len(found(journal, sink="b")) == 1
    assert journal.counters().last_error is None, "a wrong question is no trouble of the journal"


def test_a_sink_that_comes_back_finds_its_letters_and_gets_none_twice(open_journal: Open) -> None:
    journal = open_journal(["a", "b"])
    append(journal, 1, 2, 3, 4)
    kill(journal, "b")
    journal.forget_sinks_except({"a"})
    journal.add_sink("b", "earliest")
    assert journal.counters().sinks["b"] == SinkCounters(8, 0, 0, 4, 0, 4, retrying=0, dead_letters=4)
    journal.settle("b", Settlement(1, 3, delivered=1, retries=[Retry(2, 100.0, b"2", "x", 1, 900.0, 100.0, "timeout", "")]))
    assert journal.replay("b", [1, 2, 3]).replayed == 1, "the second waits in the queue, the third lies after the cursor"
    counters = journal.counters().sinks["b"]
    assert (counters.replayed, counters.discarded, counters.dead_letters, counters.retrying) == (1, 2, 1, 2)
    for again in before_and_after_a_restart(journal, open_journal, "a", "b"):
        assert [retry.seq for retry in due(again, "b")] == [1, 2]
        assert again.counters().sinks["b"] == counters
        assert_balanced(again.counters())


def test_discarded_letters_are_gone_and_counted_for_sinks_that_have_books(open_journal: Open) -> None:
    journal = open_journal(["a", "b"])
    append(journal, 1, 2)
    kill(journal)
    kill(journal, "b")
    ids = [stored.id for stored in found(journal)]
    journal = open_journal(["a"])
    assert journal.discard([ids[0], ids[2], 10**9, -1]) == 2
    assert journal.discard([ids[0]]) == 0
    journal.add_sink("b", "earliest")
    for again in before_and_after_a_restart(journal, open_journal, "a", "b"):
        counters = again.counters().sinks
        assert [(counters[name].dead_letters, counters[name].discarded) for name in "ab"] == [(1, 1), (1, 1)]
        assert [stored.id for stored in found(again)] == [ids[1], ids[3]]
        assert_balanced(again.counters())
    again.forget_sinks_except({"a"})
    assert again.discard(ids) == 2
    assert again.counters().sinks["a"].discarded == 2


def test_a_damaged_letter_is_listed_as_such_and_never_sent(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    append(journal, 1, 2)
    kill(journal)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE dead_letters SET json = CAST('event 9' AS BLOB) WHERE id = 1")
    assert [(stored.id, stored.damaged) for stored in found(journal)] == [(1, True), (2, False)]
    assert journal.replay("a", [1, 2]).replayed == 1
    assert [retry.json for retry in due(journal)] == [event(2).json]
    assert journal.discard([1]) == 1
    assert journal.counters().sinks["a"].discarded == 1
    assert_balanced(journal.counters())


def test_a_damaged_retry_is_dropped_counted_and_said(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    append(journal, 1, 2)
    kill(journal)
    journal.replay("a", [1, 2])
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE retries SET json = CAST('event 9' AS BLOB) WHERE seq = 1")
    assert journal.oldest("a") is None
    with capture_logs() as logs:
        assert [retry.json for retry in due(journal)] == [event(2).json]
        assert [retry.json for retry in due(journal)] == [event(2).json]
    assert [(line["log_level"], line["sink"], line["events"]) for line in logs] == [("error", "a", 1)]
    for again in before_and_after_a_restart(journal, open_journal):
        counters = again.counters().sinks["a"]
        assert (counters.dropped, counters.retrying, counters.pending) == (1, 1, 1)
        assert_balanced(again.counters())


def test_what_can_not_be_recorded_is_told_and_changes_nothing(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    append(journal, 1, 2)
    kill(journal)
    before = journal.counters().sinks
    for event_ in ("INSERT ON retries", "DELETE ON dead_letters", "INSERT ON sinks"):
        with closing(sqlite3.connect(path)) as db, db:
            db.execute(f"CREATE TRIGGER failing BEFORE {event_} BEGIN SELECT RAISE(FAIL, 'the disk is on fire'); END")
        with pytest.raises(JournalError, match="the disk is on fire"):
            journal.replay("a", [1])
        if not event_.endswith("retries"):
            with pytest.raises(JournalError, match="the disk is on fire"):
                journal.discard([1])
        assert journal.counters().sinks == before
        assert "the disk is on fire" in (journal.counters().last_error or "")
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("DROP TRIGGER failing")
    assert journal.discard([2]) == 1
    assert journal.counters().last_error is None
    assert journal.replay("a", [1]).replayed == 1
    assert_balanced(journal.counters())


def test_a_replay_ends_the_wait_for_new_events(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1)
    kill(journal)
    reading = threading.Event()
    with ThreadPoolExecutor(1) as pool:

        def look() -> list[Any]:
            reading.set()
            return read(journal, "a", 10, 1000, 60.0)

        waiting = pool.submit(look)
        reading.wait(10.0)
        replayed = 0
        while not waiting.done():
            # As often as it takes: nobody knows when it waits indeed.
            replayed += journal.replay("a", [stored.id for stored in found(journal)]).replayed
            for retry in due(journal):
                letter = DeadLetter(retry.seq, 100.0, retry.json, "x", 1, NOW, NOW, "rejected", "")
                journal.settle("a", Settlement(resolved=[retry.seq], dead=[letter]))
        assert waiting.result(10.0) == []
        assert replayed


def test_heads_that_were_looked_up_during_a_replay_are_looked_up_again(
    open_journal: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = open_journal()
    append(journal, 1)
    kill(journal)
    look = queues.heads

    def slow(db: Any, sink: str) -> tuple[dict[str, float], int]:
        before = look(db, sink)
        monkeypatch.setattr(queues, "heads", look)
        journal.replay("a", [1])
        return before

    append(journal, 2)
    journal.settle("a", Settlement(2, 3, retries=[Retry(2, 100.0, b"2", "y", 1, NOW + 1, 100.0, "timeout", "")]))
    monkeypatch.setattr(queues, "heads", slow)
    assert next_due(journal, "a") == NOW + 1
    assert next_due(journal, "a") == NOW
    assert waiting_keys(journal, "a") == {"x", "y"}


def test_threads_that_replay_settle_and_discard_at_once_keep_the_books(open_journal: Open) -> None:
    """One thread delivers, as a forwarder does; others append, replay, discard and prune. Each event leaves once."""
    journal, total, delivered = open_journal(), 200, [0]
    enough, stop = threading.Event(), threading.Event()

    def forward() -> None:
        turn = 0
        while not stop.is_set() or journal.counters().sinks["a"].pending:
            turn += 1
            waiting = due(journal)
            fates = {r.seq: ("delivered", "dead", "retry")[(r.seq + turn) % 3] for r in waiting}
            dead = [
                DeadLetter(r.seq, r.received, r.json, r.ordering_key, 1, NOW, NOW, "rejected", "")
                for r in waiting
                if fates[r.seq] == "dead"
            ]
            gone = [seq for seq, fate in fates.items() if fate != "retry"]
            retries = [r for r in waiting if fates[r.seq] == "retry"]
            delivered[0] += len(gone) - len(dead)
            journal.settle("a", Settlement(delivered=len(gone) - len(dead), resolved=gone, retries=retries, dead=dead))
            kill(journal, key=f"lane {turn % 5}")
            assert_balanced(journal.counters())

    def operate() -> None:
        while not enough.is_set():
            letters = found(journal)
            journal.replay("a", [stored.id for stored in letters if stored.id % 4])
            journal.discard([stored.id for stored in letters if not stored.id % 4][:1])
            journal.prune()
            assert_balanced(journal.counters())

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(forward), pool.submit(operate), pool.submit(operate)]
        for number in range(1, total + 1):
            append(journal, number)
        while not journal.counters().sinks["a"].replayed:
            assert not any(thread.done() for thread in running)
            time.sleep(0.001)
        enough.set()
        for thread in running[1:]:
            thread.result(60.0)
        stop.set()
        running[0].result(60.0)
    counters = journal.counters().sinks["a"]
    assert (counters.accepted, counters.pending, counters.delivered) == (total, 0, delivered[0])
    assert counters.delivered + counters.discarded + counters.dead_letters == total
    assert counters.replayed > 0
    assert_balanced(journal.counters())
    assert open_journal().counters().sinks["a"] == counters


# A full journal


ALL_LETTERS = DeadLetterSettings(max_bytes=Bytes(1 << 30))
"""As many dead letters as the journal has room for."""


def fill(journal: Journal, size: int = 3000, count: int = 96) -> None:
    for number in range(1, count + 1):
        append(journal, number, size=size)
        kill(journal)
        journal.prune()


def test_when_the_oldest_may_go_dead_letters_go_before_events(open_journal: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.policy.Summary._FIRST_SECONDS", 0.0)
    journal = open_journal(max_bytes=600_000, when_full="drop_oldest", dead_letters=ALL_LETTERS)
    fill(journal)
    with capture_logs() as logs:
        for number in range(1000, 1060):
            append(journal, number, size=4000)
    counters = journal.counters().sinks["a"]
    assert counters.dropped == 0
    assert counters.discarded > 0
    assert counters.dead_letters == 96 - counters.discarded == len(found(journal))
    assert found(journal)[0].id == counters.discarded + 1, "the oldest"
    told = [line["dead_letters"]["a"] for line in logs if "dead letters were discarded" in line["event"]]
    assert sum(told) == counters.discarded
    assert_balanced(journal.counters())
    for number in range(2000, 2200):
        append(journal, number, size=4000)
    counters = journal.counters().sinks["a"]
    assert (counters.dead_letters, counters.dropped > 0) == (0, True), "events go when no dead letters are left"
    assert_balanced(journal.counters())
    assert open_journal(max_bytes=600_000).counters().sinks["a"] == counters


def test_letters_of_a_sink_that_left_make_room_too(open_journal: Open) -> None:
    journal = open_journal(max_bytes=600_000, when_full="drop_oldest", dead_letters=ALL_LETTERS)
    fill(journal)
    journal.add_sink("b", "latest")
    journal.forget_sinks_except({"b"})
    for number in range(1000, 1060):
        append(journal, number, size=4000)
    assert len(found(journal, sink="a")) < 96
    assert journal.counters().sinks["b"].dropped == 0


def test_blocked_nothing_is_given_up_and_the_trouble_says_whose_letters_they_are(open_journal: Open) -> None:
    journal = open_journal(["a", "b"], max_bytes=600_000, dead_letters=ALL_LETTERS)
    append(journal, 0)
    kill(journal, "b")
    fill(journal, count=50)
    entries = read(journal, "b", 1000, 1 << 20, 0.0)
    journal.settle("b", Settlement(entries[0].seq, entries[-1].seq + 1, delivered=len(entries)))
    journal.prune()

    def more() -> None:
        for number in range(1000, 1100):
            append(journal, number, size=4000)

    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(more)
        while (trouble := journal.counters().last_error) is None:
            assert not rest.done()
        counters = journal.counters().sinks["a"]
        ids = [stored.id for stored in found(journal, sink="a")]
        gone = journal.discard(ids)
        rest.result(10.0)
    assert "a has 51; `event-bridge dead-letters` replays or drops them" in trouble
    assert (counters.dead_letters, counters.discarded, counters.dropped) == (51, 0, 0)
    assert gone == len(ids) == 51
    assert journal.counters().last_error is None
    assert_balanced(journal.counters())


def test_after_the_end_nothing_moves(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1)
    kill(journal)
    journal.close()
    with pytest.raises(Closed):
        journal.replay("a", [1])
    with pytest.raises(Closed):
        journal.discard([1])
