"""The statements on the queues: what they find, and that they notice damage in a row."""

import sqlite3

import msgspec
import pytest

from bridge.journal import DeadLetter, DeadLetterQuery, Limits, Retry, Settlement, queues
from bridge.journal.pages import StoredDeadLetter
from bridge.journal.queues import letters_of


def retry(seq: int, ordering_key: str, due: float, json: bytes = b"{}") -> Retry:
    return Retry(seq, 0.0, json, ordering_key, 1, due, 0.0, "timeout", "no answer")


def due(db: sqlite3.Connection, now: float, *, limit: int = 100, max_bytes: int = 1000) -> list[int]:
    return [one.seq for one in queues.due_retries(db, "a", now, Limits(limit, max_bytes, 0, 1000.0))[0]]


def test_a_lane_is_due_when_its_first_event_is(db: sqlite3.Connection) -> None:
    retries = [retry(5, "x", 0.0), retry(3, "x", 20.0), retry(4, "y", 10.0), retry(6, "z", 30.0)]
    queues.save(db, "a", Settlement(retries=retries))
    queues.save(db, "b", Settlement(retries=[retry(1, "x", 0.0)]))
    assert queues.heads(db, "a") == ({"x": 20.0, "y": 10.0, "z": 30.0}, 8)
    assert due(db, 9.9) == []
    assert due(db, 10.0) == [4]
    assert due(db, 20.0) == [3, 4, 5]


def test_what_can_not_be_meant_is_due(db: sqlite3.Connection) -> None:
    queues.save(db, "a", Settlement(retries=[retry(1, "x", 1000.0), retry(2, "y", 1000.1)]))
    assert due(db, 10.0) == [2]


def test_due_events_are_taken_in_order_within_limits_and_at_least_one(db: sqlite3.Connection) -> None:
    queues.save(db, "a", Settlement(retries=[retry(seq, f"lane {seq}", 0.0, b"x" * 100) for seq in range(1, 10)]))
    assert due(db, 0.0, limit=2) == [1, 2]
    assert due(db, 0.0, max_bytes=300) == [1, 2, 3]
    assert due(db, 0.0, max_bytes=299) == [1, 2]
    assert due(db, 0.0, max_bytes=1) == [1]


def page(db: sqlite3.Connection) -> list[StoredDeadLetter]:
    return queues.dead_letters(db, DeadLetterQuery(), 0, 10).dead_letters


LETTER = letters_of([b"{}"])


def letter(seq: int) -> DeadLetter:
    return DeadLetter(seq, 1.0, b"{}", "x", 1, 2.0, 3.0, "rejected", "no")


@pytest.mark.parametrize(
    "change",
    [
        "json = CAST('{ }' AS BLOB)",
        "json = CAST(json AS TEXT) || 'x'",
        "seq = 7",
        "lane = 'y'",
        "lane = CAST(x'ff' AS TEXT)",
        "attempts = 'one'",
        "received = x'00'",
        "reason = 5",
        "crc = crc + 1",
        "crc = 'none'",
    ],
)
def test_whatever_changed_in_a_row_is_noticed(db: sqlite3.Connection, change: str) -> None:
    queues.save(db, "a", Settlement(retries=[retry(1, "x", 0.0), retry(2, "z", 0.0)]))
    queues.save(db, "a", Settlement(dead=[letter(1), letter(2)]))
    db.execute(f"UPDATE retries SET {change} WHERE seq = 1")
    db.execute(f"UPDATE dead_letters SET {change} WHERE seq = 1")
    assert queues.due_retries(db, "a", 0.0, Limits(100, 1000, 0, 1000.0)) == ([retry(2, "z", 0.0)], [1])
    first, second = page(db)
    assert first.damaged
    assert (second.damaged, second.seq) == (False, 2)
    assert queues.dead_letters_of(db, "a", [1, 2]) == {2: letter(2)}
    assert first.event == msgspec.Raw(b"null")
    assert queues.count_retries(db) == {"a": 2}


def test_a_letter_with_a_damaged_sink_is_nobodys(db: sqlite3.Connection) -> None:
    queues.save(db, "a", Settlement(dead=[letter(1)]))
    db.execute("UPDATE dead_letters SET sink = 'b'")
    (stored,) = page(db)
    assert (stored.sink, stored.damaged) == ("b", True)


def test_a_row_with_whole_numbers_for_times_fits_its_checksum(db: sqlite3.Connection) -> None:
    queues.save(db, "a", Settlement(retries=[Retry(1, 5, b"{}", "x", 1, 6, 7, "timeout", "no answer")]))
    queues.save(db, "a", Settlement(dead=[DeadLetter(1, 5, b"{}", "x", 1, 6, 7, "rejected", "nö")]))
    assert due(db, 10.0) == [1]
    assert not [stored for stored in page(db) if stored.damaged]


def test_what_waits_already_is_not_queued_twice(db: sqlite3.Connection) -> None:
    queues.save(db, "a", Settlement(retries=[retry(1, "x", 5.0)], dead=[letter(seq) for seq in (1, 2, 2, 9)]))
    assert queues.replay(db, "a", [1, 2, 3, 4, 99], cursor=9, now=0.0) == (LETTER + LETTER + LETTER + LETTER, 1)
    assert queues.count_retries(db) == {"a": 2}
    assert queues.weigh_dead_letters(db) == {}
    assert queues.heads(db, "a") == ({"x": 5.0}, 4)


def test_dead_letters_are_deleted_by_id_and_counted_by_sink(db: sqlite3.Connection) -> None:
    queues.save(db, "a", Settlement(dead=[letter(1), letter(2)]))
    queues.save(db, "b", Settlement(dead=[letter(1)]))
    assert queues.oldest_dead_letters(db, 2) == [(1, LETTER.size, 3.0), (2, LETTER.size, 3.0)]
    assert queues.oldest_dead_letters(db, 9, "b") == [(3, LETTER.size, 3.0)]
    assert queues.weigh_dead_letters(db) == {"a": LETTER + LETTER, "b": LETTER}
    assert list(queues.dead_letters_of(db, "a", [3, 1, 99])) == [1]
    assert list(queues.dead_letters_of(db, "b", [3, 1, 99])) == [3]
    assert queues.delete_dead(db, [3, 1, 99, 10**30]) == {"a": LETTER, "b": LETTER}
    assert queues.weigh_dead_letters(db) == {"a": LETTER}
