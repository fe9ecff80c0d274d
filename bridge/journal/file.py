"""Opening the journal's file: lock, damage, schema. What the tables mean is told in `bridge.journal`."""

import fcntl
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple, TextIO

import structlog

log = structlog.get_logger(__name__)

SCHEMA_VERSION: Final = 1

_SCHEMA: Final = """
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


class JournalError(Exception):
    """The journal can't be opened, read or written; the text says which file and why."""


def lock(path: Path) -> TextIO:
    """Make the directory, and claim the journal for this process for as long as the returned file is open.

    Raises:
        JournalError: Another process holds it, or the directory can't be written.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Opened for appending, so that the holder's process id survives our attempt.
        file = lock_path.open("a+")
    except OSError as error:
        raise JournalError(
            f"{lock_path}: {error.strerror}; journal.path must be in a directory that this user can write"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise JournalError(f"{path}: in use by process {holder}; stop it, or give this one a journal.path of its own") from None
    try:
        file.truncate(0)
        # Not through the file's buffer: on a full disk, its rest would make trouble again when the file is closed.
        os.write(file.fileno(), f"{os.getpid()}\n".encode())
    except OSError as error:
        file.close()
        raise JournalError(f"{lock_path}: {error.strerror}; journal.path must be on a disk that can be written") from None
    return file


class Space(NamedTuple):
    """Bytes of the journal's disk: all of them, and those that are free or taken by the journal itself."""

    total: int
    available: int


_UNLIMITED: Final = Space(sys.maxsize, sys.maxsize)


def disk_space(path: Path) -> Space:
    """How much space there is for the journal; without limits if the disk does not tell (some network file systems)."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return _UNLIMITED
    if not disk.f_blocks:
        return _UNLIMITED
    return Space(disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize + _size(path) + _size(f"{path}-wal"))


def _size(path: Path | str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - at every commit; a Path for each would take as long as the question
    except OSError:
        return 0


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a connection that any one thread at a time may use; transactions are ours to begin and end."""
    uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=30)


def prepare(path: Path) -> sqlite3.Connection:
    """Open the file for writing: check it, set it aside if it is damaged, make or migrate the tables.

    Raises:
        JournalError: It was written by a newer version, or can't be opened at all.
    """
    try:
        db = connect(path)
        damage = _damage(db)
        if damage:
            db.close()
            _set_aside(path, damage)
            db = connect(path)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA secure_delete=OFF")
        # A checkpoint every 16 MiB instead of every 4: fewer syncs of the database itself when many events come.
        db.execute("PRAGMA wal_autocheckpoint=4096")
        _migrate(db, path)
    except sqlite3.Error as error:
        raise JournalError(f"{path}: {error}; journal.path must be a file that this user can write") from None
    return db


def _damage(db: sqlite3.Connection) -> str | None:
    try:
        verdict: str = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if verdict == "ok" else verdict


def _set_aside(path: Path, damage: str) -> None:
    """Keep the damaged file for whoever wants to look, out of the way."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    log.error(
        "the journal is damaged and was set aside; events in it that were not delivered are lost unless it can be repaired",
        damage=damage,
        kept_as=str(aside),
    )


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise JournalError(
            f"{path}: written by a newer event-bridge (format {version}, this one knows {SCHEMA_VERSION}); "
            "run that version, or give this one a journal.path of its own"
        )
    if version < 1:
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
