"""The journal's one writer: transactions on its file, the limit of its size, and the last error of each operation."""

import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple

import structlog

from bridge.journal import file, lock
from bridge.journal.schema import is_damage

log = structlog.get_logger(__name__)

RESERVE: Final = 32 << 20
"""Bytes of the disk that events leave to SQLite's log (16 MiB, now and then more). Without it outcomes could not be recorded
any more, and what was delivered would fill the disk for ever."""


class Store:
    """The connection that writes, and the state of the file: bytes in use, commits without a sync, errors.

    `db`, `transaction`, `try_to_write`, `sync` and `close` belong to the thread that holds the journal's write lock. Everything
    else may be called from any thread. The errors have a lock of their own, under which no other one is taken.

    Args:
        durability: "full" syncs the commits that ask for it; "normal" leaves it to `sync`.
        max_bytes: How large the file may become, if the disk has room for that.

    Attributes:
        used: Bytes of the file in use after the last commit.
        damaged: True once damage was found that only opening the file anew puts right.

    Raises:
        JournalError: It can't be opened; the text says why and what to do.
    """

    def __init__(self, path: Path, durability: Literal["full", "normal"], max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._durability = durability
        self._lock_file = lock.lock(path)
        try:
            self.db = file.prepare(path)
        except file.JournalError:
            self._lock_file.close()
            raise
        self.used = used_bytes(self.db)
        self.damaged = False
        self._unsynced = False
        self._errors: dict[str, str] = {}
        self._errors_lock = threading.Lock()

    # Writing: with the write lock held.

    @contextmanager
    def transaction(self, *, synced: bool) -> Iterator[sqlite3.Connection]:
        """Commit all changes made inside, or none if it fails; without `synced`, `sync` makes them durable."""
        full = synced and self._durability == "full"
        changes = self.db.total_changes
        self.db.execute("PRAGMA synchronous=FULL" if full else "PRAGMA synchronous=NORMAL")
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
            changed = self.db.total_changes != changes
            # Before the commit, since nothing may fail after it: memory then agrees with the disk.
            used = used_bytes(self.db) if changed else self.used
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.rollback()
            raise
        if changed:
            self._unsynced = not full
            self.used = used

    def try_to_write(self, operation: str, write: Callable[[sqlite3.Connection], None], *, synced: bool) -> bool:
        """Write in a transaction; return False, with the error recorded, if the disk fails."""
        with self.swallow_errors(operation):
            with self.transaction(synced=synced) as db:
                write(db)
            return True
        return False

    def sync(self) -> None:
        """Make durable what was committed without a sync; a failure is recorded."""
        if self._unsynced:
            with self.swallow_errors("sync"):
                self.db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                self._unsynced = False

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._lock_file.closed

    def close(self) -> None:
        """Write SQLite's log into the file and unlock it; other connections to it have to be closed before."""
        with self.swallow_errors("sync"):
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.db.close()
        self._lock_file.close()

    def announce(self, url: str, secret: str) -> None:
        """Tell commands of this user how to ask this process; a failure is logged."""
        try:
            lock.announce(self._lock_file, url, secret)
        except OSError as error:
            log.warning("commands can't find this bridge by its journal; they need --url", error=error.strerror)

    # Size: from any thread.

    def has_room(self) -> bool:
        """Return whether the journal may take events now; once it was full, only `Space.make_room` says that it may again."""
        return self.used < self.limit() and "room" not in self._errors

    def limit(self) -> int:
        """Return how large the journal may become now: `max_bytes`, or what the disk has left but for the reserve."""
        return min(self.max_bytes, disk_space(self.path).available - RESERVE)

    def largest(self) -> int:
        """Return how large it may ever become: `max_bytes`, or the whole disk but for the reserve."""
        return min(self.max_bytes, disk_space(self.path).total - RESERVE)

    # Errors: from any thread.

    def last_error(self) -> str | None:
        """Return the error that has lasted longest; None if every operation works."""
        with self._errors_lock:
            return self._first_error()

    def has_error(self, operation: str) -> bool:
        """Return whether an operation failed when it was tried last."""
        return operation in self._errors

    def set_error(self, operation: str, error: str | None) -> None:
        """Record that an operation failed, or that it works; the first error of all is logged, and the end of the last."""
        if self._errors.get(operation) == error:
            return
        with self._errors_lock:
            before = self._first_error()
            if error is None:
                self._errors.pop(operation, None)
            else:
                self._errors[operation] = error
            after = self._first_error()
        if after is None:
            log.info("the journal works again")
        elif after != before:
            log.error("the journal is in trouble, and tries again until it works", trouble=after)

    @contextmanager
    def report_errors(self, operation: str) -> Iterator[None]:
        """Record a failure of the disk until the same operation succeeds, and raise it as a `JournalError`."""
        try:
            yield
        except sqlite3.Error as error:
            damaged = is_damage(error)
            self.damaged = self.damaged or damaged
            hint = "; the file is damaged: opened again, it is set aside" if damaged else ""
            self.set_error(operation, f"{self.path}: {error}{hint}")
            raise file.JournalError(f"{self.path}: {error}") from error
        except file.JournalError as error:
            self.set_error(operation, str(error))
            raise
        self.set_error(operation, None)

    @contextmanager
    def swallow_errors(self, operation: str) -> Iterator[None]:
        """Record a failure of the disk until the same operation succeeds, and go on."""
        with suppress(file.JournalError), self.report_errors(operation):
            yield

    def _first_error(self) -> str | None:
        return next(iter(self._errors.values()), None)


class DiskSpace(NamedTuple):
    """Bytes of the journal's disk: all of them, and those that are free or taken by the journal itself."""

    total: int
    available: int


def disk_space(path: Path) -> DiskSpace:
    """Return the space for the journal; without limits if the disk does not tell (some network file systems)."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return DiskSpace(sys.maxsize, sys.maxsize)
    if not disk.f_blocks:
        return DiskSpace(sys.maxsize, sys.maxsize)
    return DiskSpace(disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize + _size(path) + _size(f"{path}-wal"))


def _size(path: Path | str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def used_bytes(db: sqlite3.Connection) -> int:
    """Return how many bytes of the file are in use."""
    pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)
