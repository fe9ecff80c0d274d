"""What an append writes beside the events: the quarantine and its bounds."""

import sqlite3

from bridge.event import Malformed
from bridge.journal import appender, tables
from bridge.journal.appender import QUARANTINE_BYTES, QUARANTINE_FRAMES
from bridge.journal.writer import used_bytes


def kept(db: sqlite3.Connection) -> list[bytes]:
    return [one.frame for one in tables.quarantine(db, 0, 1000)]


def test_the_quarantine_keeps_the_latest_and_not_all_of_a_large_one(db: sqlite3.Connection) -> None:
    frame = bytes(QUARANTINE_BYTES + 1)
    appender.insert_quarantine(db, "s", 0.0, [Malformed("too_large", frame)])
    assert kept(db) == [frame[:QUARANTINE_BYTES]]
    numbered = [Malformed("not_json", str(i).encode()) for i in range(QUARANTINE_FRAMES + 50)]
    appender.insert_quarantine(db, "s", 0.0, numbered[:-5])
    appender.insert_quarantine(db, "t", 0.0, numbered[-5:])
    assert kept(db) == [malformed.frame for malformed in numbered[50:]]
    some = tables.quarantine(db, 0, 10)
    assert [one.frame for one in some] == [malformed.frame for malformed in numbered[50:60]]
    (last,) = tables.quarantine(db, some[-1].id + QUARANTINE_FRAMES - 11, 10)
    assert (last.stream, last.reason, last.frame) == ("t", "not_json", numbered[-1].frame)


def test_a_full_quarantine_leaves_most_of_the_smallest_journal_free(db: sqlite3.Connection) -> None:
    smallest = 16 * 1024 * 1024
    appender.insert_quarantine(db, "s", 0.0, [Malformed("too_large", bytes(QUARANTINE_BYTES))] * QUARANTINE_FRAMES)
    assert used_bytes(db) < smallest / 3


def test_a_flood_of_malformed_messages_takes_few_statements(db: sqlite3.Connection) -> None:
    statements: list[str] = []
    db.set_trace_callback(statements.append)
    flood = [Malformed("not_json", b"x"), Malformed("not_object", b"1")] * 100_000
    appender.insert_quarantine(db, "s", 0.0, flood)
    db.set_trace_callback(None)
    assert len(statements) <= QUARANTINE_FRAMES + 3
    assert dict(db.execute("SELECT reason, count FROM malformed")) == {"not_json": 100_000, "not_object": 100_000}
