"""Looking into a running journal: nobody waits for it, and the end of the journal is the end of it."""

import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from bridge.event import Event
from bridge.journal import Batch, Closed, DeadLetterQuery, Journal, JournalError, JournalSettings, queues


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with closing(Journal(JournalSettings(path=path, durability="normal"))) as opened:
        yield opened


def append(journal: Journal, *numbers: int, size: int = 10) -> None:
    journal.append(Batch("s", 1.0, [Event(number.to_bytes(16, "big"), b"x" * size) for number in numbers], []))


def uses(journal: Journal) -> list[Callable[[], object]]:
    return [
        lambda: journal.dead_letters(DeadLetterQuery()),
        journal.quarantine,
        journal.extent,
        lambda: journal.events(0, 1, 1000),
        lambda: journal.verify(0, 1),
        journal.check,
    ]


def test_nobody_who_looks_waits_for_a_writer(journal: Journal, path: Path) -> None:
    append(journal, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        for use in uses(journal):
            use()
        writer.execute("ROLLBACK")


def test_a_look_that_fails_is_trouble_until_one_goes_well(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("the disk is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(queues, "dead_letters", fail)
        with pytest.raises(JournalError, match=r"journal.db: the disk is on fire"):
            journal.dead_letters(DeadLetterQuery())
        assert "the disk is on fire" in (journal.counters().last_error or "")
    assert journal.dead_letters(DeadLetterQuery()).dead_letters == []
    assert journal.counters().last_error is None


def test_after_the_end_every_look_says_so(journal: Journal) -> None:
    journal.close()
    for use in uses(journal):
        with pytest.raises(Closed):
            use()


def test_the_end_does_not_wait_for_a_check(journal: Journal) -> None:
    for number in range(300):
        append(journal, number, size=100_000)
    with ThreadPoolExecutor(1) as pool:
        checks = 0

        def check_for_ever() -> None:
            nonlocal checks
            while True:
                assert journal.check() is None
                checks += 1

        checking = pool.submit(check_for_ever)
        while not checks:
            assert not checking.done()
        journal.close()
        with pytest.raises(Closed):
            checking.result(20.0)
