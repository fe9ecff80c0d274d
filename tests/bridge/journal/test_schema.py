"""A file of format 1, as the version before wrote it: brought to this format, or looked at and left alone."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from crc32c import crc32c

from bridge.event import Event
from bridge.journal import (
    Batch,
    DeadLetter,
    DeadLetterQuery,
    Journal,
    JournalError,
    JournalOptions,
    JournalReader,
    SinkBooks,
)
from bridge.journal.schema import SCHEMA_VERSION

FORMAT_1 = """
CREATE TABLE meta (next_seq INTEGER NOT NULL);
INSERT INTO meta VALUES (1);
CREATE TABLE batches (first INTEGER PRIMARY KEY, count INTEGER NOT NULL, received REAL NOT NULL, crc INTEGER NOT NULL,
    body BLOB NOT NULL);
CREATE TABLE seen (first INTEGER PRIMARY KEY, received REAL NOT NULL, uuids BLOB NOT NULL);
CREATE TABLE streams (name TEXT PRIMARY KEY, received INTEGER NOT NULL, accepted INTEGER NOT NULL,
    duplicate INTEGER NOT NULL, position TEXT) WITHOUT ROWID;
CREATE TABLE malformed (stream TEXT, reason TEXT, count INTEGER NOT NULL, PRIMARY KEY (stream, reason)) WITHOUT ROWID;
CREATE TABLE quarantine (id INTEGER PRIMARY KEY AUTOINCREMENT, stream TEXT NOT NULL, received REAL NOT NULL,
    reason TEXT NOT NULL, frame BLOB NOT NULL);
CREATE TABLE sinks (name TEXT PRIMARY KEY, start INTEGER NOT NULL, cursor INTEGER NOT NULL, delivered INTEGER NOT NULL,
    filtered INTEGER NOT NULL, dead INTEGER NOT NULL, dropped INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE retries (sink TEXT, seq INTEGER, received REAL NOT NULL, json BLOB NOT NULL, lane TEXT NOT NULL,
    attempts INTEGER NOT NULL, due REAL NOT NULL, since REAL NOT NULL, reason TEXT NOT NULL, error TEXT NOT NULL,
    PRIMARY KEY (sink, seq));
CREATE INDEX retries_by_lane ON retries (sink, lane, seq, due);
CREATE TABLE dead_letters (id INTEGER PRIMARY KEY AUTOINCREMENT, sink TEXT NOT NULL, seq INTEGER NOT NULL,
    received REAL NOT NULL, json BLOB NOT NULL, attempts INTEGER NOT NULL, first_failed REAL NOT NULL, died REAL NOT NULL,
    reason TEXT NOT NULL, error TEXT NOT NULL);
CREATE INDEX dead_letters_by_sink ON dead_letters (sink, id);
"""

NOW = 1000.0
AWAY = SinkBooks(10, 2, 0, 3, 0, pending=5, retrying=2, dead_letters=3)
BACK = SinkBooks(6, 1, 0, 2, 0, pending=3, retrying=0, dead_letters=2)
"""What the books say of the sinks below: of "back", two dead letters are from before it left, and were not counted."""


def event(number: int, resource: str = "/r/") -> bytes:
    return (
        b'{"type":"service","action":"update","state":"Running","resource_uri":"%s","parents":[],"uuid":"u-%d",'
        b'"datetime":"2016-02-01T16:47:28Z","namespace":"acme","received_at":"2016-02-01T16:47:28Z"}'
    ) % (resource.encode(), number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Ten events: one sink with a backlog, retries and dead letters; another that had left, and came back at the fifth."""
    path = tmp_path / "journal.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(f"BEGIN; {FORMAT_1} PRAGMA user_version=1; COMMIT;")
        for first in (1, 4, 7, 10):
            lines = [event(seq) for seq in range(first, min(first + 3, 11))]
            body = b"\n".join(lines)
            db.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", (first, len(lines), 100.0, crc32c(body), body))
            uuids = b"".join(seq.to_bytes(16, "big") for seq in range(first, first + len(lines)))
            db.execute("INSERT INTO seen VALUES (?, ?, ?)", (first, NOW, uuids))
        db.execute("UPDATE meta SET next_seq = 11")
        db.execute("INSERT INTO streams VALUES ('s', 12, 10, 1, 'here')")
        db.execute("INSERT INTO malformed VALUES ('s', 'not_json', 1)")
        db.execute("INSERT INTO quarantine (stream, received, reason, frame) VALUES ('s', 100.0, 'not_json', '{')")
        db.execute("INSERT INTO sinks VALUES ('away', 1, 8, 2, 0, 3, 0)")
        db.execute("INSERT INTO sinks VALUES ('back', 7, 8, 1, 0, 0, 0)")
        retry = (100.0, "/r/", 1, 500.0, 400.0, "timeout", "no answer")
        for seq, json in ((2, event(2)), (4, event(4))):
            db.execute("INSERT INTO retries VALUES ('away', ?, ?, ?, ?, ?, ?, ?, ?, ?)", (seq, retry[0], json, *retry[1:]))
        letters = [("away", 1, event(1)), ("back", 1, event(1)), ("away", 5, event(5, "")), ("away", 6, b"{damaged")]
        for sink, seq, json in [*letters, ("back", 2, event(2))]:
            db.execute(
                "INSERT INTO dead_letters (sink, seq, received, json, attempts, first_failed, died, reason, error)"
                " VALUES (?, ?, 100.0, ?, 3, 200.0, 300.0, 'rejected', 'not wanted')",
                (sink, seq, json),
            )
    return path


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        found: int = db.execute("PRAGMA user_version").fetchone()[0]
        return found


def test_a_file_of_format_1_goes_on_in_this_one(path: Path) -> None:
    for run in (0, 1):
        with closing(Journal(JournalOptions(path, durability="normal"), clock=lambda: NOW)) as journal:
            journal.add_sink("away", "latest")
            journal.add_sink("back", "latest")
            books = journal.books()
            assert books.sinks == {"away": AWAY, "back": BACK}
            assert (books.streams["s"].received, books.streams["s"].position) == (12 + run, "here")
            assert [one.frame for one in journal.quarantine()] == [b"{"]
            assert [entry.json for entry in journal.read("away", 10, 10_000, 0.0)] == [event(8), event(9), event(10)]
            due = journal.due_retries("away", NOW, 5000.0, 10, 10_000)
            assert [(retry.seq, retry.json, retry.lane, retry.attempts) for retry in due] == [
                (2, event(2), "/r/", 1),
                (4, event(4), "/r/", 1),
            ]
            assert journal.retrying("away") == 2
            assert journal.append(Batch("s", NOW, [Event((1).to_bytes(16, "big"), event(1))], [])) == (0, 1)
        assert version(path) == SCHEMA_VERSION


def test_its_dead_letters_have_a_lane_and_can_be_sent_back(path: Path) -> None:
    with closing(Journal(JournalOptions(path, durability="normal"), clock=lambda: NOW)) as journal:
        journal.add_sink("away", "latest")
        found = journal.dead_letters(DeadLetterQuery(sink="away")).found
        sound = DeadLetter(5, 100.0, event(5, ""), "u-5", 3, 200.0, 300.0, "rejected", "not wanted")
        assert [(one.id, one.damaged, one.letter.lane) for one in found] == [
            (1, False, "/r/"),
            (3, False, "u-5"),
            (4, True, ""),
        ]
        assert found[1].letter == sound
        assert journal.replay("away", [1, 3, 4], NOW) == 2
        due = journal.due_retries("away", NOW, 5000.0, 10, 10_000)
        assert [retry.json for retry in due] == [event(1), event(2), event(4), event(5, "")]


def test_a_retry_that_is_no_event_any_more_is_dropped(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE retries SET json = '{damaged' WHERE seq = 2")
    with closing(Journal(JournalOptions(path, durability="normal"), clock=lambda: NOW)) as journal:
        journal.add_sink("away", "latest")
        assert [retry.seq for retry in journal.due_retries("away", NOW, 5000.0, 10, 10_000)] == [4]
        books = journal.books().sinks["away"]
        assert (books.dropped, books.retrying, books.pending) == (1, 1, 4)


def test_a_text_that_is_none_does_not_keep_it_from_opening(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE dead_letters SET error = CAST(x'ff' AS TEXT) WHERE id = 1")
    with closing(Journal(JournalOptions(path, durability="normal"), clock=lambda: NOW)) as journal:
        assert len(journal.dead_letters(DeadLetterQuery()).found) == 5


def test_a_file_of_format_1_can_be_looked_at_and_is_left_alone(path: Path) -> None:
    before, beside = path.read_bytes(), sorted(path.parent.iterdir())
    with closing(JournalReader(path)) as reader:
        assert reader.books().sinks == {"away": AWAY, "back": BACK}
        letters = reader.dead_letters(DeadLetterQuery()).found
        assert [(one.id, one.sink, one.letter.seq, one.damaged) for one in letters] == [
            (1, "away", 1, False),
            (2, "back", 1, False),
            (3, "away", 5, False),
            (4, "away", 6, True),
            (5, "back", 2, False),
        ]
        assert [entry.json for entry in reader.events(0, 100, 1 << 20).entries] == [event(seq) for seq in range(1, 11)]
        assert reader.check() is None
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == (before, beside)
    assert version(path) == 1


def test_a_migration_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TRIGGER failing BEFORE UPDATE ON dead_letters BEGIN SELECT RAISE(FAIL, 'the disk is on fire'); END")
    with pytest.raises(JournalError, match="the disk is on fire"):
        Journal(JournalOptions(path, durability="normal"))
    assert version(path) == 1
    with closing(sqlite3.connect(path)) as db, db:
        assert "crc" not in {column[1] for column in db.execute("PRAGMA table_info(retries)")}
        db.execute("DROP TRIGGER failing")
    with closing(Journal(JournalOptions(path, durability="normal"), clock=lambda: NOW)) as journal:
        journal.add_sink("away", "latest")
        assert journal.books().sinks["away"] == AWAY


def test_both_ways_to_this_format_give_the_same_columns(path: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh.db"
    for each in (path, fresh):
        Journal(JournalOptions(each)).close()
    columns = []
    for each in (path, fresh):
        with closing(sqlite3.connect(each)) as db:
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
            columns.append({name: [row[1:] for row in db.execute(f"PRAGMA table_info({name})")] for name in tables})
    by_name = [{name: sorted(row, key=str) for name, row in found.items()} for found in columns]
    assert by_name[0] == by_name[1]
    assert columns[0]["sinks"] == columns[1]["sinks"]
