"""Damage of every kind to the journal's files: what is left is delivered unchanged, once and in order, and the process runs.

A few hundred seeded corruptions here; `make corrupt COUNT=10000` for more, with a table of what became of them.
"""

import itertools
import os
import random
import shutil
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from bridge.admin.client import OperationError
from bridge.event import Event, Malformed
from bridge.journal import Batch, DeadLetterQuery, Journal, JournalError, JournalReader, JournalSettings
from bridge.journal.schema import is_damage
from bridge.metrics import Metrics, SinkMetrics
from bridge.pipeline.forwarder import Forwarder
from bridge.sink import Entry, Failure, SinkSettings
from tests.support.journal_work import read

IN_CHECK: Final = 300
CORRUPTIONS: Final = int(os.environ.get("CORRUPTIONS", IN_CHECK))
SINKS: Final = ("behind", "halfway", "done")
NOW: Final = 1_000_000.0
PAGE: Final = 4096
STEPS: Final = 300
"""A forwarder that is not done after so many steps never will be: there are not so many events."""


def event(number: int, size: int = 0) -> Event:
    key = random.Random(number).randbytes(16)
    text = (
        f'{{"type":"container","action":"update","parents":[],"resource_uri":"/r/{number % 5}/","state":"{"x" * size}",'
        f'"uuid":"{UUID(bytes=key)}","datetime":"2026-11-23T00:00:00Z","namespace":"","received_at":"2026-11-23T00:00:00Z"}}'
    )
    return Event(key, text.encode())


class RecordingSink:
    """Takes everything, but fails with some of the events."""

    def __init__(self, failing: set[bytes]) -> None:
        self.failing = failing
        self.got: list[Entry] = []

    def open(self) -> None:
        """Nothing to do."""

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        failures = [
            Failure.retry(entry, "server_error", "500") if entry.seq % 2 else Failure.rejected(entry, "rejected", "400")
            for entry in entries
            if entry.json in self.failing
        ]
        failed = {failure.seq for failure in failures}
        self.got += [entry for entry in entries if entry.seq not in failed]
        return failures

    def close(self) -> None:
        """Nothing to do."""


def forwarder(journal: Journal, name: str, sink: RecordingSink, clock: float) -> Forwarder:
    return Forwarder(
        name,
        sink,
        SinkSettings.model_validate({"type": "x", "ordering": "none", "batch": {"max_events": 7}, "retry": {"max_delay": 60}}),
        journal,
        metrics=SinkMetrics(Metrics("test"), name),
        clock=lambda: clock,
        monotonic=lambda: clock,
    )


class ForEver(BaseException):
    """The journal tries the same again for ever; no part of it may survive that."""


class Impatient(threading.Event):
    """The journal's event of being closed, for which it waits whenever it will try something again."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 20

    def wait(self, timeout: float | None = None) -> bool:
        self.left -= 1
        if self.left <= 0:
            raise ForEver
        return self.is_set()


class Made(NamedTuple):
    """A journal's files, and what is known of it."""

    files: dict[str, bytes]
    lines: dict[int, bytes]
    """Every event that was ever appended, by its place."""


def snapshot(path: Path) -> dict[str, bytes]:
    return {suffix: Path(f"{path}{suffix}").read_bytes() for suffix in ("", "-wal", "-shm") if Path(f"{path}{suffix}").exists()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Made]:
    """The same journal: closed in order, killed with some of it in the log, and killed with all of it in the log."""
    path = tmp_path_factory.mktemp("made") / "journal.db"
    lines: dict[int, bytes] = {}
    numbers = itertools.count(1)

    def append(journal: Journal, count: int, size: int = 0) -> None:
        events = [event(next(numbers), size) for _ in range(count)]
        lines.update(zip(itertools.count(max(lines, default=0) + 1), (e.json for e in events), strict=False))
        malformed = [Malformed("not_json", b"{" * 50)] if count == 4 else []
        journal.append(Batch("s", NOW, events, malformed, position="p"))

    def deliver(journal: Journal, name: str, steps: int) -> None:
        forwarding = forwarder(journal, name, RecordingSink({line for seq, line in lines.items() if seq % 3 == 0}), NOW)
        for _ in range(steps):
            forwarding.step()

    with closing(Journal(JournalSettings(path=path, durability="normal"), clock=lambda: NOW)) as journal:
        for name in SINKS:
            journal.add_sink(name, "earliest")
        for count in (1, 4, 8, 2, 6, 3, 5, 1, 7):
            append(journal, count)
        append(journal, 2, 9000)
        deliver(journal, "halfway", 3)
        deliver(journal, "done", 9)
        all_in_log = Made(snapshot(path), dict(lines))
    closed = Made(snapshot(path), dict(lines))
    with closing(Journal(JournalSettings(path=path, durability="normal"), clock=lambda: NOW)) as journal:
        for name in SINKS:
            journal.add_sink(name, "earliest")
        for count in (4, 1, 9):
            append(journal, count, 300)
        deliver(journal, "halfway", 4)
        deliver(journal, "done", 4)
        some_in_log = Made(snapshot(path), dict(lines))
    assert set(some_in_log.files) == set(all_in_log.files) == {"", "-wal", "-shm"}
    assert set(closed.files) == {""}
    return [closed, closed, some_in_log, all_in_log]


def some_bytes(way: str, old: bytes, dice: random.Random) -> bytes:
    match way:
        case "byte":
            return dice.randbytes(1)
        case "bit":
            return bytes([old[0] ^ 1 << dice.randrange(8)])
        case "junk":
            return dice.randbytes(dice.choice((2, 8, 64, 512)))
    return bytes(dice.choice((2, 8, 64, 512)))


def changed(way: str, content: bytes, dice: random.Random) -> bytes:
    # The header, where little says much, more often than its size deserves.
    at = dice.randrange(100 if dice.random() < 0.2 else len(content)) % len(content)
    page, other = (dice.randrange(len(content) // PAGE + 1) * PAGE for _ in range(2))
    match way:
        case "truncate":
            return content[: dice.choice((at, at, page, 0))]
        case "grow":
            return content + dice.randbytes(dice.choice((1, 100, PAGE)))
        case "copy page" | "swap pages":
            one, two = content[page : page + PAGE], content[other : other + PAGE]
            content = content[:page] + two + content[page + PAGE :]
            return content if way == "copy page" else content[:other] + one + content[other + PAGE :]
        case "zero page":
            return content[:page] + bytes(PAGE) + content[page + PAGE :]
    new = some_bytes(way, content[at:], dice)
    return content[:at] + new + content[at + len(new) :]


WAYS: Final = (
    *("byte", "byte", "bit", "bit", "bit", "junk", "zeros"),
    *("zero page", "swap pages", "copy page", "truncate", "grow"),
)
WHERE: Final = {"": 6, "-wal": 5, "-shm": 1}


def corrupt(files: dict[str, bytes], dice: random.Random) -> tuple[dict[str, bytes], str]:
    """Let one to three things happen to the files; tell what."""
    files = dict(files)
    said = []
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        suffix = dice.choices(list(files), [WHERE[suffix] for suffix in files])[0]
        way = dice.choice(WAYS)
        files[suffix] = changed(way, files[suffix] or b"\0", dice)
        said.append(f"{way} of file{suffix}")
    return files, "; ".join(said)


def look(path: Path, lines: dict[int, bytes]) -> None:
    """Look at what is there, as the commands do: what can be read is shown, and the rest is told in words."""
    try:
        with closing(JournalReader(path)) as reader:
            looks = reader
            for each in (looks.quarantine, looks.verify):
                with suppress(JournalError):
                    each(0, 1000)
            shown = looks.events(0, 1000).events
    except (JournalError, OperationError):
        return
    assert {bytes(stored.event) for stored in shown} <= set(lines.values()), "what was never appended is shown"


def run(path: Path, lines: dict[int, bytes], new: Event) -> str:
    """Look, open what is there, deliver all of it and something new, and check that; return what became of it."""
    look(path, lines)
    try:
        journal = Journal(JournalSettings(path=path, durability="normal"), clock=lambda: NOW)
    except JournalError as error:
        if "written by a newer event-bridge" not in str(error) and "is too old" not in str(error):
            raise
        return "refused: one flipped bit made it a file of the future"
    journal._store.closing = Impatient()
    with closing(journal):
        for name in SINKS:
            journal.add_sink(name, "earliest")
        more = [event(100_000 + number) for number in range(3)]
        for each in (new, *more):
            assert journal.append(Batch("s", NOW, [each], [])) == (1, 0)
        for name in SINKS:
            check_delivery(journal, name, {**lines, 0: new.json} | {-place: each.json for place, each in enumerate(more, 1)})
        for stream in journal.counters().streams.values():
            assert stream.received == stream.accepted + stream.duplicate + sum(stream.malformed.values())
        journal.prune()
        assert journal.counters().last_error is None
        if journal.damaged_files():
            return "set aside"
        dropped = sum(sink.dropped for sink in journal.counters().sinks.values())
        return "some events dropped" if dropped else "nothing missing, or the last commits"


def check_delivery(journal: Journal, name: str, lines: dict[int, bytes]) -> None:
    """Deliver all that a sink may get: each event is one that was appended, in its place, and comes once."""
    sink = RecordingSink(set())
    forwarding = forwarder(journal, name, sink, NOW + 120)
    for _ in range(STEPS):
        if not journal.counters().sinks[name].pending:
            break
        forwarding.step()
    places = {line: place for place, line in lines.items()}
    got = [entry.json for entry in sink.got]
    assert set(got) <= places.keys(), f"{name} got what was never appended"
    assert len(set(got)) == len(got), f"{name} got an event twice"
    assert {line for place, line in lines.items() if place <= 0} <= set(got), f"{name} did not get the new events"
    assert all(places[entry.json] in {entry.seq, *range(-3, 1)} for entry in sink.got), f"{name} got an event that is another's"
    counters = journal.counters().sinks[name]
    assert counters.pending == 0, f"{name} makes no progress"
    assert counters.accepted == counters.delivered + counters.filtered + counters.dead + counters.dropped
    assert min(counters.delivered, counters.filtered, counters.dead, counters.dropped) >= 0
    for stored in journal.dead_letters(DeadLetterQuery(sink=name)).dead_letters:
        assert stored.damaged or bytes(stored.event) in places, f"{name} has a dead letter that never was an event"


def test_whatever_happens_to_the_files_nothing_wrong_is_delivered_and_the_process_runs(
    made: list[Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes: Counter[str] = Counter()
    began = time.monotonic()
    for seed in range(CORRUPTIONS):
        dice = random.Random(seed)
        files, lines = dice.choice(made)
        damaged, how = corrupt(files, dice)
        path = tmp_path / str(seed) / "journal.db"
        path.parent.mkdir()
        for suffix, content in damaged.items():
            Path(f"{path}{suffix}").write_bytes(content)
        try:
            with capture_logs() as logs:
                outcome = run(path, lines, event(10_000 + seed))
        except BaseException as error:
            error.add_note(f"seed {seed}: {how}")
            raise
        errors = [entry["event"] for entry in logs if entry["log_level"] == "error"]
        assert not [entry for entry in logs if "exc_info" in entry], f"a traceback after seed {seed}: {how}"
        assert errors or outcome.startswith(("nothing", "refused")), f"nothing was said of seed {seed}: {how}"
        outcomes[outcome] += 1
        shutil.rmtree(path.parent)
    assert len(outcomes) >= 3, outcomes
    if CORRUPTIONS > IN_CHECK:
        rows = [f"| {outcome} | {count:,} |" for outcome, count in outcomes.most_common()]
        took = f"| {CORRUPTIONS:,} corruptions in {time.monotonic() - began:.0f} s | Journals |"
        with capsys.disabled():
            sys.stdout.write("\n".join(["", took, "| --- | --- |", *rows, ""]))


# One by one


def spoil(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE meta SET next_seq = next_seq + 1", "the next event can't have place"),
        ("UPDATE meta SET next_seq = next_seq - 1", "the next event can't have place"),
        ("UPDATE meta SET next_seq = 'x'", "the place of the next event is damaged"),
        ("DELETE FROM meta", "the place of the next event is damaged"),
        (
            "UPDATE batches SET first = first + 1000 WHERE first = (SELECT max(first) FROM batches)",
            "an event has a place after",
        ),
        ("UPDATE streams SET received = received + 1", "the books of stream s do not balance"),
        ("DELETE FROM malformed", "the books of stream s do not balance"),
        ("UPDATE malformed SET stream = 't'", "a row has a value that it can't have: 't'"),
        ("UPDATE sinks SET cursor = cursor - 1 WHERE name = 'halfway'", "the books of sink halfway do not balance"),
        ("UPDATE sinks SET delivered = delivered + 1 WHERE name = 'done'", "the books of sink done do not balance"),
        ("UPDATE sinks SET delivered = 'x' WHERE name = 'done'", "a row has a value that it can't have"),
        (
            "UPDATE sinks SET cursor = cursor + 1000, delivered = delivered + 1000 WHERE name = 'done'",
            "the books of sink done do not balance",
        ),
        (
            "UPDATE sinks SET filtered = filtered - 5, delivered = delivered + 5 WHERE name = 'done'",
            "the books of sink done do not balance",
        ),
        ("UPDATE sinks SET start = cursor + 1 WHERE name = 'behind'", "the books of sink behind do not balance"),
        ("ALTER TABLE dead_letters RENAME died TO lived", "the tables are not those of a journal"),
        ("DROP INDEX retries_by_lane", "the tables are not those of a journal"),
        ("DROP TABLE quarantine", "the tables are not those of a journal"),
        ("PRAGMA user_version = 0", "table meta already exists"),
        ("PRAGMA user_version = -5", "table meta already exists"),
    ],
)
def test_what_can_not_be_right_is_set_aside_with_the_reason(
    made: list[Made], tmp_path: Path, statement: str, words: str
) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(made[0].files[""])
    with closing(Journal(JournalSettings(path=path))) as journal:
        assert journal.damaged_files() == [], "nothing is wrong with it yet"
    spoil(path, statement)
    with capture_logs() as logs, closing(Journal(JournalSettings(path=path))) as journal:
        assert len(journal.damaged_files()) == 1
        assert journal.append(Batch("s", NOW, [event(1)], [])).accepted == 1
    (said,) = [entry for entry in logs if "set aside" in entry["event"]]
    assert words in said["damage"]


@pytest.mark.parametrize(("place", "value"), [(18, 3), (19, 3), (47, 9)])
def test_a_file_that_only_a_newer_sqlite_could_write_is_set_aside(
    made: list[Made], tmp_path: Path, place: int, value: int
) -> None:
    path = tmp_path / "journal.db"
    content = bytearray(made[0].files[""])
    content[place] = value
    path.write_bytes(content)
    with closing(Journal(JournalSettings(path=path))) as journal:
        assert len(journal.damaged_files()) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM retries WHERE rowid = 1",
        "UPDATE sinks SET cursor = cursor + 1 WHERE name = 'halfway'",
        "UPDATE sinks SET delivered = delivered - 1 WHERE name = 'halfway'",
    ],
)
def test_what_a_sink_is_missing_counts_as_dropped(made: list[Made], tmp_path: Path, statement: str) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(made[0].files[""])
    spoil(path, statement)
    assert run(path, made[0].lines, event(10_000)) == "some events dropped"


def test_uuids_that_are_none_any_more_end_nothing(made: list[Made], tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(made[0].files[""])
    spoil(path, "UPDATE seen SET uuids = 5 WHERE first % 2 = 0")
    assert run(path, made[0].lines, event(10_000)) == "nothing missing, or the last commits"


@pytest.mark.parametrize("place", ["(SELECT next_seq FROM meta) + 1", "1 << 50"])
def test_uuids_of_events_that_are_yet_to_come_do_not_keep_them_away(made: list[Made], tmp_path: Path, place: str) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(made[0].files[""])
    spoil(path, f"UPDATE seen SET first = {place} WHERE first = (SELECT max(first) FROM seen)")
    with capture_logs() as logs, closing(Journal(JournalSettings(path=path))) as journal:
        for number in range(20_000, 20_005):
            assert journal.append(Batch("s", 0.0, [event(number)], [])).accepted == 1
    assert [line["batches"] for line in logs if "batches" in line] == [1]


def test_a_time_that_can_not_be_is_damage_and_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(Journal(JournalSettings(path=path))) as journal:
        journal.add_sink("a", "earliest")
        for number in (1, 2):
            journal.append(Batch("s", 100.0, [event(number)], [Malformed("not_json", b"x")]))
    spoil(path, "UPDATE batches SET received = 1e300 WHERE first = 1")
    spoil(path, "UPDATE quarantine SET received = 1e300")

    with closing(JournalReader(path)) as reader:
        page, frames = reader.events(0, 10), reader.quarantine(0, 10)

    assert ([entry.seq for entry in page.events], page.damaged) == ([2], 1)
    assert [frame.reason for frame in frames.quarantine] == ["damaged", "damaged"]


def test_files_that_are_set_aside_in_the_same_second_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    for number in range(3):
        path.write_bytes(b"damaged %d" % number)
        with closing(Journal(JournalSettings(path=path))) as journal:
            kept = journal.damaged_files()
    assert sorted(file.read_bytes() for file in kept) == [b"damaged 0", b"damaged 1", b"damaged 2"]


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    spoil(path, "CREATE TABLE notes (text)")
    before = path.read_bytes()
    with pytest.raises(
        JournalError, match=r"a database of something else, not a journal; journal\.path must be a file of its own"
    ):
        Journal(JournalSettings(path=path))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT name FROM sqlite_schema").fetchall() == [("notes",)]
    assert len(path.read_bytes()) == len(before)


def test_an_empty_file_is_a_new_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.touch()
    with closing(Journal(JournalSettings(path=path))) as journal:
        assert journal.damaged_files() == []


def test_a_log_without_its_file_is_nobodys(made: list[Made], tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    Path(f"{path}-wal").write_bytes(made[2].files["-wal"])
    assert run(path, made[2].lines, event(10_000)) in {"set aside", "nothing missing, or the last commits"}


def test_the_lock_of_a_process_that_died_holds_nobody(made: list[Made], tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(made[0].files[""])
    Path(f"{path}.lock").write_text("4194304999\n")
    assert run(path, made[0].lines, event(10_000)) == "nothing missing, or the last commits"


def test_a_log_that_was_cut_anywhere_costs_its_last_commits_only(made: list[Made], tmp_path: Path) -> None:
    files, lines = made[2]
    log_size = len(files["-wal"])
    # Header, frame headers and the middle of pages: https://sqlite.org/fileformat2.html#walformat
    cuts = {0, 1, 31, 32, 33, 55, 56, 57, 32 + 24 + PAGE - 1, 32 + 24 + PAGE, log_size - 1}
    cuts |= set(range(0, log_size, log_size // 20))
    for cut in sorted(cuts):
        path = tmp_path / str(cut) / "journal.db"
        path.parent.mkdir()
        path.write_bytes(files[""])
        Path(f"{path}-wal").write_bytes(files["-wal"][:cut])
        assert run(path, lines, event(10_000)) == "nothing missing, or the last commits", f"cut at {cut}"


def test_damage_that_is_found_while_running_is_said_and_set_aside_when_the_file_is_opened_again(
    made: list[Made], tmp_path: Path
) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(made[0].files[""])
    with closing(Journal(JournalSettings(path=path))) as journal:
        journal.add_sink("behind", "earliest")
        with path.open("r+b") as file:
            file.seek(PAGE)
            file.write(b"\xa5" * (path.stat().st_size - PAGE))
        for _ in range(2):
            with pytest.raises(JournalError):
                read(journal, "behind", 10, 1 << 20, 0.0)
        trouble = journal.counters().last_error
        assert journal.damaged
        assert trouble == (f"{path}: database disk image is malformed; the file is damaged: opened again, it is set aside")
    with closing(Journal(JournalSettings(path=path))) as journal:
        assert len(journal.damaged_files()) == 1
        assert journal.counters().last_error is None


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), sqlite3.ProgrammingError("closed")])
def test_what_is_not_the_files_fault_is_no_damage(error: sqlite3.Error) -> None:
    assert not is_damage(error)
