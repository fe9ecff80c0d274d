"""The journal in trouble: full, on a failing disk, or damaged. It waits, says so, goes on, and its books balance.

A disk that fails is had without one: triggers and renamed tables, made by a second connection, let chosen statements fail in
SQLite itself; a limit on the size of files lets the operating system refuse to write.
"""

import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.journal import Appended, DeadLetter, Journal, JournalError, Retry, Settlement, pruning, writer
from bridge.journal import journal as journal_module
from bridge.sink import Entry
from tests.support import journal_work
from tests.support.journal_samples import assert_balanced, journal_settings
from tests.support.plain_events import batch, numbers
from tests.support.waiting import until

Open = Callable[..., Journal]
DEADLINE = 20.0


def read(journal: Journal, sink: str = "a", *, limit: int = 10_000) -> list[Entry]:
    return journal_work.read(journal, sink, limit, 1 << 30, 0.0)


def delivered(entries: Sequence[Entry]) -> Settlement:
    return Settlement(entries[0].seq, entries[-1].seq + 1, delivered=len(entries))


def trouble(journal: Journal) -> str:
    return journal.counters().last_error or ""


@pytest.fixture
def thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def open_journal(path: Path, thread: ThreadPoolExecutor) -> Iterator[Open]:
    opened: list[Journal] = []

    def open_(sinks: Sequence[str] = ("a",), **options: Any) -> Journal:
        if opened:
            opened[-1].close()
        journal = Journal(journal_settings(path, durability="normal", **options), clock=lambda: 200.0)
        opened.append(journal)
        for sink in sinks:
            journal.add_sink(sink, "latest")
        return journal

    yield open_
    for journal in opened:
        journal.close()


@contextmanager
def other_connection(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


@contextmanager
def failing(path: Path, when: str) -> Iterator[None]:
    """While this lasts, SQLite refuses some statements: `when` is like "INSERT ON seen"."""
    with other_connection(path) as db:
        db.execute(f"CREATE TRIGGER failing BEFORE {when} BEGIN SELECT RAISE(FAIL, 'the disk is on fire'); END")
        yield
        db.execute("DROP TRIGGER failing")


def fill(journal: Journal, first: int = 1, *, size: int = 1000) -> int:
    """Append one event at a time until the journal is full; return the number after the last."""
    store = journal._store
    while store.used < store.limit() * 15 // 16:
        journal.append(batch(first, size=size))
        first += 1
    return first


# Full


def test_a_full_journal_takes_nothing_until_the_sink_that_is_behind_has_moved(
    open_journal: Open, thread: ThreadPoolExecutor
) -> None:
    journal = open_journal(sinks=["a", "b"], max_bytes=200_000)
    following = fill(journal)
    journal.settle("a", delivered(read(journal)))
    with capture_logs() as logs:
        waiting = thread.submit(journal.append, batch(following))
        until(lambda: "full, journal.max_bytes is 200000; a sink is behind" in trouble(journal))
        assert not waiting.done()
        journal.settle("b", delivered(read(journal, "b", limit=following // 2)))
        assert waiting.result(DEADLINE) == (1, 0)
    assert trouble(journal) == ""
    assert [entry["log_level"] for entry in logs] == ["error", "info"], "once each, however often it was tried"
    assert numbers(read(journal)) == [following]
    assert numbers(read(journal, "b")) == list(range(following // 2 + 1, following + 1))
    assert_balanced(journal.counters())


def test_a_sink_that_is_a_little_too_slow_does_not_fill_the_log(
    open_journal: Open, thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(pruning, "_ENOUGH_SHARE", 4)
    journal = open_journal(max_bytes=244_000)
    following = fill(journal)

    def stream() -> None:
        for number in range(following, following + 200):
            journal.append(batch(number, size=1000))

    with capture_logs() as logs:
        streaming = thread.submit(stream)
        while not streaming.done():
            if trouble(journal) and (entries := read(journal, limit=1)):
                journal.settle("a", delivered(entries))
    streaming.result()
    assert 2 <= len(logs) < 50


def test_outcomes_find_room_on_a_full_disk_because_events_leave_some(
    open_journal: Open, path: Path, thread: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = 100 << 20
    monkeypatch.setattr(writer, "disk_space", lambda _: writer.DiskSpace(1 << 40, available))
    journal = open_journal()
    journal.append(batch(1))
    available = 56 << 20
    waiting = thread.submit(journal.append, batch(2))
    until(lambda: trouble(journal).startswith(f"{path}: the disk is full but for a reserve of 32 MiB"))
    journal.settle("a", delivered(read(journal)))
    assert journal.counters().sinks["a"].delivered == 1
    assert not waiting.done()
    available = 82 << 20
    assert waiting.result(DEADLINE) == (1, 0)
    assert trouble(journal) == ""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_disk_too_small_for_the_journal_is_used_again_when_events_are_delivered(
    small_disk: Path, thread: ThreadPoolExecutor
) -> None:
    with closing(Journal(journal_settings(small_disk / "journal.db"))) as journal:
        journal.add_sink("a", "earliest")
        streaming = thread.submit(lambda: [journal.append(batch(number, size=500_000)) for number in range(100)])
        seen: list[int] = []
        times_full = 0
        while len(seen) < 100:
            until(lambda: bool(trouble(journal)) or streaming.done())
            times_full += bool(trouble(journal))
            while entries := read(journal, limit=5):
                journal.settle("a", delivered(entries))
                seen += numbers(entries)
            journal.prune()
        assert streaming.result(DEADLINE) == [(1, 0)] * 100
    assert seen == list(range(100))
    assert times_full


def test_uuids_alone_never_fill_the_journal(open_journal: Open) -> None:
    with capture_logs() as logs:
        journal = open_journal(max_bytes=200_000)
    assert [(entry["wanted"], entry["remembered"]) for entry in logs] == [(1_000_000, 175_000 // 160)]
    for number in range(0, 13_000, 10):
        assert journal.append(batch(*range(number, number + 10))) == (10, 0), "it would wait for ever"
        journal.settle("a", Settlement(number + 1, number + 11, delivered=10))
    assert journal.append(batch(*range(12_500, 13_000))) == (0, 500)


def test_uuids_of_long_ago_never_fill_the_journal(path: Path) -> None:
    def open_at(now: float, max_bytes: int) -> Journal:
        return Journal(journal_settings(path, max_bytes=max_bytes, durability="normal"), clock=lambda: now)

    with closing(open_at(200.0, 1 << 30)) as journal:
        for number in range(8_000):
            journal.append(batch(number))
        used = journal.counters().bytes
    with closing(open_at(200_000.0, used // 2)) as journal:
        assert journal.append(batch(1)) == (1, 0)


@pytest.mark.parametrize("quiet", [0.0, 10.0])
def test_drop_oldest_makes_room_and_counts_what_it_drops(
    open_journal: Open, monkeypatch: pytest.MonkeyPatch, quiet: float
) -> None:
    monkeypatch.setattr("bridge.policy.Summary._FIRST_SECONDS", quiet)
    journal = open_journal(sinks=["fast", "slow"], max_bytes=200_000, when_full="drop_oldest")
    with capture_logs() as logs:
        for number in range(1, 501):
            journal.append(batch(number, size=1000))
            journal.settle("fast", delivered(read(journal, "fast")))
            assert_balanced(journal.counters())
    assert trouble(journal) == ""
    assert journal.counters().bytes <= 200_000
    fast, slow = journal.counters().sinks["fast"], journal.counters().sinks["slow"]
    assert (fast.delivered, fast.dropped) == (500, 0)
    assert 300 < slow.dropped < 450
    assert numbers(read(journal, "slow")) == list(range(slow.dropped + 1, 501))
    told = [entry["events"]["slow"] for entry in logs]
    if quiet:
        assert len(told) <= 2, "once, and not with every change of the count"
    else:
        assert sum(told) == slow.dropped
        assert len(logs) < 100, "not for every event"


def test_what_was_dropped_on_its_way_counts_as_what_became_of_it(open_journal: Open) -> None:
    journal = open_journal(max_bytes=200_000, when_full="drop_oldest")
    following = fill(journal)
    read(journal, limit=50)
    journal.append(batch(following))
    sink = journal.counters().sinks["a"]
    assert sink.dropped == 0, "all that had to go is on its way"
    failed = [Retry(seq, 0.0, b"event", "x", 1, 0.0, 0.0, "timeout", "") for seq in (49, 50)]
    journal.settle("a", Settlement(1, 51, delivered=48, retries=failed))
    sink = journal.counters().sinks["a"]
    assert (sink.delivered, sink.dropped, sink.retrying) == (48, 0, 2)
    assert numbers(read(journal))[0] == 51
    assert_balanced(journal.counters())


def test_what_was_dropped_on_its_way_and_not_delivered_counts_as_dropped(open_journal: Open) -> None:
    journal = open_journal(sinks=["a", "b"], max_bytes=200_000, when_full="drop_oldest")
    following = fill(journal)
    read(journal, limit=2)
    journal.append(batch(following))
    dropped = journal.counters().sinks["b"].dropped
    sink = journal.counters().sinks["a"]
    assert (sink.dropped, sink.pending) == (dropped - 2, following - dropped + 2)
    assert numbers(read(journal))[0] == dropped + 1
    assert journal.counters().sinks["a"].dropped == dropped
    assert_balanced(journal.counters())


def test_what_was_dropped_between_read_and_read_is_no_damage(open_journal: Open) -> None:
    journal = open_journal(sinks=["a", "b"], max_bytes=200_000, when_full="drop_oldest")
    following = fill(journal)
    journal.append(batch(following))
    with capture_logs() as logs:
        entries = read(journal, "b")
    assert logs == []
    assert numbers(entries)[0] == journal.counters().sinks["b"].dropped + 1


# A disk that fails


def test_a_commit_that_fails_leaves_no_trace_and_is_made_later(
    open_journal: Open, path: Path, thread: ThreadPoolExecutor
) -> None:
    journal = open_journal()
    journal.append(batch(1))
    before = journal.counters()
    with failing(path, "INSERT ON seen WHEN NEW.first > 2"), capture_logs() as logs:
        waiting = []
        with journal._store.lock:
            for numbers_waiting in ((2,), (1, 3)):
                waiting.append(thread.submit(journal.append, batch(*numbers_waiting)))
                until(lambda: len(journal._appender.waiting) == len(waiting))
        until(lambda: trouble(journal) == f"{path}: the disk is on fire")
        assert not any(future.done() for future in waiting)
        counters = journal.counters()
        assert (counters.streams, counters.sinks) == (before.streams, before.sinks)
        with other_connection(path) as db:
            assert db.execute("SELECT count(*), (SELECT next_seq FROM meta) FROM seen").fetchone() == (1, 2)
    assert [future.result(DEADLINE) for future in waiting] == [Appended(1, 0), Appended(1, 1)]
    until(lambda: trouble(journal) == "")
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert numbers(read(journal)) == [1, 2, 3]
    assert numbers(read(open_journal())) == [1, 2, 3]


def test_an_outcome_that_can_not_be_recorded_waits_and_is_recorded_once(
    open_journal: Open, path: Path, thread: ThreadPoolExecutor
) -> None:
    journal = open_journal()
    journal.append(batch(1, 2, 3, 4))
    before = journal.counters()
    outcome = Settlement(
        first_seq=1,
        next_seq=4,
        delivered=1,
        retries=[Retry(2, 100.0, b"event 2", "x", 1, 0.0, 100.0, "timeout", "")],
        dead=[DeadLetter(3, 100.0, b"event 3", "x", 1, 100.0, 100.0, "rejected", "")],
    )
    with failing(path, "INSERT ON dead_letters"):
        waiting = thread.submit(journal.settle, "a", outcome)
        until(lambda: "the disk is on fire" in trouble(journal))
        counters = journal.counters()
        assert (counters.streams, counters.sinks) == (before.streams, before.sinks)
        assert numbers(read(journal)) == [1, 2, 3, 4]
        assert journal_work.next_due(journal, "a") is None
        assert journal.append(batch(5)) == (1, 0), "somebody else may still succeed"
        assert "the disk is on fire" in trouble(journal), "which is no sign that the trouble is over"
    waiting.result(DEADLINE)
    assert trouble(journal) == "", "nobody has to append something for that"
    for again in (journal, open_journal()):
        sink = again.counters().sinks["a"]
        assert (sink.delivered, sink.dead, sink.pending, sink.retrying, sink.dead_letters) == (1, 1, 3, 1, 1)
        assert_balanced(again.counters())


def test_pruning_that_fails_is_trouble_until_it_succeeds(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    journal.append(batch(1))
    journal.settle("a", delivered(read(journal)))
    with failing(path, "DELETE ON batches"):
        journal.prune()
        assert "the disk is on fire" in trouble(journal)
    journal.prune()
    assert trouble(journal) == ""


def test_reading_that_fails_is_the_journals_trouble(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    journal.append(batch(1))
    with other_connection(path) as db:
        db.execute("ALTER TABLE batches RENAME TO gone")
        with pytest.raises(JournalError, match=f"{path}: no such table: batches"):
            read(journal)
        assert "no such table" in trouble(journal)
        db.execute("ALTER TABLE gone RENAME TO batches")
    assert numbers(read(journal)) == [1]
    assert trouble(journal) == ""


def test_a_sink_that_can_not_be_recorded_is_an_error_that_says_so(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    with failing(path, "INSERT ON sinks"), pytest.raises(JournalError, match="the disk is on fire"):
        journal.add_sink("b", "latest")
    with failing(path, "DELETE ON retries"):
        journal.add_sink("b", "latest")
        journal.append(batch(1, 2))
        journal.settle("b", Settlement(1, 2, retries=[Retry(1, 100.0, b"", "x", 1, 0.0, 100.0, "timeout", "")]))
        with pytest.raises(JournalError, match="the disk is on fire"):
            journal.forget_sinks_except({"a"})
    assert journal.counters().sinks.keys() == {"a", "b"}
    journal = open_journal(sinks=["a", "b"])
    assert journal.counters().sinks["b"].pending == 2
    assert_balanced(journal.counters())


_ON_A_FULL_DISK = """
import json, resource, sys, threading, time
from pathlib import Path
from bridge.event import Event
from bridge.journal import *

journal = Journal(JournalSettings(path=Path(sys.argv[1])))
journal.add_sink("a", "earliest")
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
appended, said = 0, []

def stream():
    global appended
    for i in range(200):
        journal.append(Batch("s", 0.0, [Event(f"{i:016}".encode(), (b"event %d" % i).ljust(3000, b"."))], []))
        appended += 1

def sink():
    while True:
        entries = journal.next_work("a", 0.0, Limits(10, 1 << 20, 1, 0.0), timeout=0.1).entries
        if entries:
            journal.settle("a", Settlement(entries[0].seq, entries[-1].seq + 1, delivered=len(entries)))
            if entries[-1].seq == 200:
                return

def until(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    said.append((journal.counters().last_error, appended, journal.counters().sinks["a"].delivered))

streaming = threading.Thread(target=stream, daemon=True)
streaming.start()
until(lambda: journal.counters().last_error)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
sinking = threading.Thread(target=sink, daemon=True)
sinking.start()
sinking.join(0.6)
until(lambda: True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
streaming.join(20)
sinking.join(20)
until(lambda: True)
journal.close()
print(json.dumps(said))
"""


def test_a_full_disk_makes_everybody_wait_until_there_is_space_again(path: Path, open_journal: Open) -> None:
    done = subprocess.run([sys.executable, "-c", _ON_A_FULL_DISK, path], capture_output=True, text=True, check=True)
    full, still, over = json.loads(done.stdout.splitlines()[-1])
    assert str(path) in full[0]
    assert 0 < full[1] < 200
    assert str(path) in still[0]
    assert still[1:] == [full[1], 0]
    assert over == [None, 200, 200]
    journal = open_journal()
    sink = journal.counters().sinks["a"]
    assert (sink.accepted, sink.delivered, sink.pending) == (200, 200, 0)


# Damage


def damaged(path: Path, statement: str, *arguments: object) -> None:
    with other_connection(path) as db:
        assert db.execute(statement, arguments).rowcount == 1


def read_all(journal: Journal) -> list[int]:
    """Read and settle until nothing is pending."""
    seen: list[int] = []
    while journal.counters().sinks["a"].pending:
        entries = read(journal, limit=2)
        if entries:
            journal.settle("a", delivered(entries))
            seen += numbers(entries)
    return seen


@pytest.mark.parametrize(
    ("statement", "argument"),
    [
        ("UPDATE batches SET body = ? WHERE first = 3", b"event 3\nevent 5\nevent 5"),
        ("UPDATE batches SET crc = crc + ? WHERE first = 3", 1),
        ("UPDATE batches SET count = ? WHERE first = 3", 1),
        ("UPDATE batches SET count = ? WHERE first = 3", -7),
        ("UPDATE batches SET count = ? WHERE first = 3", 1 << 50),
        ("DELETE FROM batches WHERE first = ?", 3),
    ],
)
def test_damaged_events_are_skipped_counted_and_never_delivered(
    open_journal: Open, path: Path, statement: str, argument: object
) -> None:
    journal = open_journal()
    for group in ((1, 2), (3, 4, 5), (6,)):
        journal.append(batch(*group))
    damaged(path, statement, argument)
    with capture_logs() as logs:
        assert read_all(open_journal()) == [1, 2, 6]
    (said,) = [entry for entry in logs if "damaged" in entry["event"]]
    assert (said["sink"], said["first"], said["events"]) == ("a", 3, 3)
    journal = open_journal()
    assert journal.counters().sinks["a"].dropped == 3
    assert_balanced(journal.counters())


def test_damage_at_the_end_is_skipped_too(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    journal.append(batch(1))
    journal.append(batch(2, 3))
    damaged(path, "UPDATE batches SET crc = crc + 1, count = 1000 WHERE first = 2")
    assert read_all(journal) == [1]
    journal.append(batch(4))
    assert read_all(journal) == [4]
    assert_balanced(journal.counters())


def test_damage_in_the_middle_of_what_was_read_costs_the_rest_only(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    journal.append(batch(1, 2, 3))
    journal.append(batch(4))
    journal.settle("a", Settlement(1, 2, delivered=1))
    damaged(path, "UPDATE batches SET crc = crc + 1 WHERE first = 1")
    assert journal.oldest("a") is None
    assert read_all(journal) == [4]
    assert journal.counters().sinks["a"].dropped == 2


def test_a_step_over_damage_that_can_not_be_recorded_is_taken_later(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    journal.append(batch(1))
    journal.append(batch(2))
    damaged(path, "UPDATE batches SET crc = crc + 1 WHERE first = 1")
    with failing(path, "INSERT ON sinks"):
        assert read(journal) == []
        assert "the disk is on fire" in trouble(journal)
        assert journal.counters().sinks["a"].dropped == 0
        began = time.monotonic()
        assert read(journal) == []
        assert time.monotonic() - began >= 0.2, "it pauses while the disk fails"
    assert read_all(journal) == [2]
    assert trouble(journal) == ""
