"""The statements: what they find, and that they don't look at more than they must."""

import sqlite3

import pytest

from bridge.journal import appender, tables
from bridge.journal.tables import SinkRow


def store(db: sqlite3.Connection, rows: int) -> None:
    """Rows of two events each, from place 1 on."""
    db.execute("BEGIN")
    for first in range(1, 2 * rows, 2):
        appender.insert_batch(db, first, 0.0, {seq.to_bytes(16, "big"): b"{}" for seq in (first, first + 1)})
    db.execute("COMMIT")


def work_of(db: sqlite3.Connection, before: int) -> int:
    """How much SQLite has to do to delete what lies before a place, in hundreds of its instructions."""
    hundreds = 0

    def count() -> int:
        nonlocal hundreds
        hundreds += 1
        return 0

    db.set_progress_handler(count, 100)
    tables.delete_batches(db, before, 256)
    db.set_progress_handler(None, 0)
    return hundreds


def test_pruning_does_not_look_at_the_backlog(db: sqlite3.Connection) -> None:
    store(db, 5000)
    assert work_of(db, before=1) <= 2
    assert work_of(db, before=8) <= 2
    assert tables.oldest_first(db) == 7, "the row that ends after the place stays whole"


@pytest.mark.parametrize(
    ("row", "waits", "expected"),
    [
        (SinkRow(1, 5, 2, 1, 1, 0), (0, 1), SinkRow(1, 5, 2, 1, 1, 0)),
        (SinkRow(5, 5, 0, 0, 0, 0), (0, 3), SinkRow(2, 5, 0, 0, 3, 0)),
        (SinkRow(1, 5, 2, 1, 1, 0), (0, 0), SinkRow(1, 5, 2, 1, 1, 0, discarded=1)),
        (SinkRow(1, 5, 2, 0, 1, 0), (0, 1), SinkRow(1, 5, 2, 0, 1, 1)),
        (SinkRow(1, 5, 2, 0, 1, 0, 1), (3, 0), SinkRow(0, 5, 2, 0, 1, 0, 1)),
    ],
    ids=["balanced", "letters of before", "a letter was lost", "a retry was lost", "too much waits"],
)
def test_a_row_is_brought_into_balance_and_no_count_falls(row: SinkRow, waits: tuple[int, int], expected: SinkRow) -> None:
    balanced = row.balanced(11, *waits)
    assert balanced == expected
    counters = balanced.counters(11, *waits)
    exits = counters.delivered + counters.filtered + counters.dead + counters.dropped + counters.pending
    assert counters.accepted + counters.replayed == exits
    assert counters.dead == counters.dead_letters + counters.replayed + counters.discarded
    assert all(new >= old for new, old in zip(balanced[1:], row[1:], strict=True))
