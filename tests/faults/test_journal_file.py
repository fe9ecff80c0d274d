"""The file of a journal has what its owner reports; counters that do not add up are noticed."""

from pathlib import Path
from typing import Any

import pytest

from bridge.event import Event, Malformed
from bridge.journal import Batch, DeadLetter, Journal, JournalSettings, Retry, Settlement
from tests.faults import journal_file
from tests.faults.journal_file import Look, counts, look, problems
from tests.support.journal_work import read

_BOOKED = ("cursor", "delivered", "filtered", "dead", "dropped", "replayed", "discarded", "rewound", "dead_letters", "retrying")


def uuid(number: int) -> str:
    return f"00000000-0000-0000-0000-{number:012x}"


def events(*numbers: int) -> list[Event]:
    return [Event(n.to_bytes(16, "big"), b'{"uuid":"%b"}' % uuid(n).encode()) for n in numbers]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal as a process leaves it that dies now: two batches, of which a sink has settled the first."""
    path = tmp_path / "journal.db"
    journal = Journal(JournalSettings(path=path))
    journal.add_sink("out", "latest")
    journal.append(Batch("acme", 1.0, events(1, 2, 3), [Malformed("not_json", b"x")]))
    journal.append(Batch("acme", 2.0, events(3, 4), []))
    (first, second, _, _) = read(journal, "out", 10, 1000, 0)
    retry = Retry(second.seq, 1.0, second.json, "lane", 1, 5.0, 1.0, "timeout", "…")
    letter = DeadLetter(first.seq, 1.0, first.json, "lane", 1, 1.0, 2.0, "rejected", "…")
    journal.settle("out", Settlement(first_seq=1, next_seq=4, delivered=1, retries=[retry], dead=[letter]))
    return path  # The journal is still open, so that all of it is in the log and not in the database.


def test_everything_is_read_at_one_instant_and_balances(path: Path) -> None:
    found = look(path, 0)

    assert (found.next_seq, found.first, found.uuids) == (5, 1, [uuid(n) for n in (1, 2, 3, 4)])
    assert found.streams == {"acme": {"received": 6, "accepted": 4, "duplicate": 1, "malformed": 1}}
    assert found.sinks["out"]["cursor"] == 4
    assert (found.retrying, found.dead) == ({"out": {2}}, {"out": {uuid(1)}})
    assert problems(found) == []


def test_what_was_seen_before_is_not_read_again(path: Path) -> None:
    assert look(path, 3)[1:3] == (4, [uuid(4)])
    assert look(path, 4)[1:3] == (5, [])


@pytest.mark.parametrize(
    "change",
    [
        {"streams": {"acme": {"received": 7, "accepted": 4, "duplicate": 1, "malformed": 1}}},
        {"next_seq": 6},
        *[{"sinks": {"out": {what: 1}}} for what in _BOOKED],
    ],
)
def test_books_that_do_not_balance_are_noticed(path: Path, change: dict[str, Any]) -> None:
    found = look(path, 0)
    if "sinks" in change:
        changed = {what: found.sinks["out"][what] + more for what, more in change["sinks"]["out"].items()}
        change = {"sinks": {"out": found.sinks["out"] | changed}}

    assert problems(found._replace(**change))


def test_counts_that_never_go_back_are_those_that_were_ever(path: Path) -> None:
    found = counts(look(path, 0))

    assert found["sinks", "out", "delivered"] == 1
    assert found["streams", "acme", "accepted"] == 4
    assert ("sinks", "out", "retrying") not in found
    assert problems(journal_file.NOTHING) == []
    assert isinstance(journal_file.NOTHING, Look)
