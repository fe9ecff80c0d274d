"""The journal's one writer: transactions on its file, the limit of its size, and the last error of each operation."""

import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal, NamedTuple

import structlog

from bridge.journal import file, lock
from bridge.journal.model import Closed
from bridge.journal.schema import is_damage

log = structlog.get_logger(__name__)

RESERVE: Final = 32 << 20
"""Bytes of the disk that the journal leaves free. Without it outcomes could not be recorded any more, and what was delivered
would fill the disk for ever."""

_LOG_BYTES: Final = 48 << 20
"""Bytes that SQLite's write-ahead log may take; an eighth of a small journal."""

_READERS_SECONDS: Final = 0.05
_LOG_PAUSE: Final = 0.25
"""How long the log waits for those who read before it can be emptied, and the pause before that is tried again."""


class Store:
    """The connection that writes, its locks, and the state of the file: bytes in use, commits without a sync, errors.

    `db`, `write`, `sync` and `close` belong to the thread that holds `lock`. Everything else may be called from any thread.
    The errors have a lock of their own, under which no other one is taken.

    Args:
        durability: "full" syncs the commits that ask for it; "normal" leaves it to `sync`.
        max_bytes: How many bytes the files may take, SQLite's log included, if the disk has room for that.

    Attributes:
        lock: The write lock.
        changed: Guards the counts in memory; notified when there are new events or retries.
        closing: Set once the journal is being closed.
        errors: The error of each operation that failed when it was tried last.
        last_error: The one that has lasted longest; None if every operation works.
        used: Bytes of the file in use after the last commit.
        log_limit: Bytes of SQLite's log at which nothing is taken that makes the journal larger.
        pinned_since: The monotonic time since which a reader keeps the log from being emptied; None if none does.
        damaged: True once damage was found that only opening the file anew puts right.

    Raises:
        JournalError: It can't be opened; the text says why and what to do.
    """

    def __init__(self, path: Path, durability: Literal["full", "normal"], max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.lock = threading.Lock()
        self.changed = threading.Condition()
        self.closing = threading.Event()
        self.errors: dict[str, str] = {}
        self.last_error: str | None = None
        self.damaged = False
        self._durability = durability
        self._lock_file = lock.lock(path)
        try:
            self.db = file.prepare(path)
        except file.JournalError:
            self._lock_file.close()
            raise
        self.used = used_bytes(self.db)
        self.pinned_since: float | None = None
        self._empty_log_at = 0.0
        self.log_limit = max(1 << 14, min(_LOG_BYTES, (disk_space(path).total - RESERVE) // 8, max_bytes // 8))
        # Few checkpoints, since each syncs the file; and well below the limit, since it grows on while others read.
        self.db.execute(f"PRAGMA wal_autocheckpoint={self.log_limit // 3 // 4096}")
        self.db.execute(f"PRAGMA journal_size_limit={self.log_limit}")
        self._unsynced = False
        self._synchronous = ""
        self._errors_lock = threading.Lock()

    # Writing: with the write lock held.

    @contextmanager
    def write(self, operation: str, *, synced: bool = False) -> Iterator[sqlite3.Connection]:
        """Commit all changes made inside, or none if it fails; without `synced`, `sync` makes them durable.

        Raises:
            Closed: The journal was closed.
            JournalError: The disk fails. It is the operation's error until it succeeds.
        """
        if self.closing.is_set():
            raise Closed
        synchronous = "FULL" if synced and self._durability == "full" else "NORMAL"
        self.empties_log()
        changes = self.db.total_changes
        try:
            if synchronous != self._synchronous:
                self.db.execute(f"PRAGMA synchronous={synchronous}")
                self._synchronous = synchronous
            self.db.execute("BEGIN IMMEDIATE")
            yield self.db
            changed = self.db.total_changes != changes
            # Before the commit, since nothing may fail after it: memory then agrees with the disk.
            used = used_bytes(self.db) if changed else self.used
            self.db.execute("COMMIT")
        except BaseException as error:
            if self.db.in_transaction:
                self.db.rollback()
            if isinstance(error, sqlite3.Error):
                raise self.failure(operation, error) from error
            raise
        if changed:
            self._unsynced, self.used = synchronous != "FULL", used
        if operation in self.errors:
            self.set_error(operation, None)

    def sync(self) -> None:
        """Make durable what was committed without a sync; a failure is recorded."""
        if self._unsynced and not self.closing.is_set():
            with suppress(file.JournalError), self.report_errors("sync"):
                self.db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                self._unsynced = False

    def close(self) -> None:
        """Write SQLite's log into the file and unlock it; other connections to it have to be closed before."""
        self.closing.set()
        if self._lock_file.closed:
            return
        with suppress(file.JournalError), self.report_errors("sync"):
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with suppress(sqlite3.Error):
            # The file says then that it is all there is; see `lacks_log`. Somebody who reads it prevents that.
            self.db.executescript("PRAGMA busy_timeout=0; PRAGMA journal_mode=DELETE")
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
        """Return whether the journal may take events now; once it was full, only `Space.make_room` says that it may again.

        Events leave a sixteenth of it to retries and dead letters, so that a sink that fails need not wait for the others.
        """
        disk = disk_space(self.path)
        return disk.log < self.log_limit and self.used < self._limit(disk.available) * 15 // 16 and "room" not in self.errors

    def limit(self) -> int:
        """Return how many bytes may be in use now: `max_bytes`, or what the disk leaves but for a reserve; the log is apart."""
        return self._limit(disk_space(self.path).available)

    def largest(self) -> int:
        """Return how many bytes may ever be in use: `max_bytes`, or the whole disk but for a reserve; the log is apart."""
        return self._limit(disk_space(self.path).total)

    def _limit(self, disk: int) -> int:
        return min(self.max_bytes, disk - RESERVE) - self.log_limit

    def empties_log(self) -> bool:
        """Empty SQLite's log if it is half full; return False if it is full, since a reader keeps it from that.

        With the write lock held. SQLite does that by itself, but not while there is always somebody who reads.
        """
        size = _size(f"{self.path}-wal")
        if size < self.log_limit // 2:
            self.pinned_since = None
            if "log" in self.errors:
                self.set_error("log", None)
            return True
        if (now := time.monotonic()) >= self._empty_log_at:
            with suppress(file.JournalError), self.report_errors("log"):
                self.db.execute(f"PRAGMA busy_timeout={int(_READERS_SECONDS * 1000)}")
                try:
                    (pinned, *_) = self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                finally:
                    self.db.execute(f"PRAGMA busy_timeout={file.BUSY_SECONDS * 1000}")
                if not pinned:
                    self.pinned_since = None
                    return True
            self._empty_log_at = now + _LOG_PAUSE
            self.pinned_since = self.pinned_since or now
        return size < self.log_limit

    # Errors: from any thread.

    def set_error(self, operation: str, error: str | None) -> None:
        """Record that an operation failed, or that it works; the first error of all is logged, and the end of the last."""
        if self.errors.get(operation) == error:
            return
        with self._errors_lock:
            before = next(iter(self.errors), None)
            if error is None:
                self.errors.pop(operation, None)
            else:
                self.errors[operation] = error
            after = next(iter(self.errors), None)
            self.last_error = None if after is None else self.errors[after]
        if after is None:
            log.info("the journal works again")
        elif after != before:
            log.error("the journal is in trouble, and tries again until it works", trouble=self.last_error)

    def failure(self, operation: str, error: sqlite3.Error) -> file.JournalError:
        """Record a failure of the disk, and return it as an error to raise."""
        damaged = is_damage(error)
        self.damaged = self.damaged or damaged
        hint = "; the file is damaged: opened again, it is set aside" if damaged else ""
        self.set_error(operation, f"{self.path}: {error}{hint}")
        return file.JournalError(f"{self.path}: {error}")

    @contextmanager
    def report_errors(self, operation: str) -> Iterator[None]:
        """Record a failure of the disk until the same operation succeeds, and raise it as a `JournalError`."""
        try:
            yield
        except sqlite3.Error as error:
            raise self.failure(operation, error) from error
        if operation in self.errors:
            self.set_error(operation, None)


class DiskSpace(NamedTuple):
    """Bytes of the journal's disk: all of them, those that are free or taken by the journal itself, and those of its log."""

    total: int
    available: int
    log: int = 0


def disk_space(path: Path) -> DiskSpace:
    """Return the space for the journal; without limits if the disk does not tell (some network file systems)."""
    log_size = _size(f"{path}-wal")
    try:
        disk = os.statvfs(path)
    except OSError:
        disk = None
    if disk is None or not disk.f_blocks:
        return DiskSpace(sys.maxsize, sys.maxsize, log_size)
    return DiskSpace(disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize + _size(path) + log_size, log_size)


def _size(path: Path | str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def used_bytes(db: sqlite3.Connection) -> int:
    """Return how many bytes of the file are in use."""
    pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)
