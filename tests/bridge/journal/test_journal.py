"""The journal as its users see it: what goes in comes out, once, in order, and the books balance."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from bridge.event import Malformed
from bridge.journal import (
    Appended,
    Batch,
    Closed,
    DeadLetter,
    DeadLetterQuery,
    Journal,
    Retry,
    Settlement,
    SinkCounters,
    appender,
    dedup,
    queues,
)
from bridge.journal import journal as journal_module
from bridge.sink import Entry
from tests.support import journal_work
from tests.support.dead_letters import written
from tests.support.journal_samples import assert_balanced, journal_settings
from tests.support.plain_events import batch, event, numbers
from tests.support.waiting import until

Open = Callable[..., Journal]
DEADLINE = 20.0


def append(journal: Journal, *numbers: int) -> Appended:
    return journal.append(batch(*numbers))


def read(journal: Journal, sink: str = "a", *, limit: int = 1000, max_bytes: int = 1 << 20) -> list[Entry]:
    return journal_work.read(journal, sink, limit, max_bytes, 0.0)


def deliver(journal: Journal, sink: str = "a", *, limit: int = 1000) -> list[int]:
    """Read once and settle everything as delivered."""
    entries = read(journal, sink, limit=limit)
    if entries:
        journal.settle(sink, Settlement(entries[0].seq, entries[-1].seq + 1, delivered=len(entries)))
    return numbers(entries)


def retry(seq: int, ordering_key: str, due: float) -> Retry:
    return Retry(seq, 100.0, f"event {seq}".encode(), ordering_key, 1, due, 100.0, "timeout", "no answer")


def dead(seq: int) -> DeadLetter:
    return DeadLetter(seq, 100.0, f"event {seq}".encode(), "x", 1, 100.0, 101.0, "rejected", "not wanted")


def letters(journal: Journal, **query: Any) -> list[DeadLetter]:
    return list(written(journal, **query).values())


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


@pytest.fixture
def open_journal(path: Path, threads: ThreadPoolExecutor) -> Iterator[Open]:
    """Opens the journal, the one before being closed; keyword arguments are options, or clocks and observers."""
    opened: list[Journal] = []

    def open_(at: Path = path, sinks: Sequence[str] = ("a",), start_at: Any = "latest", **arguments: Any) -> Journal:
        if opened:
            opened[-1].close()
        others = {name: arguments.pop(name) for name in ("observe_commit", "clock", "monotonic") if name in arguments}
        others.setdefault("clock", lambda: 200.0)
        journal = Journal(journal_settings(at, **arguments), **others)
        opened.append(journal)
        for sink in sinks:
            journal.add_sink(sink, start_at)
        return journal

    yield open_
    for journal in opened:
        journal.close()


def before_and_after_a_restart(journal: Journal, open_journal: Open) -> Iterator[Journal]:
    yield journal
    yield open_journal()


def crash(path: Path) -> Path:
    """What a process that is killed now leaves behind."""
    copy = path.parent / "after the crash" / path.name
    shutil.rmtree(copy.parent, ignore_errors=True)
    copy.parent.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(path.with_name(path.name + suffix), copy.with_name(copy.name + suffix))
    return copy


# The way of an event


def test_what_is_appended_is_read_in_order_and_settled(open_journal: Open) -> None:
    journal = open_journal()
    assert append(journal, 1, 2) == Appended(accepted=2, duplicate=0)
    journal.append(batch(3, received=105.5))
    entries = read(journal)
    assert entries == [Entry(1, 100.0, b"event 1"), Entry(2, 100.0, b"event 2"), Entry(3, 105.5, b"event 3")]
    assert read(journal) == entries, "the cursor stays until the outcome is settled"
    journal.settle("a", Settlement(1, 3, delivered=1, filtered=1))
    assert read(journal) == entries[2:]
    assert journal.counters().sinks["a"] == SinkCounters(3, 1, 1, 0, 0, pending=1, retrying=0, dead_letters=0)
    journal.settle("a", Settlement(3, 4, dead=[dead(3)]))
    assert read(journal) == []
    assert journal.counters().sinks["a"] == SinkCounters(3, 1, 1, 1, 0, pending=0, retrying=0, dead_letters=1)
    assert letters(journal) == [dead(3)]


def test_each_sink_moves_at_its_own_pace(open_journal: Open) -> None:
    journal = open_journal(sinks=["a", "b"])
    append(journal, 1, 2, 3)
    assert deliver(journal, "a") == [1, 2, 3]
    assert deliver(journal, "b", limit=1) == [1]
    append(journal, 4)
    assert (deliver(journal, "a"), deliver(journal, "b")) == ([4], [2, 3, 4])


def test_reading_keeps_to_its_limits_but_gives_at_least_one(open_journal: Open) -> None:
    journal = open_journal()
    journal.append(batch(*range(1, 6), size=100))
    journal.append(batch(*range(6, 11), size=100))
    assert numbers(read(journal, limit=7)) == list(range(1, 8))
    assert numbers(read(journal, max_bytes=700)) == list(range(1, 8))
    assert numbers(read(journal, max_bytes=1)) == [1]


def test_a_settlement_that_does_not_begin_at_the_cursor_is_ignored(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1, 2, 3)
    outcome = Settlement(1, 3, delivered=1, dead=[dead(2)])
    journal.settle("a", outcome)
    before = journal.counters()
    journal.settle("a", outcome)
    assert journal.counters() == before
    assert letters(journal) == [dead(2)]


def test_malformed_messages_are_counted_and_the_latest_are_kept(open_journal: Open) -> None:
    journal = open_journal()
    frames = [Malformed("not_json", b"{"), Malformed("too_large", b"x" * 100_000), Malformed("not_json", b"[")]
    assert journal.append(Batch("s", 100.0, [event(1)], frames)) == (1, 0)
    journal.append(Batch("other", 100.0, [], [Malformed("not_object", b"7")]))
    for again in before_and_after_a_restart(journal, open_journal):
        assert again.counters().streams["s"].malformed == {"not_json": 2, "too_large": 1}
        assert again.counters().streams["other"].received == 1
        kept = [one.frame for one in again.quarantine().quarantine if one.stream == "s"]
        assert (kept[0], kept[2]) == (b"{", b"[")
        assert 1000 < len(kept[1]) < 100_000
        assert_balanced(again.counters())


def test_the_books_balance_and_survive_a_restart(open_journal: Open) -> None:
    journal = open_journal(sinks=["a", "b"])
    append(journal, 1, 2, 2, 3)
    journal.append(Batch("t", 100.0, [event(3), event(4)], [Malformed("not_json", b"")]))
    journal.settle("a", Settlement(1, 4, delivered=1, retries=[retry(2, "x", 110.0)], dead=[dead(3)]))
    journal.settle("b", Settlement(1, 2, filtered=1))
    counters = journal.counters()
    assert_balanced(journal.counters())
    assert (counters.streams["s"].received, counters.streams["s"].accepted, counters.streams["s"].duplicate) == (4, 3, 1)
    assert (counters.streams["t"].received, counters.streams["t"].accepted, counters.streams["t"].duplicate) == (3, 1, 1)
    assert counters.sinks["a"] == SinkCounters(4, 1, 0, 1, 0, pending=2, retrying=1, dead_letters=1)
    again = open_journal(sinks=["a", "b"])
    assert (again.counters().streams, again.counters().sinks) == (counters.streams, counters.sinks)
    again.settle("a", Settlement(delivered=1, resolved=[2]))
    assert again.counters().sinks["a"] == SinkCounters(4, 2, 0, 1, 0, pending=1, retrying=0, dead_letters=1)


def test_a_stream_resumes_from_the_position_that_was_committed_last(open_journal: Open) -> None:
    journal = open_journal()
    assert journal.position("s") is None
    journal.append(Batch("s", 100.0, [event(1)], [], "first"))
    journal.append(Batch("s", 100.0, [], [], "second"))
    journal.append(Batch("s", 100.0, [event(1)], []))
    journal.append(Batch("t", 100.0, [event(2)], []))
    for again in before_and_after_a_restart(journal, open_journal):
        assert again.position("s") == "second"
        assert again.position("t") is None


def test_the_oldest_event_that_is_not_delivered_is_told(open_journal: Open) -> None:
    journal = open_journal()
    assert journal.oldest("a") is None
    append(journal, 1, 2, 3)
    assert journal.oldest("a") == b"event 1"
    journal.settle("a", Settlement(1, 3, delivered=1, retries=[retry(2, "x", 110.0)]))
    assert journal.oldest("a") == b"event 2"
    journal.settle("a", Settlement(delivered=1, resolved=[2]))
    assert journal.oldest("a") == b"event 3"


# Duplicates


def test_duplicates_are_found_in_a_batch_between_batches_and_over_a_restart(open_journal: Open) -> None:
    journal = open_journal()
    assert append(journal, 1, 2, 1) == (2, 1)
    assert append(journal, 2, 3) == (1, 1)
    assert journal.append(batch(3, 4, stream="t")) == (1, 1)
    journal = open_journal()
    assert append(journal, 1, 2, 3, 4, 5) == (1, 4)
    assert deliver(journal) == [1, 2, 3, 4, 5]


def test_a_duplicate_is_known_after_its_event_was_delivered_and_pruned(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1, 2)
    deliver(journal)
    journal.prune()
    assert append(journal, 1) == (0, 1)
    assert append(open_journal(), 2) == (0, 1)


def test_uuids_are_forgotten_after_the_window(open_journal: Open) -> None:
    now = 0.0
    journal = open_journal(window=60.0, monotonic=lambda: now)
    append(journal, 1)
    now = 60.0
    assert append(journal, 1, 2) == (1, 1)
    now = 61.0
    append(journal, 3)
    assert append(journal, 2) == (0, 1)
    now = 122.0
    append(journal, 4)
    assert append(journal, 1, 2, 3) == (2, 1)


def test_after_a_restart_uuids_count_that_were_received_within_the_window(open_journal: Open) -> None:
    now = 100.0
    journal = open_journal(clock=lambda: now, monotonic=lambda: now)
    append(journal, 1)
    now = 150.0
    append(journal, 2)
    journal = open_journal(window=60.0, clock=lambda: 200.0)
    assert append(journal, 1, 2) == (1, 1)


def test_a_uuid_is_a_duplicate_in_its_namespace_only(open_journal: Open, threads: ThreadPoolExecutor) -> None:
    def of(namespace: str, *numbers: int, stream: str = "s") -> Batch:
        return msgspec.structs.replace(batch(*numbers, stream=stream), namespace=namespace)

    journal = open_journal()
    assert journal.append(of("acme", 1, 2)) == (2, 0)
    assert journal.append(of("other", 1, 2, 3)) == (3, 0)
    assert journal.append(of("acme", 2, 4, stream="a second one of acme")) == (1, 1)
    outcomes = [f.result(DEADLINE) for f in together(journal, threads, [of("x", 5), of("y", 5), of("x", 5)])]
    assert sum(outcome.accepted for outcome in outcomes) == 2
    journal = open_journal()
    assert journal.append(of("other", 1, 4)) == (1, 1)
    assert journal.append(of("acme", 1, 4)) == (0, 2)
    assert_balanced(journal.counters())


def test_uuids_of_an_earlier_format_are_known_in_every_namespace(open_journal: Open, path: Path) -> None:
    open_journal().append(batch(1, 2))
    open_journal().close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("ALTER TABLE seen DROP COLUMN namespace")
        db.execute("ALTER TABLE sinks DROP COLUMN rewound")
        db.execute("ALTER TABLE meta DROP COLUMN clock_offset")
        db.execute("PRAGMA user_version=2")
    journal = open_journal()
    assert journal.append(msgspec.structs.replace(batch(2, 3), namespace="acme")) == (1, 1)
    assert journal.append(msgspec.structs.replace(batch(2, 3), namespace="other")) == (1, 1)


def test_the_newest_uuids_are_remembered_if_they_are_too_many(open_journal: Open) -> None:
    for again in (False, True):
        journal = open_journal(window_events=6)
        if not again:
            for number in range(1, 11):
                append(journal, number)
        assert append(journal, 8, 9, 10) == (0, 3)
        assert append(journal, 1) == (0 if again else 1, 1 if again else 0), "accepted once more, and then known again"


def test_uuids_that_nobody_remembers_are_deleted_and_the_others_stay(open_journal: Open, path: Path) -> None:
    def stored() -> int:
        with closing(sqlite3.connect(path)) as db:
            return int(db.execute("SELECT sum(length(uuids)) / 16 FROM seen").fetchone()[0])

    journal = open_journal(window_events=6)
    for number in range(1, 11):
        append(journal, number)
    journal.prune()
    kept = stored()
    assert 3 <= kept <= 6
    journal = open_journal(window=60.0, clock=lambda: 1000.0)
    append(journal, 11)
    journal.prune()
    assert stored() == 1, "those that were too old at the start"


def is_closing(journal: Journal) -> bool:
    try:
        journal_work.waiting_keys(journal, "a")
    except Closed:
        return True
    return False


def held_up(monkeypatch: pytest.MonkeyPatch, go_on: threading.Event) -> None:
    """Let the reading of remembered uuids wait."""
    seen_keys = dedup.seen_keys

    def slowly(db: sqlite3.Connection, oldest: int, following: int) -> Iterator[tuple[int, str | None, list[bytes], int]]:
        for page in seen_keys(db, oldest, following):
            assert go_on.wait(DEADLINE)
            yield page

    monkeypatch.setattr(dedup, "seen_keys", slowly)


def test_sinks_go_on_while_the_uuids_of_a_start_are_read_and_streams_wait_for_them(
    open_journal: Open, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(open_journal(), 1, 2)
    go_on = threading.Event()
    held_up(monkeypatch, go_on)
    journal = open_journal()
    appended = threads.submit(append, journal, 2, 3)

    assert deliver(journal) == [1, 2]
    assert journal.prune(), "there may be more when it is known what is remembered"
    assert not journal.accepts
    assert not appended.done()
    go_on.set()

    assert appended.result(DEADLINE) == (1, 1)
    assert journal.accepts
    assert deliver(journal) == [3]


def test_a_journal_can_be_closed_while_its_uuids_are_read(
    open_journal: Open, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(open_journal(), 1)
    go_on = threading.Event()
    held_up(monkeypatch, go_on)
    journal = open_journal()
    appended = threads.submit(append, journal, 2)
    closed = threads.submit(journal.close)
    until(lambda: is_closing(journal))
    go_on.set()

    closed.result(DEADLINE)
    with pytest.raises(Closed):
        appended.result(DEADLINE)


@pytest.mark.parametrize(
    ("failures", "levels"),
    [
        ([sqlite3.OperationalError("disk I/O error")], ["error", "info"]),
        # A bug is told once with its traceback, and as the journal's trouble.
        ([RuntimeError("a bug"), RuntimeError("a bug")], ["error", "error", "info"]),
    ],
)
def test_nothing_is_accepted_while_uuids_can_not_be_read(
    open_journal: Open, monkeypatch: pytest.MonkeyPatch, failures: list[Exception], levels: list[str]
) -> None:
    append(open_journal(), 1)
    left, oldest_seen = list(failures), dedup.oldest_seen

    def failing(db: sqlite3.Connection, since: float, limit: int) -> int | None:
        if left:
            raise left.pop()
        return oldest_seen(db, since, limit)

    monkeypatch.setattr(dedup, "oldest_seen", failing)
    with capture_logs() as logs:
        assert append(open_journal(), 1, 2) == (1, 1), "no duplicate has passed"
    assert [line["log_level"] for line in logs if "access" not in line["event"]] == levels


@pytest.mark.parametrize(("durability", "appending"), [("full", 2), ("normal", 1)])
def test_an_append_is_synced_as_durability_says_and_a_settlement_never_is(
    open_journal: Open, monkeypatch: pytest.MonkeyPatch, durability: str, appending: int
) -> None:
    levels: list[tuple[str, int]] = []

    def noting(module: ModuleType, name: str) -> None:
        save = getattr(module, name)

        def noted(db: sqlite3.Connection, *args: Any, **kwargs: Any) -> None:
            levels.append((name, db.execute("PRAGMA synchronous").fetchone()[0]))
            save(db, *args, **kwargs)

        monkeypatch.setattr(module, name, noted)

    noting(appender, "save_batches")
    noting(queues, "save")
    journal = open_journal(durability=durability)
    for number in (1, 2):
        append(journal, number)
        journal.settle("a", Settlement(number, number + 1, retries=[Retry(number, 0.0, b"", "x", 1, 0.0, 0.0, "timeout", "")]))
    assert levels == [("save_batches", appending), ("save", 1)] * 2


# Group commit


def together(journal: Journal, pool: ThreadPoolExecutor, batches: Sequence[Batch]) -> list[Future[Appended]]:
    """Have several threads append at once: while the write lock is taken, all of them get in line."""
    with journal._store.lock:
        waiting = [pool.submit(journal.append, batch) for batch in batches]
        until(lambda: len(journal._appender.waiting) == len(batches))
    return waiting


def test_one_commit_takes_all_that_waits(open_journal: Open, threads: ThreadPoolExecutor) -> None:
    commits: list[float] = []
    journal = open_journal(observe_commit=commits.append)
    batches = [batch(*range(10 * i, 10 * i + 10), stream=f"s{i}") for i in range(20)]
    outcomes = [future.result(DEADLINE) for future in together(journal, threads, batches)]
    assert outcomes == [(10, 0)] * 20
    assert len(commits) == 1
    assert sorted(deliver(journal)) == list(range(200))
    assert {name: stream.accepted for name, stream in journal.counters().streams.items()} == {f"s{i}": 10 for i in range(20)}


def test_duplicates_between_the_batches_of_one_commit_are_found(open_journal: Open, threads: ThreadPoolExecutor) -> None:
    journal = open_journal()
    outcomes = [f.result(DEADLINE) for f in together(journal, threads, [batch(1, 2, 3), batch(3, 2, 4), batch(4, 1)])]
    assert sum(outcome.accepted for outcome in outcomes) == 4
    assert sum(outcome.duplicate for outcome in outcomes) == 4
    assert sorted(deliver(journal)) == [1, 2, 3, 4]
    assert_balanced(journal.counters())
    assert append(open_journal(), 1, 2, 3, 4) == (0, 4)


def test_who_is_late_in_a_long_line_commits_for_itself(
    open_journal: Open, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appender, "_MAX_GROUP", 2)
    monkeypatch.setattr(journal_module, "_RETRY_SECONDS", 10 * DEADLINE)
    journal = open_journal()
    done = wait(together(journal, threads, [batch(i) for i in range(9)]), DEADLINE)
    assert not done.not_done
    assert sorted(deliver(journal)) == list(range(9))


def test_many_threads_lose_and_double_nothing(open_journal: Open, threads: ThreadPoolExecutor) -> None:
    journal = open_journal(sinks=["a", "b"], durability="normal")
    stop = threading.Event()
    got: dict[str, list[int]] = {"a": [], "b": []}

    def stream(name: str) -> None:
        # Each event comes from two streams, as it does from two connections for the same namespace.
        half = int(name) // 2
        for i in range(30):
            journal.append(batch(*range(1000 * half + 10 * i, 1000 * half + 10 * i + 10), stream=name))

    def sink(name: str) -> None:
        while not stop.is_set() or read(journal, name):
            got[name] += deliver(journal, name, limit=17)

    streams = [threads.submit(stream, str(i)) for i in range(8)]
    sinks = [threads.submit(sink, name) for name in got]
    while not all(future.done() for future in streams):
        assert_balanced(journal.counters())
        journal.prune()
    stop.set()
    for future in (*streams, *sinks):
        future.result(DEADLINE)
    expected = [1000 * half + i for half in range(4) for i in range(300)]
    assert sorted(got["a"]) == sorted(got["b"]) == expected
    assert got["a"] == got["b"], "one order for all"
    for half in range(4):
        assert [n for n in got["a"] if n // 1000 == half] == expected[300 * half : 300 * half + 300]
    assert_balanced(journal.counters())


# Waiting


def test_reading_wakes_when_something_is_appended(open_journal: Open, threads: ThreadPoolExecutor) -> None:
    journal = open_journal()
    reading = threads.submit(journal_work.read, journal, "a", 10, 1000, 10 * DEADLINE)
    append(journal, 1)
    assert numbers(reading.result(DEADLINE)) == [1]


def test_reading_ends_without_an_event_when_it_is_woken(open_journal: Open, threads: ThreadPoolExecutor) -> None:
    journal = open_journal()
    reading = threads.submit(journal_work.read, journal, "a", 10, 1000, 10 * DEADLINE)

    def woken() -> bool:
        journal.wake()
        return reading.done()

    until(woken)
    assert reading.result() == []


def test_waiting_tells_whether_something_was_appended(open_journal: Open, threads: ThreadPoolExecutor) -> None:
    journal = open_journal()
    assert not journal.wait(1, 0.0)

    def ends(wake: Callable[[], object]) -> bool:
        waiting = threads.submit(journal.wait, journal.extent().next, 10 * DEADLINE)

        def woken() -> bool:
            wake()
            return waiting.done()

        until(woken)
        return waiting.result()

    fresh = iter(range(100_000))
    assert ends(lambda: append(journal, next(fresh)))
    assert not ends(journal.wake)


# Sinks come and go


def test_a_new_sink_starts_with_what_comes_next_or_with_what_is_there(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1, 2)
    append(journal, 3)
    deliver(journal, limit=2)
    journal.prune()
    journal.add_sink("latest", "latest")
    journal.add_sink("earliest", "earliest")
    append(journal, 4)
    assert numbers(read(journal, "latest")) == [4]
    assert numbers(read(journal, "earliest")) == [3, 4]
    assert_balanced(journal.counters())


def test_a_new_sink_starts_with_what_comes_next_if_nothing_is_there(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1, 2)
    deliver(journal)
    journal.prune()
    journal.add_sink("b", "earliest")
    append(journal, 3)
    assert numbers(read(journal, "b")) == [3]


def test_a_sink_that_is_known_goes_on_where_it_was(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1, 2, 3)
    deliver(journal, limit=2)
    journal.add_sink("a", "earliest")
    assert numbers(read(journal)) == [3]
    assert numbers(read(open_journal(start_at="latest"))) == [3]


def test_a_sink_that_left_the_configuration_is_forgotten_and_the_log_says_so(open_journal: Open) -> None:
    journal = open_journal(sinks=["a", "b"])
    append(journal, 1, 2, 3, 4)
    journal.settle("b", Settlement(1, 4, delivered=1, retries=[retry(2, "x", 110.0)], dead=[dead(3)]))
    journal = open_journal(sinks=[])
    with capture_logs() as logs:
        journal.forget_sinks_except({"a"})
    assert [(entry["sink"], entry["pending_events"], entry["log_level"]) for entry in logs] == [("b", 2, "warning")]
    journal.add_sink("a", "latest")
    assert journal.counters().sinks.keys() == {"a"}
    assert deliver(journal) == [1, 2, 3, 4]
    journal.add_sink("b", "latest")
    assert journal.counters().sinks["b"] == SinkCounters(1, 0, 0, 1, 0, pending=0, retrying=0, dead_letters=1)
    assert journal_work.next_due(journal, "b") is None
    assert_balanced(journal.counters())


def test_a_running_sink_can_be_forgotten(open_journal: Open) -> None:
    journal = open_journal(sinks=["a", "b"])
    append(journal, 1)
    journal.forget_sinks_except({"b"})
    assert journal.counters().sinks.keys() == {"b"}
    deliver(journal, "b")
    journal.prune()
    journal.add_sink("a", "earliest")
    assert read(journal) == []


# The retry queue


def test_retries_are_due_by_lane_and_what_waits_behind_comes_along(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1, 2, 3, 4)
    waiting = [retry(1, "x", 120.0), retry(2, "y", 110.0), retry(3, "x", 0.0)]
    journal.settle("a", Settlement(1, 5, delivered=1, retries=waiting))
    for again in before_and_after_a_restart(journal, open_journal):
        assert again.counters().sinks["a"].retrying == 3
        assert journal_work.next_due(again, "a") == 110.0
        assert journal_work.waiting_keys(again, "a") == {"x", "y"}
        assert journal_work.due_retries(again, "a", 109.9, 500.0, 10, 1000) == []
        assert journal_work.due_retries(again, "a", 110.0, 500.0, 10, 1000) == [waiting[1]]
        assert journal_work.due_retries(again, "a", 120.0, 500.0, 10, 1000) == waiting
        assert journal_work.due_retries(again, "a", 120.0, 500.0, 2, 1000) == waiting[:2]
        assert journal_work.due_retries(again, "a", 120.0, 500.0, 10, 15) == waiting[:2]
        assert journal_work.due_retries(again, "a", 0.0, 115.0, 10, 1000) == [waiting[0], waiting[2]], (
            "too far away to be meant"
        )


def test_an_attempt_that_fails_again_stays_with_a_new_due_time(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1, 2)
    journal.settle("a", Settlement(1, 3, retries=[retry(1, "x", 110.0), retry(2, "x", 0.0)]))
    journal.settle("a", Settlement(retries=[retry(1, "x", 140.0)]))
    assert journal_work.next_due(journal, "a") == 140.0
    assert journal.counters().sinks["a"] == SinkCounters(2, 0, 0, 0, 0, pending=2, retrying=2, dead_letters=0)
    journal.settle("a", Settlement(resolved=[1], dead=[dead(1)]))
    assert journal_work.next_due(journal, "a") == 0.0
    journal.settle("a", Settlement(delivered=1, resolved=[2]))
    assert journal_work.next_due(journal, "a") is None
    assert journal_work.waiting_keys(journal, "a") == set()
    assert journal.counters().sinks["a"] == SinkCounters(2, 1, 0, 1, 0, pending=0, retrying=0, dead_letters=1)


# Pruning, restart and the end


def test_only_what_every_sink_has_passed_is_deleted(open_journal: Open, path: Path) -> None:
    def stored() -> list[int]:
        with closing(sqlite3.connect(path)) as db:
            return [first for (first,) in db.execute("SELECT first FROM batches ORDER BY first")]

    journal = open_journal(sinks=["a", "b"])
    for i in range(1, 7, 2):
        append(journal, i, i + 1)
    deliver(journal, "a")
    deliver(journal, "b", limit=3)
    journal.prune()
    assert stored() == [3, 5], "of the first of these, one sink has passed a half only"
    assert deliver(journal, "b") == [4, 5, 6]
    journal.prune()
    assert stored() == []


def test_deleting_a_day_goes_on_next_time_and_does_not_keep_its_caller(open_journal: Open) -> None:
    ticks = count()
    journal = open_journal(sinks=[], monotonic=lambda: next(ticks) / 20)
    for number in range(3000):
        append(journal, number)
    rounds = 1
    while journal.prune():
        rounds += 1

    assert rounds > 1
    assert (journal.extent().first, journal.extent().next) == (3001, 3001)


def test_nothing_is_deleted_that_a_sink_needs_which_was_not_added_yet(open_journal: Open) -> None:
    journal = open_journal(sinks=["a", "b"])
    append(journal, 1)
    deliver(journal, "b")
    journal = open_journal(sinks=["b"])
    journal.prune()
    journal.add_sink("a", "latest")
    assert deliver(journal) == [1]


def test_a_journal_without_sinks_keeps_no_events_but_knows_duplicates(open_journal: Open) -> None:
    journal = open_journal(sinks=[])
    for number in range(20):
        journal.append(batch(number, size=50_000))
        journal.prune()
    assert journal.counters().bytes < 200_000
    assert append(journal, 1, 19, 20) == (1, 2)


def test_places_are_never_used_twice(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    append(journal, 1, 2, 3)
    deliver(journal)
    journal.prune()
    journal = open_journal()
    append(journal, 4)
    assert [entry.seq for entry in read(journal)] == [4]
    deliver(journal)
    journal.prune()
    journal = open_journal(crash(path))
    append(journal, 5)
    assert [entry.seq for entry in read(journal)] == [5]


def test_a_crash_loses_neither_events_nor_outcomes(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    journal.append(Batch("s", 100.0, [event(n) for n in range(1, 6)], [Malformed("not_json", b"")], "here"))
    outcome = Settlement(1, 5, delivered=1, filtered=1, retries=[retry(3, "x", 110.0)], dead=[dead(4)])
    journal.settle("a", outcome)
    before = journal.counters()
    after = open_journal(crash(path))
    assert (after.counters().streams, after.counters().sinks) == (before.streams, before.sinks)
    assert after.position("s") == "here"
    assert journal_work.due_retries(after, "a", 110.0, 500.0, 10, 1000) == outcome.retries
    assert letters(after) == outcome.dead
    assert append(after, 1, 5) == (0, 2)
    assert deliver(after) == [5]


_VICTIM = """
import sys
from pathlib import Path
from types import ModuleType
from bridge.event import Event
from bridge.journal import *

journal = Journal(JournalSettings(path=Path(sys.argv[1])))
journal.add_sink("a", "earliest")
for i in range(10**9):
    journal.append(Batch("s", 0.0, [Event(f"{3 * i + k:016}".encode(), b"event %d" % (3 * i + k)) for k in range(3)], []))
    entries = journal.next_work("a", 0.0, Limits(2, 1000, 1, 0.0)).entries
    journal.settle("a", Settlement(entries[0].seq, entries[-1].seq + 1, delivered=2))
    print(i, flush=True)
    if i % 7 == 0:
        journal.prune()
"""


def test_a_process_may_be_killed_at_any_time(open_journal: Open, path: Path) -> None:
    for run in range(3):
        target = path.with_name(f"{run}.db")
        command = [sys.executable, "-c", _VICTIM, str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
            assert victim.stdout is not None
            for _ in range(20 * run + 5):
                assert victim.stdout.readline()
            victim.send_signal(signal.SIGKILL)
            reported = 20 * run + 5 + len(victim.stdout.read().splitlines())
        journal = open_journal(target)
        counters = journal.counters()
        assert counters.streams["s"].accepted in {3 * reported, 3 * reported + 3}
        assert counters.sinks["a"].delivered in {2 * reported, 2 * reported + 2}
        assert_balanced(journal.counters())
        assert numbers(read(journal, limit=10**6)) == list(range(counters.sinks["a"].delivered, counters.streams["s"].accepted))


def test_closing_ends_all_waiting(open_journal: Open, threads: ThreadPoolExecutor) -> None:
    journal = open_journal(sinks=["a", "b"], max_bytes=1)
    full = threads.submit(append, journal, 1)
    until(lambda: journal.counters().last_error is not None)
    reading = threads.submit(journal_work.read, journal, "b", 10, 1000, 10 * DEADLINE)
    waiting = threads.submit(journal.wait, 1, 10 * DEADLINE)
    journal.close()
    for ended in (full, reading):
        with pytest.raises(Closed):
            ended.result(DEADLINE)
    assert waiting.result(DEADLINE) is False


def test_a_closed_journal_says_so(open_journal: Open) -> None:
    journal = open_journal()
    append(journal, 1)
    counters = journal.counters()
    journal.close()
    journal.close()
    journal.prune()
    assert journal.counters() == counters
    assert not journal.wait(2, 10 * DEADLINE)
    uses: list[Callable[[], object]] = [
        lambda: append(journal, 2),
        lambda: journal.settle("a", Settlement(1, 2, delivered=1)),
        lambda: read(journal),
        lambda: journal_work.due_retries(journal, "a", 0.0, 0.0, 1, 1),
        lambda: journal_work.next_due(journal, "a"),
        lambda: journal_work.waiting_keys(journal, "a"),
        lambda: journal.oldest("a"),
        lambda: journal.dead_letters(DeadLetterQuery()),
        journal.quarantine,
        journal.extent,
        journal.check,
        lambda: journal.events(0, 1, 1),
        lambda: journal.verify(0, 1),
        lambda: journal.replay("a", [1]),
        lambda: journal.discard([1]),
    ]
    for use in uses:
        with pytest.raises(Closed):
            use()
    assert numbers(read(open_journal())) == [1]


def test_an_orderly_end_leaves_one_file(open_journal: Open, path: Path) -> None:
    journal = open_journal()
    append(journal, 1)
    deliver(journal)
    journal.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["journal.db", "journal.db.lock"]


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_either_durability_keeps_what_a_killed_process_had_committed(open_journal: Open, path: Path, durability: str) -> None:
    journal = open_journal(durability=durability)
    append(journal, 1, 2)
    journal.prune()
    append(journal, 3)
    assert deliver(open_journal(crash(path))) == [1, 2, 3]
