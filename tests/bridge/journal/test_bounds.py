"""Bounds of the journal, pushed against from outside: what grows it waits, what frees it does not, and the files stay small."""

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bridge.field_types import Bytes
from bridge.journal import DeadLetter, DeadLetterQuery, Journal, Limits, Retry, Settlement, appender
from bridge.journal.settings import DeadLetterSettings
from bridge.journal.writer import RESERVE
from bridge.sink import Entry
from tests.support import journal_work
from tests.support.journal_samples import assert_balanced, journal_settings
from tests.support.plain_events import batch
from tests.support.waiting import until

MEBIBYTE = 1 << 20
DEADLINE = 20.0
ALL = Limits(10_000, MEBIBYTE, 1000, 0.0)

Open = Callable[..., Journal]


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def open_journal(tmp_path: Path, thread: ThreadPoolExecutor) -> Iterator[Open]:
    opened: list[Journal] = []

    def open_(*sinks: str, path: Path = tmp_path / "journal.db", **options: Any) -> Journal:
        opened.append(Journal(journal_settings(path, durability="normal", **options)))
        for sink in sinks or ("a",):
            opened[-1].add_sink(sink, "earliest")
        return opened[-1]

    yield open_
    for journal in opened:
        journal.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A volume of 64 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def taken(path: Path) -> int:
    """Bytes of the journal's files."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def trouble(journal: Journal) -> str:
    return journal.counters().last_error or ""


def read(journal: Journal, sink: str = "a", limit: int = 10) -> list[Entry]:
    return journal_work.read(journal, sink, limit, 1 << 30, 0.0)


def rejected(entries: Sequence[Entry]) -> Settlement:
    dead = [DeadLetter(e.seq, e.received, e.json, "x", 1, 0.0, 0.0, "rejected", "no") for e in entries]
    return Settlement(entries[0].seq, entries[-1].seq + 1, dead=dead)


def put_off(entries: Sequence[Entry]) -> Settlement:
    retries = [Retry(e.seq, e.received, e.json, str(e.seq), 1, 1e12, 0.0, "timeout", "") for e in entries]
    return Settlement(entries[0].seq, entries[-1].seq + 1, retries=retries)


def stream(journal: Journal, numbers: range, size: int = 100_000) -> None:
    for number in numbers:
        journal.append(batch(number, size=size))


# Dead letters


def test_a_sink_with_too_many_dead_letters_gets_no_new_events_and_says_so_and_the_others_go_on(open_journal: Open) -> None:
    journal = open_journal("good", "bad", dead_letters=DeadLetterSettings(max_bytes=Bytes(200_000)))
    for number in range(30):
        journal.append(batch(number, size=10_000))
        for sink in ("good", "bad"):
            if entries := journal.next_work(sink, 0.0, ALL).entries:
                seq = entries[0].seq
                journal.settle(sink, rejected(entries) if sink == "bad" else Settlement(seq, seq + 1, delivered=1))
    assert journal.counters().sinks["good"].delivered == 30
    assert journal.counters().sinks["bad"].dead_letters == 10, "half of them all"
    assert journal.next_work("bad", 0.0, ALL, timeout=60.0).paused == "dead_letters_full"
    journal.discard([1, 2, 3])
    work = journal.next_work("bad", 0.0, ALL)
    assert (work.paused, len(work.entries)) == (None, 20)


def test_where_the_oldest_may_go_a_sink_loses_its_own_dead_letters(open_journal: Open) -> None:
    letters = DeadLetterSettings(max_bytes=Bytes(200_000))
    journal = open_journal("a", "b", when_full="drop_oldest", dead_letters=letters)
    for number in range(30):
        journal.append(batch(number, size=10_000))
        for sink in ("a", "b") if number < 5 else ("a",):
            journal.settle(sink, rejected(read(journal, sink)))
    counters = journal.counters().sinks
    assert 8 <= counters["a"].dead_letters <= 10
    assert counters["a"].discarded == 30 - counters["a"].dead_letters
    assert (counters["b"].dead_letters, counters["b"].discarded) == (5, 0)
    assert journal.dead_letters(DeadLetterQuery(sink="a")).dead_letters[-1].seq == 30, "the newest are there"
    assert_balanced(journal.counters())


def test_old_dead_letters_go_and_a_clock_that_was_set_forward_makes_none_old(tmp_path: Path) -> None:
    wall, passed = 1000.0, 0.0
    settings = journal_settings(tmp_path / "journal.db", dead_letters=DeadLetterSettings(max_age=3600.0))
    with closing(Journal(settings, clock=lambda: wall, monotonic=lambda: passed)) as journal:
        journal.add_sink("a", "earliest")
        journal.append(batch(1))
        (entry,) = read(journal)
        letter = DeadLetter(1, 0.0, entry.json, "x", 1, wall, wall, "rejected", "no")
        journal.settle("a", Settlement(1, 2, dead=[letter]))
        wall += 1e6
        journal.prune()
        assert journal.counters().sinks["a"].dead_letters == 1
        passed += 3601.0
        journal.prune()
        assert (journal.counters().sinks["a"].dead_letters, journal.counters().sinks["a"].discarded) == (0, 1)


@pytest.mark.parametrize("fail", [rejected, put_off])
def test_what_failed_never_makes_the_files_larger_than_max_bytes(
    open_journal: Open, tmp_path: Path, thread: ThreadPoolExecutor, fail: Callable[[Sequence[Entry]], Settlement]
) -> None:
    most = 64 * MEBIBYTE
    journal = open_journal("down", "bad", "worse", max_bytes=most, dead_letters=DeadLetterSettings(max_bytes=Bytes(1 << 40)))
    streaming = thread.submit(stream, journal, range(1000))

    def sink(name: str) -> None:
        while not streaming.done():
            if entries := journal.next_work(name, 0.0, ALL, timeout=0.05).entries:
                journal.settle(name, fail(entries))

    failing = [thread.submit(sink, name) for name in ("bad", "worse")]
    until(lambda: "full, journal.max_bytes is" in trouble(journal))
    until(lambda: taken(tmp_path / "journal.db") > most // 2)
    for _ in range(20):
        assert taken(tmp_path / "journal.db") <= most
        journal.prune()
    assert not streaming.done()

    def free() -> bool:
        """The sink that was down comes back, and an operator drops what failed."""
        while entries := read(journal, "down", 100):
            journal.settle("down", Settlement(entries[0].seq, entries[-1].seq + 1, delivered=len(entries)))
        journal.discard([letter.id for letter in journal.dead_letters(DeadLetterQuery()).dead_letters])
        for name in ("bad", "worse"):
            due = journal_work.due_retries(journal, name, 1e13, 1e13, 10_000, 1 << 30)
            if due:
                journal.settle(name, Settlement(delivered=len(due), resolved=[retry.seq for retry in due]))
        journal.prune()
        assert taken(tmp_path / "journal.db") <= most
        return streaming.done()

    until(free)
    for future in (streaming, *failing):
        future.result(DEADLINE)
    until(lambda: free() and trouble(journal) == "")
    assert_balanced(journal.counters())


# SQLite's log


def test_a_log_that_a_reader_pins_is_said_is_bounded_and_over_when_the_reader_ends(
    open_journal: Open, tmp_path: Path, thread: ThreadPoolExecutor
) -> None:
    path = tmp_path / "journal.db"
    journal = open_journal(max_bytes=16 * MEBIBYTE)
    journal.append(batch(0))
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchone()
        streaming = thread.submit(stream, journal, range(1, 101), 50_000)
        until(lambda: "a process that reads it (a backup, a sqlite3 shell)" in trouble(journal))
        assert taken(path) < 16 * MEBIBYTE
        assert not streaming.done()
        entries = read(journal, limit=1)
        journal.settle("a", Settlement(entries[0].seq, entries[0].seq + 1, delivered=1))
    streaming.result(DEADLINE)
    until(lambda: trouble(journal) == "")
    assert taken(path) < 16 * MEBIBYTE


def test_one_commit_has_a_bound_in_bytes(
    open_journal: Open, thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    save = appender.save_batches

    def noted(db: sqlite3.Connection, batches: Sequence[tuple[Any, int, dict[bytes, bytes]]], now: float) -> None:
        sizes.append(sum(len(json) for _, _, fresh in batches for json in fresh.values()))
        save(db, batches, now)

    monkeypatch.setattr(appender, "save_batches", noted)
    journal = open_journal(max_bytes=64 * MEBIBYTE)
    with journal._store.lock:
        waiting = [thread.submit(journal.append, batch(number, size=MEBIBYTE)) for number in range(7)]
        until(lambda: len(journal._appender.waiting) == 7)
    for future in waiting:
        future.result(DEADLINE)
    assert max(sizes) <= 2 * MEBIBYTE
    assert len(sizes) >= 4


# A disk that somebody else fills


def test_nothing_is_dropped_because_somebody_else_fills_the_disk(
    disk: Path, open_journal: Open, thread: ThreadPoolExecutor
) -> None:
    journal = open_journal(path=disk / "journal.db", when_full="drop_oldest")
    stream(journal, range(100))
    journal.settle("a", rejected(read(journal)))
    filler = disk / "filler"
    filler.write_bytes(bytes(30 * MEBIBYTE))
    waiting = thread.submit(journal.append, batch(100))
    until(lambda: f"the disk is full but for a reserve of {RESERVE >> 20} MiB" in trouble(journal))
    assert not waiting.done()
    filler.unlink()
    assert waiting.result(DEADLINE) == (1, 0)
    sink = journal.counters().sinks["a"]
    assert (sink.dropped, sink.discarded, sink.pending) == (0, 0, 91)


def test_a_small_disk_of_its_own_makes_room_by_dropping_the_oldest(disk: Path, open_journal: Open) -> None:
    path = disk / "journal.db"
    journal = open_journal(path=path, when_full="drop_oldest")
    stream(journal, range(1000))
    sink = journal.counters().sinks["a"]
    assert sink.dropped + sink.pending == 1000
    assert sink.pending > 200
    assert 64 * MEBIBYTE - taken(path) >= RESERVE - MEBIBYTE // 4


def test_what_is_kept_for_a_rewind_makes_room_for_what_failed(open_journal: Open, thread: ThreadPoolExecutor) -> None:
    letters = DeadLetterSettings(max_bytes=Bytes(1 << 40))
    journal = open_journal(max_bytes=16 * MEBIBYTE, retention=3600.0, dead_letters=letters)
    for number in range(130):
        journal.append(batch(number, received=time.time(), size=100_000))
    while entries := read(journal):
        last = entries[-1].seq >= 105
        seq = entries[0].seq
        settled = rejected(entries) if last else Settlement(seq, seq + len(entries), delivered=len(entries))
        # No stream asks for room meanwhile.
        thread.submit(journal.settle, "a", settled).result(DEADLINE)
        journal.prune()
    assert journal.counters().sinks["a"].dead_letters >= 21
    assert trouble(journal) == ""
