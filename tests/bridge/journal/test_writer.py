"""The journal's one writer: all or nothing, durable when it says so, within its limits, and honest about what is wrong."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest
from structlog.testing import capture_logs

from bridge.journal import JournalError, appender, file, lock, schema, tables, writer
from bridge.journal.writer import RESERVE, Store, used_bytes

MAX_BYTES = 1 << 30


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    # Closed once, so that the tables are in the file and not in its log.
    Store(path, "full", MAX_BYTES).close()
    with closing(Store(path, "full", MAX_BYTES)) as opened:
        yield opened


def put(store: Store, first: int, *, synced: bool = True, size: int = 10) -> None:
    with store.write("test", synced=synced) as db:
        appender.insert_batch(db, first, 100.0, {first.to_bytes(16, "big"): bytes(size)})
        appender.add_counts(db, "s", (1, 1, 0), None)


def without_log(path: Path) -> int:
    """The next place by the file alone, without SQLite's log: what a checkpoint has put there."""
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    with closing(sqlite3.connect(f"{copy.as_uri()}?immutable=1", uri=True)) as db:
        return tables.next_seq(db)


# Transactions


def test_what_is_done_in_a_transaction_is_committed_and_counts_as_used(store: Store, path: Path) -> None:
    before = store.used
    put(store, 1, size=100_000)
    assert before + 90_000 < store.used < before + 110_000, "whole pages, some of which were there"
    assert store.used == used_bytes(store.db)
    with closing(file.connect(path, read_only=True)) as other:
        assert tables.next_seq(other) == 2


@pytest.mark.parametrize("error", [sqlite3.OperationalError("the disk is on fire"), KeyError("a bug"), KeyboardInterrupt()])
def test_a_transaction_that_fails_leaves_no_trace_and_the_next_one_goes_well(store: Store, error: BaseException) -> None:
    before = store.used

    def fail() -> None:
        with store.write("test", synced=True) as db:
            appender.insert_batch(db, 1, 100.0, {bytes(16): bytes(100_000)})
            raise error

    with pytest.raises(JournalError if isinstance(error, sqlite3.Error) else type(error)):
        fail()
    assert not store.db.in_transaction
    assert (store.used, tables.next_seq(store.db), tables.oldest_first(store.db)) == (before, 1, None)
    put(store, 1)
    assert tables.next_seq(store.db) == 2


@pytest.mark.parametrize(
    ("durability", "asked", "level"),
    [("full", {"synced": True}, 2), ("full", {"synced": False}, 1), ("normal", {"synced": True}, 1)],
)
def test_a_commit_is_synced_if_it_asks_for_it_and_durability_is_full(
    path: Path, durability: Literal["full", "normal"], asked: dict[str, bool], level: int
) -> None:
    with closing(Store(path, durability, MAX_BYTES)) as store:
        for before in (True, False):
            with store.write("test", synced=before):
                pass
            with store.write("test", **asked) as db:
                assert db.execute("PRAGMA synchronous").fetchone() == (level,)


def test_what_was_committed_without_a_sync_is_durable_after_one(store: Store, path: Path) -> None:
    put(store, 1, synced=False)
    assert without_log(path) == 1
    store.sync()
    assert without_log(path) == 2


def test_there_is_nothing_to_sync_after_a_synced_commit(store: Store, path: Path) -> None:
    put(store, 1, synced=False)
    put(store, 2, synced=True)
    with store.write("test"):
        pass
    store.sync()
    assert without_log(path) == 1, "a checkpoint costs more than the sync that the commit has made"


def test_a_sync_that_is_not_full_leaves_something_to_sync(path: Path) -> None:
    with closing(Store(path, "normal", MAX_BYTES)) as store:
        put(store, 1, synced=True)
        store.sync()
        assert without_log(path) == 2


# Size


def test_the_limit_is_the_setting_or_what_the_disk_leaves_but_for_a_reserve(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = MAX_BYTES - store.log_limit
    assert store.log_limit == 48 << 20
    disk = writer.DiskSpace(total=1 << 40, available=1 << 39)
    monkeypatch.setattr(writer, "disk_space", lambda _: disk)
    assert (store.limit(), store.largest()) == (most, most)
    disk = writer.DiskSpace(total=1 << 40, available=100 << 20)
    assert (store.limit(), store.largest()) == ((100 << 20) - RESERVE - store.log_limit, most)
    disk = writer.DiskSpace(total=200 << 20, available=RESERVE // 2)
    assert (store.limit(), store.largest()) == (-RESERVE // 2 - store.log_limit, (200 << 20) - RESERVE - store.log_limit)


def test_a_log_that_a_reader_keeps_from_being_emptied_leaves_no_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Store(path, "normal", 400_000)) as store, closing(sqlite3.connect(path, isolation_level=None)) as reader:
        assert store.log_limit == 50_000
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchone()
        for seq in range(1, 20):
            put(store, seq, size=3000)
        assert not store.has_room()
        assert not store.empties_log()
        assert store.pinned_since is not None
        reader.execute("ROLLBACK")
        monkeypatch.setattr(store, "_empty_log_at", 0.0)
        assert store.empties_log()
        assert store.has_room()


def test_a_log_that_can_not_be_emptied_is_trouble_until_it_is_small(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "log_limit", 2)
    put(store, 1)
    store.db.execute("BEGIN IMMEDIATE")
    store.db.execute("DELETE FROM batches")
    assert not store.empties_log()
    store.db.execute("ROLLBACK")
    assert "locked" in (store.last_error or ""), "no checkpoint within a transaction"
    monkeypatch.setattr(store, "log_limit", MAX_BYTES)
    assert store.empties_log()
    assert store.last_error is None


# Troubles


def test_the_first_trouble_is_told_until_it_is_over_and_then_the_next(store: Store) -> None:
    assert store.last_error is None
    with capture_logs() as logs:
        for _ in range(2):
            store.set_error("append", "no disk")
            store.set_error("read a", "no light")
        assert store.last_error == "no disk"
        assert store.errors.keys() == {"append", "read a"}
        store.set_error("append", None)
        assert store.last_error == "no light"
        store.set_error("room", None)
        store.set_error("read a", None)
        assert store.last_error is None
    said = [(entry["log_level"], entry.get("trouble")) for entry in logs]
    assert said == [("error", "no disk"), ("error", "no light"), ("info", None)], "changes only"


def test_a_failure_is_told_as_an_error_with_the_path_and_noted_until_the_same_thing_goes_well(store: Store, path: Path) -> None:
    with pytest.raises(JournalError, match=f"{path}: no such table: nowhere"), store.report_errors("look"):
        store.db.execute("SELECT * FROM nowhere")
    assert store.last_error == f"{path}: no such table: nowhere"
    with store.report_errors("read a"):
        pass
    assert "look" in store.errors, "something else went well"
    with store.report_errors("look"):
        pass
    assert store.last_error is None


def test_a_write_that_fails_is_noted_until_the_same_thing_goes_well(store: Store, path: Path) -> None:
    with pytest.raises(JournalError, match="no such table"), store.write("prune") as db:
        db.execute("SELECT * FROM nowhere")
    assert store.last_error == f"{path}: no such table: nowhere"
    with store.write("prune"):
        pass
    assert store.last_error is None


def test_what_is_not_the_disks_fault_is_no_trouble_and_ends_none(store: Store) -> None:
    store.set_error("look", "no light")
    for what in ("look", "read a"):
        with pytest.raises(ValueError, match="a bug"), store.report_errors(what):
            raise ValueError("a bug")
    assert store.last_error == "no light"
    assert "read a" not in store.errors


def test_a_sync_that_fails_is_trouble_and_is_made_later(store: Store, path: Path) -> None:
    put(store, 1, synced=False)
    store.db.execute("BEGIN IMMEDIATE")
    store.db.execute("DELETE FROM batches")
    store.sync()
    assert "locked" in (store.last_error or ""), "no checkpoint within a transaction"
    store.db.execute("ROLLBACK")
    store.sync()
    assert store.last_error is None
    assert without_log(path) == 2


# Beginning and end


def test_a_closed_store_lets_go_of_the_file_and_leaves_nothing_beside_it(path: Path) -> None:
    store = Store(path, "normal", MAX_BYTES)
    put(store, 1)
    with pytest.raises(JournalError, match="in use by process"):
        Store(path, "normal", MAX_BYTES)
    assert not store._lock_file.closed
    store.close()
    store.close()
    assert store._lock_file.closed
    assert sorted(file.name for file in path.parent.iterdir()) == ["journal.db", "journal.db.lock"]
    with closing(Store(path, "normal", MAX_BYTES)) as again:
        assert tables.next_seq(again.db) == 2
        assert again.used == used_bytes(again.db)


def test_a_file_that_can_not_be_opened_is_not_held(path: Path) -> None:
    Store(path, "full", MAX_BYTES).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={schema.SCHEMA_VERSION + 1}")
    with pytest.raises(JournalError, match="newer event-bridge"):
        Store(path, "full", MAX_BYTES)
    lock.lock(path).close()
