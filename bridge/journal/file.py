"""Opening the journal's file: damage, format. The tables are described in `bridge.journal`."""

import os
import sqlite3
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from bridge.journal import schema, tables
from bridge.journal.schema import find_damage, is_damage

log = structlog.get_logger(__name__)

_ASIDE: Final = ".damaged-"
"""Stands between the name of a damaged journal and the time at which it was set aside."""


class JournalError(Exception):
    """The journal can't be opened, read or written; the text says which file and why."""


class UnknownSinkError(JournalError):
    """The sink whose dead letters are to be replayed is not configured."""


class DiskFullError(JournalError):
    """The journal can't be opened because its disk is full, which may pass."""


BUSY_SECONDS: Final = 30
"""How long SQLite waits for other connections to the file."""

_LEAST: Final = 1 << 20
"""Bytes that a disk has to have free to open a journal on it."""


def raise_full(path: Path) -> None:
    """Say that the disk is full, if that is what is wrong."""
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < _LEAST:
        raise DiskFullError(f"{path}: the disk is full; the journal is opened when there is space") from None


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Open a connection that any one thread at a time may use; transactions are ours to begin and end."""
    return _connect(path, "mode=ro" if read_only else "mode=rwc")


def connect_to_any(path: Path) -> sqlite3.Connection:
    """Open a connection for reading to a file that another process may have open.

    A file that was closed in order is all there is, and is read as it is: SQLite makes no files beside it then.

    Raises:
        JournalError: It can't be opened, or is no journal, or is of another format.
    """
    try:
        if not path.is_file():
            raise JournalError(f"{path}: no such file; is journal.path right?")
        wal = path.with_name(path.name + "-wal")
        with_log = (wal.exists() and wal.stat().st_size > 0) or path.with_name(path.name + "-shm").exists()
        db = _connect(path, "mode=ro" if with_log else "mode=ro&immutable=1")
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    except sqlite3.Error as error:
        raise JournalError(f"{path}: {error}") from None
    try:
        # Without this, SQLite refuses a file that was cut off as a whole. Nothing is written: the connection only reads.
        db.execute("PRAGMA writable_schema=ON")
        _refuse_other_formats(db, path)
        if not schema.version(db) or not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'batches'").fetchone():
            raise JournalError(f"{path}: not a journal")  # noqa: TRY301 - one way out for all that is wrong
    except (sqlite3.Error, UnicodeDecodeError) as error:
        db.close()
        raise JournalError(f"{path}: {error}; not a journal, or too damaged to be read") from None
    except JournalError:
        db.close()
        raise
    return db


def lacks_log(path: Path) -> bool:
    """Return True if SQLite's log belongs to the file and is not there: somebody copied one file of two.

    A journal that was closed in order needs no log, and says so. One that an earlier version closed does not say so.

    Raises:
        OSError: The file can't be read.
    """
    with path.open("rb") as opened:
        # https://sqlite.org/fileformat2.html#file_format_version_numbers
        return opened.read(20)[18:] == b"\2\2" and not path.with_name(path.name + "-wal").exists()


def backup(path: Path, copy: Path) -> None:
    """Copy a journal as it is at one instant, beside a running process or not, into a new file for this user only.

    Raises:
        JournalError: The journal can't be read, or the copy exists or can't be written; none is left then.
    """
    with closing(connect_to_any(path)) as source:
        try:
            os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            raise JournalError(f"{copy}: exists; a backup overwrites nothing") from None
        except OSError as error:
            raise JournalError(f"{copy}: {error.strerror}") from None
        try:
            with closing(_connect(copy, "mode=rw")) as target:
                source.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")
        except BaseException as error:
            copy.unlink(missing_ok=True)
            if isinstance(error, sqlite3.Error):
                raise JournalError(f"{copy}: {error}") from None
            raise


def _connect(path: Path, how: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{how}"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
    # A flipped bit in a text must not keep anybody from reading the others.
    db.text_factory = partial(str, encoding="utf-8", errors="replace")
    return db


def damage(db: sqlite3.Connection) -> str | None:
    """Run SQLite's own check of the structure; return what is wrong, or None."""
    try:
        verdict: str = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError:
        raise
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        # SQLite quotes the damaged schema in what it says, and Python wants to read that.
        return str(error)
    return None if verdict == "ok" else verdict


def prepare(path: Path) -> sqlite3.Connection:
    """Open the file for writing: check it, set it aside if it is damaged, create the tables.

    Raises:
        JournalError: It is of another format, or can't be opened at all; `DiskFullError` if there is no space.
    """
    try:
        try:
            return _prepare(path)
        except sqlite3.Error as error:
            if not is_damage(error) and not _is_misfit(error, path):
                raise
            _set_aside(path, str(error))
            return _prepare(path)
    except sqlite3.Error as error:
        raise_full(path)
        raise JournalError(f"{path}: {error}; journal.path must be a file that this user can write") from None


def _prepare(path: Path) -> sqlite3.Connection:
    db = connect(path)
    try:
        _raise_damage(damage(db))
        _refuse_other_formats(db, path)
        _refuse_foreign(db, path)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA secure_delete=OFF")
        schema.create(db)
        db.execute(f"PRAGMA user_version={schema.SCHEMA_VERSION}")  # To know whether it can be written.
        _mend_indexes(db, path)
        _raise_damage(find_damage(db))
        _forget_the_impossible(db, path)
    except BaseException:
        db.close()
        raise
    return db


def _is_misfit(error: sqlite3.Error, path: Path) -> bool:
    """Return True for a file with other tables, or one that only a newer SQLite may write."""
    code = getattr(error, "sqlite_errorcode", None)
    if code != sqlite3.SQLITE_READONLY:
        # The statements are right: where SQLite finds them wrong, it is the file that has other tables.
        return code == sqlite3.SQLITE_ERROR
    with path.open("rb") as file:
        # https://sqlite.org/fileformat2.html#file_format_version_numbers
        return file.read(19)[18:] > b"\2"


def _raise_damage(found: str | None) -> None:
    if found:
        raise sqlite3.DatabaseError(found)


def damaged_files(path: Path) -> list[Path]:
    """The damaged files that were set aside and are still there, oldest first."""
    beginning = path.name + _ASIDE
    return sorted(
        path.with_name(name)
        for name in os.listdir(path.parent)
        if name.startswith(beginning) and not name.endswith(("-wal", "-shm"))
    )


def _set_aside(path: Path, found: str) -> None:
    """Rename a damaged file, so that it can be looked into later."""
    when = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    aside = path.with_name(path.name + _ASIDE + when)
    while aside.exists():
        aside = aside.with_name(aside.name + "-again")
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    log.error(
        "the journal is damaged and was set aside; events in it that were not delivered are lost unless it can be repaired",
        damage=found,
        kept_as=str(aside),
    )


def _refuse_other_formats(db: sqlite3.Connection, path: Path) -> None:
    version = schema.version(db)
    if version > schema.SCHEMA_VERSION:
        raise JournalError(
            f"{path}: written by a newer event-bridge (format {version}, this one knows {schema.SCHEMA_VERSION}); "
            "run that version, or give this one a journal.path of its own"
        )
    if 0 < version < schema.OLDEST_VERSION:
        raise JournalError(
            f"{path}: format {version} is too old, this event-bridge knows {schema.SCHEMA_VERSION}; "
            "give it a journal.path of its own"
        )


def _refuse_foreign(db: sqlite3.Connection, path: Path) -> None:
    """Leave alone what somebody else keeps in a database of this name."""
    found = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if found and not schema.version(db) and not found & {"batches", "seen", "sinks"}:
        raise JournalError(f"{path}: a database of something else, not a journal; journal.path must be a file of its own")


def _forget_the_impossible(db: sqlite3.Connection, path: Path) -> None:
    """Forget uuids of events that are yet to come: the row of such an event could not be stored."""
    rows = db.execute("DELETE FROM seen WHERE first >= ?", (tables.next_seq(db),)).rowcount
    if rows:
        log.error("uuids of events that do not exist were damaged and are forgotten", path=str(path), batches=rows)


def _mend_indexes(db: sqlite3.Connection, path: Path) -> None:
    """Make the indexes of the queues say what their rows say; the quick check does not compare them."""
    for table in ("retries", "dead_letters"):
        if db.execute(f"PRAGMA integrity_check({table})").fetchone()[0] != "ok":
            db.execute(f"REINDEX {table}")
            log.error("an index of the journal was damaged and was made anew", path=str(path), table=table)
