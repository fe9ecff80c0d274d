"""The journal's one writer: transactions on its file, how large it may become, and what is wrong with it."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import structlog

from bridge.journal import file, tables
from bridge.journal.schema import is_damage

log = structlog.get_logger(__name__)

RESERVE: Final = 32 << 20
"""Bytes of the disk that events leave to SQLite's log (16 MiB, now and then more). Without it outcomes could not be recorded
any more, and what was delivered would fill the disk for ever."""

_HELP: Final = "; the file is damaged: opened again, it is set aside"


class Store:
    """The connection that writes, and what is known of the file: what is in use, what is not synced, what is wrong.

    `db`, `transaction`, `sync` and `close` are for whoever holds the journal's write lock. Everything else may be called from
    any thread, with or without that lock: troubles have a lock of their own, under which no other one is taken.

    Args:
        path: The file.
        durability: "full" syncs the commits that ask for it; "normal" leaves it to `sync`.
        max_bytes: How large the file may become, if the disk has room for that.

    Attributes:
        path: The file.
        db: The connection; what is written with it is written in a `transaction`.
        max_bytes: As above.
        used: How many bytes of the file are in use, after the last commit.
        damaged: Whether something was found in the file that only opening it anew puts right.

    Raises:
        JournalError: It can't be opened; the text says why and what to do.
    """

    def __init__(self, path: Path, durability: Literal["full", "normal"], max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._durability = durability
        self._lock_file = file.lock(path)
        try:
            self.db = file.prepare(path)
        except file.JournalError:
            self._lock_file.close()
            raise
        self.used = tables.used_bytes(self.db)
        self.damaged = False
        self._unsynced = False
        self._troubles: dict[str, str] = {}
        self._noting = threading.Lock()

    # Writing: with the write lock held.

    @contextmanager
    def transaction(self, *, synced: bool) -> Iterator[sqlite3.Connection]:
        """Commit what is done inside as a whole, or nothing of it if that fails; without `synced`, `sync` makes it durable."""
        full = synced and self._durability == "full"
        changes = self.db.total_changes
        self.db.execute("PRAGMA synchronous=FULL" if full else "PRAGMA synchronous=NORMAL")
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield self.db
            changed = self.db.total_changes != changes
            # Before the commit, since nothing may fail after it: what is on disk is then what memory says, too.
            used = tables.used_bytes(self.db) if changed else self.used
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.rollback()
            raise
        if changed:
            self._unsynced = not full
            self.used = used

    def sync(self) -> None:
        """Make durable what was committed without a sync; a failure is noted as trouble."""
        if self._unsynced:
            with self.watching_the_disk("sync"):
                self.db.execute("PRAGMA wal_checkpoint(PASSIVE)")
                self._unsynced = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._lock_file.closed

    def close(self) -> None:
        """Bring the file into order and let go of it; other connections to it have to be closed before."""
        with self.watching_the_disk("sync"):
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.db.close()
        self._lock_file.close()

    # Size: from any thread.

    def limit(self) -> int:
        """How large the journal may become now: by its settings, and so that a reserve is left on the disk."""
        return min(self.max_bytes, file.disk_space(self.path).available - RESERVE)

    def largest(self) -> int:
        """How large it may ever become: by its settings, and if it had the disk for itself."""
        return min(self.max_bytes, file.disk_space(self.path).total - RESERVE)

    # Troubles: from any thread.

    def trouble(self) -> str | None:
        """What is wrong first of all."""
        with self._noting:
            return self._first_trouble()

    def has_trouble(self, what: str) -> bool:
        """Whether something is wrong with doing a thing."""
        return what in self._troubles

    def set_trouble(self, what: str, trouble: str | None) -> None:
        """Note what is wrong with doing a thing, or that nothing is; the log tells what is wrong first of all."""
        if self._troubles.get(what) == trouble:
            return
        with self._noting:
            before = self._first_trouble()
            if trouble is None:
                self._troubles.pop(what, None)
            else:
                self._troubles[what] = trouble
            after = self._first_trouble()
        if after is None:
            log.info("the journal works again")
        elif after != before:
            log.error("the journal is in trouble, and tries again until it works", trouble=after)

    @contextmanager
    def telling_of_trouble(self, what: str) -> Iterator[None]:
        """Note a failure of the disk as trouble, until the same thing goes well, and raise it as a `JournalError`."""
        try:
            yield
        except sqlite3.Error as error:
            if is_damage(error):
                self.damaged = True
            self.set_trouble(what, f"{self.path}: {error}{_HELP if is_damage(error) else ''}")
            raise file.JournalError(f"{self.path}: {error}") from error
        except file.JournalError as error:
            self.set_trouble(what, str(error))
            raise
        self.set_trouble(what, None)

    @contextmanager
    def watching_the_disk(self, what: str) -> Iterator[None]:
        """Note a failure of the disk as trouble, until the same thing goes well, and go on."""
        with suppress(file.JournalError), self.telling_of_trouble(what):
            yield

    def _first_trouble(self) -> str | None:
        return next(iter(self._troubles.values()), None)
