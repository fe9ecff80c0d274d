"""What operators look at and change, on a real journal."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bridge.event import Malformed
from bridge.journal import Closed, DeadLetterQuery, Journal, JournalError, JournalReader, SinkBacklog, UnknownSinkError
from tests.support.journal_samples import RECEIVED, append, bury, damage, event, opened, uuid
from tests.support.journal_work import due_retries

EVERY = DeadLetterQuery()
EVENTS = [event(number) for number in range(1, 11)]
DIED = RECEIVED.timestamp() + 60.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    """A journal with ten events, all of which the sink `alerts` rejected."""
    with opened(path, "alerts", "audit") as made:
        append(made, EVENTS, [Malformed("not_json", b"\xff\x00")])
        bury(made, "alerts", 1, EVENTS, died=DIED)
        yield made


def test_a_dead_letter_tells_everything(journal: Journal) -> None:
    letter = journal.dead_letters(EVERY, 0, 1).dead_letters[0]

    assert (letter.id, letter.sink, letter.reason, letter.attempts, letter.seq) == (1, "alerts", "rejected", 3, 1)
    assert letter.error == "answered 400 \x1b[31mBad"
    assert (letter.received, letter.died) == (RECEIVED, datetime.fromtimestamp(DIED, UTC))
    assert json.loads(bytes(letter.event))["uuid"] == uuid(1)


def test_dead_letters_come_in_pages_until_there_are_no_more(journal: Journal) -> None:
    looking = journal
    first = looking.dead_letters(EVERY, 0, 6)
    assert first.next is not None
    last = looking.dead_letters(EVERY, first.next, 6)

    assert [letter.id for page in (first, last) for letter in page.dead_letters] == list(range(1, 11))
    assert last.next is None


@pytest.mark.parametrize(
    ("query", "count"),
    [
        (DeadLetterQuery(sink="alerts"), 10),
        (DeadLetterQuery(sink="audit"), 0),
        (DeadLetterQuery(reason="too_old"), 0),
        (DeadLetterQuery(since=datetime.fromtimestamp(DIED, UTC)), 10),
        (DeadLetterQuery(since=datetime.fromtimestamp(DIED + 1, UTC)), 0),
        (DeadLetterQuery(uuid=uuid(3), type="container"), 1),
        (DeadLetterQuery(type="node"), 0),
    ],
)
def test_a_query_arrives_at_the_journal(journal: Journal, query: DeadLetterQuery, count: int) -> None:
    assert len(journal.dead_letters(query, 0, 100).dead_letters) == count


def test_a_replay_fills_half_of_the_retry_queue_at_most(journal: Journal) -> None:
    journal.add_sink("alerts", "latest", max_pending=8)
    done = journal.replay("alerts", range(1, 11))

    assert (done.taken, done.replayed, done.retrying, done.room) == (4, 4, 4, 4)
    assert journal.counters().sinks["alerts"].retrying == 4

    again = journal.replay("alerts", range(5, 11))

    assert (again.taken, again.replayed, again.retrying) == (0, 0, 4)


def test_there_is_room_for_one_where_there_is_little(journal: Journal) -> None:
    journal.add_sink("alerts", "latest", max_pending=1)

    assert journal.replay("alerts", [1, 2]).taken == 1


def test_a_replay_that_is_repeated_sends_nothing_twice(journal: Journal) -> None:
    both = [journal.replay("alerts", [1, 2, 3]) for _ in range(2)]

    assert [(done.taken, done.replayed, done.retrying) for done in both] == [(3, 3, 3), (3, 0, 3)]


def test_what_was_replayed_is_due_at_once_in_the_order_of_the_journal(journal: Journal) -> None:
    journal.replay("alerts", [3, 1, 2])

    assert [retry.seq for retry in due_retries(journal, "alerts", time.time(), time.time() + 1200.0, 10, 1 << 20)] == [1, 2, 3]


def test_a_sink_that_is_not_configured_gets_nothing(journal: Journal) -> None:
    with pytest.raises(UnknownSinkError, match="no sink other is configured"):
        journal.replay("other", [1])


def test_a_sink_that_left_a_running_bridge_gets_nothing_and_no_cursor_that_nobody_moves(journal: Journal) -> None:
    journal.forget_sinks_except({"audit"})

    with pytest.raises(UnknownSinkError, match="no sink alerts is configured"):
        journal.replay("alerts", [1])
    assert journal.counters().sinks.keys() == {"audit"}


def test_dropped_ones_are_gone_and_counted_once(journal: Journal) -> None:
    assert [journal.discard([1, 2, 99]) for _ in range(2)] == [2, 0]
    assert len(journal.dead_letters(EVERY, 0, 100).dead_letters) == 8


def test_malformed_messages_come_with_their_bytes(journal: Journal) -> None:
    page = journal.quarantine(0, 10)

    (frame,) = page.quarantine
    assert (frame.stream, frame.reason, frame.received, frame.frame) == ("acme", "not_json", RECEIVED, b"\xff\x00")
    assert journal.quarantine(frame.id, 10).next is None


def test_stored_events_are_told_as_they_are(journal: Journal) -> None:
    looking = journal
    page = looking.events(3, 4)

    assert ([each.seq for each in page.events], page.upto, page.damaged) == ([4, 5, 6, 7], 7, 0)
    assert [bytes(each.event) for each in page.events] == [each.json for each in EVENTS[3:7]]
    assert {each.received for each in page.events} == {RECEIVED}
    assert (looking.extent().first, looking.extent().next) == (1, 11)
    assert (looking.extent().bytes or 0) > 0


def test_a_sound_journal_is_verified(journal: Journal) -> None:
    looking = journal
    page = looking.verify(0, 10)

    assert (page.upto, page.events, page.damaged) == (10, 10, [])
    assert looking.check() is None


def test_pruning_tells_what_became_free(path: Path) -> None:
    with opened(path) as journal:
        for number in range(1, 300, 2):
            append(journal, [event(number), event(number + 1)])
        assert journal.prune_all() > 0
        assert journal.prune_all() == 0


def test_what_is_wrong_with_the_journal_is_told_like_everything_else(path: Path) -> None:
    with opened(path) as journal:
        append(journal, EVENTS)
    with closing(JournalReader(path)) as reader:
        path.write_bytes(b"")
        path.unlink()
        with pytest.raises(JournalError, match=r"journal\.db"):
            reader.check()


def test_a_bridge_that_stops_says_so(journal: Journal) -> None:
    journal.close()

    with pytest.raises(Closed):
        journal.extent()


def test_a_damaged_dead_letter_says_nothing_but_that_and_can_only_be_dropped(path: Path) -> None:
    with opened(path, "alerts") as journal:
        append(journal, EVENTS)
        bury(journal, "alerts", 1, EVENTS)
    damage(path, "UPDATE dead_letters SET died = 1e300, json = X'00' WHERE id = 2")

    with opened(path, "alerts") as journal:
        letter = journal.dead_letters(EVERY, 1, 1).dead_letters[0]

        assert (letter.id, letter.damaged, letter.died, bytes(letter.event)) == (2, True, None, b"null")
        assert journal.replay("alerts", [2]).replayed == 0
        assert journal.discard([2]) == 1


def test_what_waits_is_told_of_the_file_alone(path: Path) -> None:
    with opened(path, "alerts", "audit", "idle") as journal:
        append(journal, EVENTS)
        bury(journal, "alerts", 1, EVENTS[:4])
        journal.replay("alerts", [1, 2])
        bury(journal, "idle", 1, EVENTS)
    with closing(JournalReader(path)) as reader:
        waiting = reader.backlog()

    age = datetime.now(UTC).timestamp() - RECEIVED.timestamp()
    assert {name: sink.lag_seconds for name, sink in waiting.items()} == {
        "alerts": pytest.approx(age, abs=60),
        "audit": pytest.approx(age, abs=60),
        "idle": 0.0,
    }
    assert waiting["audit"] == SinkBacklog(10, 0, 10, 0, 0, lag_seconds=waiting["audit"].lag_seconds)
    assert waiting["alerts"] == SinkBacklog(10, 0, 8, 2, 2, lag_seconds=waiting["alerts"].lag_seconds)


def test_what_waits_is_told_of_an_open_journal_too(journal: Journal) -> None:
    waiting = journal.backlog()

    assert (waiting["alerts"].pending, waiting["audit"].pending) == (0, 10)
    assert waiting["audit"].lag_seconds != 0.0
