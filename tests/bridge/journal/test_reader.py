"""Looking into a journal's file: one's own, a running one's, one that was left behind, and damaged ones."""

import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from bridge.event import Event, Malformed
from bridge.journal import (
    Batch,
    DeadLetter,
    DeadLetterQuery,
    Journal,
    JournalError,
    JournalReader,
    JournalSettings,
    Retry,
    Settlement,
    StoredDeadLetter,
    queues,
)
from bridge.journal.pages import time_of
from bridge.journal.schema import SCHEMA_VERSION
from tests.support.journal_work import read

NOW = 1000.0


def json(number: int, size: int = 0) -> bytes:
    kind = "service" if number % 2 else "node"
    return (
        b'{"type":"%s","action":"update","state":"Running","resource_uri":"/r/%d/","parents":["%s"],"uuid":"u-%d",'
        b'"datetime":"2016-02-01T16:47:28Z","namespace":"acme","received_at":"2016-02-01T16:47:28Z"}'
    ) % (kind.encode(), number, b"x" * size, number)


def fill(journal: Journal, events: int, size: int = 0, *, first: int = 1) -> None:
    """Events in rows of three; the first sink has got none, of the second some are dead or wait."""
    for start in range(first, first + events, 3):
        numbers = range(start, min(start + 3, first + events))
        found = [Event(number.to_bytes(16, "big"), json(number, size)) for number in numbers]
        journal.append(Batch("s", NOW, found, [Malformed("not_json", b"{")]))
    while entries := read(journal, "b", 100, 1 << 20, 0.0):
        retries = [Retry(e.seq, e.received, e.json, "x", 1, NOW, NOW, "timeout", "") for e in entries[::5]]
        dead = [
            DeadLetter(e.seq, e.received, e.json, "x", 1, NOW, NOW + e.seq, "rejected" if e.seq % 3 else "too_old", "no")
            for e in entries[1::5]
        ]
        delivered = len(entries) - len(retries) - len(dead)
        end = entries[-1].seq + 1
        journal.settle("b", Settlement(entries[0].seq, end, delivered=delivered, retries=retries, dead=dead))


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with closing(Journal(JournalSettings(path=path, durability="normal"), clock=lambda: NOW)) as opened:
        opened.add_sink("a", "earliest")
        opened.add_sink("b", "earliest")
        yield opened


def dead_ids(look: Journal | JournalReader, query: DeadLetterQuery, limit: int = 1000) -> list[int | None]:
    """All pages, to the end."""
    after: int | None = 0
    ids = []
    while after is not None:
        page = look.dead_letters(query, after, limit)
        assert len(page.dead_letters) <= limit
        ids += [id_to_seq(stored) for stored in page.dead_letters]
        after = page.next
    return ids


def id_to_seq(stored: StoredDeadLetter) -> int | None:
    """The sequence number; of a damaged dead letter, that of `fill`."""
    return 5 * stored.id - 3 if stored.damaged else stored.seq


def exported(look: Journal | JournalReader, limit: int = 50, max_bytes: int = 1 << 20) -> tuple[dict[int, bytes], int]:
    """All pages of events, to the end; and how many are damaged."""
    after, damaged = 0, 0
    events: dict[int, bytes] = {}
    while (page := look.events(after, limit, max_bytes)).upto > after:
        assert len(page.events) <= limit
        assert all(after < entry.seq <= page.upto for entry in page.events)
        assert [entry.seq for entry in page.events] == sorted({entry.seq for entry in page.events})
        events |= {entry.seq: bytes(entry.event) for entry in page.events}
        after, damaged = page.upto, damaged + page.damaged
    assert not page.events
    return events, damaged


def verified(look: Journal | JournalReader, rows: int = 7) -> tuple[int, int]:
    """All pages of a check: how many events are sound, how many are not."""
    after, sound, damaged = 0, 0, 0
    while (page := look.verify(after, rows)).upto > after:
        sound, damaged = sound + page.events, damaged + sum(count for _, count in page.damaged)
        after = page.upto
    return sound, damaged


def test_a_running_journal_tells_the_same_from_inside_and_outside(journal: Journal, path: Path) -> None:
    fill(journal, 40)
    with closing(JournalReader(path)) as outside:
        for look in (journal, outside):
            assert (look.extent().first, look.extent().next) == (1, 41)
            assert exported(look) == ({number: json(number) for number in range(1, 41)}, 0)
            assert verified(look) == (40, 0)
            assert look.check() is None
            assert dead_ids(look, DeadLetterQuery(), 3) == list(range(2, 41, 5))
            assert [one.id for one in look.quarantine(after=12).quarantine] == [13, 14]
            assert [one.id for one in look.quarantine(limit=2).quarantine] == [1, 2]
            counters = look.counters()
            assert (counters.sinks, counters.streams) == (journal.counters().sinks, journal.counters().streams)
        fill(journal, 3, first=41)
        assert outside.extent().next == 44, "it sees what is written meanwhile"
        assert journal.counters().bytes == outside.counters().bytes


@pytest.mark.parametrize(
    ("query", "seqs"),
    [
        (DeadLetterQuery(), [2, 7, 12, 17]),
        (DeadLetterQuery(sink="b"), [2, 7, 12, 17]),
        (DeadLetterQuery(sink="a"), []),
        (DeadLetterQuery(reason="too_old"), [12]),
        (DeadLetterQuery(since=time_of(NOW + 12)), [12, 17]),
        (DeadLetterQuery(type="service"), [7, 17]),
        (DeadLetterQuery(uuid="u-7"), [7]),
        (DeadLetterQuery(uuid="u-7", type="node"), []),
        (DeadLetterQuery(sink="b", reason="rejected", since=time_of(NOW + 3), type="service"), [7, 17]),
    ],
)
def test_dead_letters_are_found_by_all_that_is_asked(journal: Journal, query: DeadLetterQuery, seqs: list[int]) -> None:
    fill(journal, 20)
    journal.forget_sinks_except({"a"})
    assert dead_ids(journal, query) == dead_ids(journal, query, limit=1) == seqs


def test_a_page_looks_at_so_many_and_one_can_go_on_after_an_empty_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(journal, 20)
    monkeypatch.setattr(queues, "_MAX_LOOKED_AT", 2)
    page = journal.dead_letters(DeadLetterQuery(uuid="u-17"))
    assert (page.dead_letters, page.next) == ([], 2)
    assert [one.seq for one in journal.dead_letters(DeadLetterQuery(uuid="u-17"), 2).dead_letters] == [17]
    assert dead_ids(journal, DeadLetterQuery(uuid="u-17")) == [17]


def test_a_page_is_no_larger_than_its_bytes_but_has_one_letter(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(journal, 20)
    monkeypatch.setattr(queues, "_PAGE_BYTES", 2 * len(json(12)))
    assert len(journal.dead_letters(DeadLetterQuery()).dead_letters) == 2
    monkeypatch.setattr(queues, "_PAGE_BYTES", 1)
    assert len(journal.dead_letters(DeadLetterQuery()).dead_letters) == 1
    assert dead_ids(journal, DeadLetterQuery()) == [2, 7, 12, 17]


def test_a_damaged_letter_is_found_by_what_is_not_in_the_event(journal: Journal, path: Path) -> None:
    fill(journal, 20)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE dead_letters SET json = replace(json, 'node', 'nude') WHERE id = 1")
        db.execute("UPDATE dead_letters SET json = x'ff00' WHERE id = 2")
    assert dead_ids(journal, DeadLetterQuery(sink="b")) == [2, 7, 12, 17]
    assert dead_ids(journal, DeadLetterQuery(uuid="u-2")) == dead_ids(journal, DeadLetterQuery(uuid="u-7")) == []


def test_pages_of_events_keep_to_their_limits(journal: Journal) -> None:
    fill(journal, 20)
    one = len(json(1))
    assert [entry.seq for entry in journal.events(4, 3, 1 << 20).events] == [5, 6, 7]
    assert [entry.seq for entry in journal.events(4, 100, 2 * one).events] == [5, 6]
    assert [entry.seq for entry in journal.events(4, 100, 1).events] == [5]
    for limit in (1, 2, 3, 4, 100):
        assert exported(journal, limit) == ({number: json(number) for number in range(1, 21)}, 0)


def test_pruned_places_are_not_there(journal: Journal) -> None:
    fill(journal, 20)
    journal.settle("a", Settlement(1, 11, delivered=10))
    journal.prune()
    assert (journal.extent().first, journal.extent().next) == (10, 21)
    assert exported(journal) == ({number: json(number) for number in range(10, 21)}, 0)


@pytest.mark.parametrize("place", [-(10**30), -1, 20, 10**30])
def test_any_place_may_be_asked_for(journal: Journal, place: int) -> None:
    fill(journal, 20)
    events = [entry.seq for entry in journal.events(place, 1, 1000).events]
    assert events == ([1] if place < 0 else [])
    assert journal.verify(place, 1).events == (3 if place < 0 else 0)
    journal.dead_letters(DeadLetterQuery(), place)
    journal.quarantine(place)
    assert journal.discard([place]) == 0


def left_behind(path: Path, to: Path) -> Path:
    """What a killed process leaves."""
    to.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", to / f"left.db{suffix}")
    return to / "left.db"


def test_what_a_killed_process_left_is_read_with_its_log(journal: Journal, path: Path, tmp_path: Path) -> None:
    fill(journal, 40)
    left = left_behind(path, tmp_path / "left")
    before = {file.name: file.read_bytes() for file in left.parent.iterdir()}
    with closing(JournalReader(left)) as look:
        assert exported(look) == ({number: json(number) for number in range(1, 41)}, 0)
        assert look.counters().sinks == journal.counters().sinks
    after = {file.name: file.read_bytes() for file in left.parent.iterdir() if not file.name.endswith("-shm")}
    assert after == before


def test_a_closed_journal_is_read_without_a_trace(journal: Journal, path: Path) -> None:
    fill(journal, 40)
    journal.close()
    before = sorted(path.parent.iterdir())
    path.chmod(0o444)
    with closing(JournalReader(path)) as look:
        assert verified(look) == (40, 0)
        assert look.check() is None
    assert sorted(path.parent.iterdir()) == before


def test_what_is_no_journal_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"none.db: no such file"):
        JournalReader(tmp_path / "none.db")
    with pytest.raises(JournalError, match="no such file"):
        JournalReader(tmp_path)
    (tmp_path / "text.db").write_text("no journal" * 1000)
    with pytest.raises(JournalError, match=r"text.db: file is not a database; not a journal"):
        JournalReader(tmp_path / "text.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(JournalError, match=r"empty.db: not a journal"):
        JournalReader(tmp_path / "empty.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as db, db:
        db.execute("CREATE TABLE batches (x)")
    with pytest.raises(JournalError, match=r"other.db: not a journal"):
        JournalReader(tmp_path / "other.db")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["empty.db", "other.db", "text.db"]


def test_a_newer_format_is_refused(journal: Journal, path: Path) -> None:
    journal.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    with pytest.raises(JournalError, match="newer event-bridge"):
        JournalReader(path)


def test_a_check_that_is_not_wanted_any_more_ends(journal: Journal, path: Path) -> None:
    fill(journal, 1000, 20_000)
    with closing(JournalReader(path)) as look, ThreadPoolExecutor(1) as pool:
        look.interrupt()

        def interrupted() -> bool:
            """Check, and interrupt all the time; the check may be through before this thread gets a turn."""
            checking = pool.submit(look.check)
            while not checking.done():
                look.interrupt()
            return "interrupted" in str(checking.exception())

        assert any(interrupted() for _ in range(100))
        assert look.check() is None


def test_a_check_tells_what_is_wrong(journal: Journal, path: Path) -> None:
    fill(journal, 300, 100)
    journal.close()
    os.truncate(path, path.stat().st_size // 2)
    with closing(JournalReader(path)) as look:
        assert look.check()
        events, damaged = exported(look)
    assert len(events) + damaged == 300
    assert len(events) > 50, "the first half of them"
    assert all(event == json(number, 100) for number, event in events.items())


# Damage


def every_way_to_look(path: Path, sent: dict[int, bytes]) -> tuple[int, int]:
    """Look at all of a damaged file; nothing but a `JournalError` may be raised, and no event be wrong."""
    read = damaged = 0
    with suppress(JournalError), closing(JournalReader(path)) as look:
        uses: list[Callable[[], object]] = [look.extent, look.check, look.counters, look.quarantine]
        for use in uses:
            with suppress(JournalError):
                use()
        with suppress(JournalError):
            letters = look.dead_letters(DeadLetterQuery()).dead_letters
            assert all(one.damaged or (one.seq and bytes(one.event) == sent[one.seq]) for one in letters)
        with suppress(JournalError):
            events, damaged = exported(look, 1000)
            assert set(events.values()) <= set(sent.values())
            assert verified(look, 1000) == (len(events), damaged)
            read = len(events)
    return read, damaged


def test_whatever_is_damaged_looking_ends_and_shows_no_wrong_event(journal: Journal, path: Path) -> None:
    chance = random.Random(4)
    fill(journal, 300, 60)
    journal.close()
    good, sent = path.read_bytes(), {number: json(number, 60) for number in range(1, 301)}
    assert every_way_to_look(path, sent) == (300, 0)
    most = 0
    for _ in range(400):
        content = bytearray(good)
        kind = chance.randrange(3)
        at = chance.randrange(100, len(good))
        if kind == 0:
            for _ in range(chance.randrange(1, 20)):
                content[chance.randrange(100, len(good))] ^= 1 << chance.randrange(8)
        elif kind == 1:
            content[at : at + chance.choice((4, 200, 8192))] = b""
            content += bytes(len(good) - len(content))
        else:
            page = at // 4096 * 4096
            content[page : page + 4096] = chance.randbytes(4096)
        path.write_bytes(content)
        most += every_way_to_look(path, sent)[0] > 100
    assert most > 100, "mostly, much can be read"


def test_a_lost_page_costs_what_was_in_it(journal: Journal, path: Path) -> None:
    """Each page of the file in turn; a leaf of the events costs some of them, all others come."""
    fill(journal, 300, 60)
    journal.close()
    good, sent = path.read_bytes(), {number: json(number, 60) for number in range(1, 301)}
    with closing(sqlite3.connect(path)) as db:
        leaves = [page for (page,) in db.execute("SELECT pageno FROM dbstat WHERE name = 'batches' AND pagetype = 'leaf'")]
    assert len(leaves) > 5
    for page in leaves:
        content = bytearray(good)
        content[(page - 1) * 4096 : page * 4096] = b"\xa5" * 4096
        path.write_bytes(content)
        read, damaged = every_way_to_look(path, sent)
        assert read + damaged == 300
        assert 0 < damaged <= 20
