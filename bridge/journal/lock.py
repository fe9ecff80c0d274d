"""The lock beside the journal: one process holds it, and writes into it how commands of the same user can ask it."""

import fcntl
import os
import stat
import tempfile
import time
from pathlib import Path
from typing import Final, TextIO

import structlog

from bridge.journal.file import JournalError, raise_full

log = structlog.get_logger(__name__)

_LOCK_TRIES: Final = 5
_LOCK_PAUSE: Final = 0.02
"""Seconds between tries to get the lock."""


def lock(path: Path) -> TextIO:
    """Make the directory, and claim the journal for this process for as long as the returned file is open.

    Raises:
        JournalError: Another process holds it, or the directory can't be written; `DiskFullError` if there is no space.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # What the holder wrote survives our attempt. For this user only: see `announce`.
        file = _opened(lock_path)
        if file.writable() and os.fstat(file.fileno()).st_mode & 0o077 and _locked(file):
            # Of an older version. Who has opened it already could read what is written into it: another one takes its place.
            lock_path.unlink()
            file.close()
            file = _opened(lock_path)
    except OSError as error:
        raise_full(path)
        raise JournalError(
            f"{lock_path}: {error.strerror}; journal.path must be in a directory that this user can write"
        ) from None
    if not _locked(file):
        process = file.readline().strip() or "unknown"
        file.close()
        raise JournalError(
            f"{path}: in use by process {process}; stop it, or give this one a journal.path of its own"
        ) from None
    try:
        announce(file)
        _warn_of_others(path)
    except OSError as error:
        file.close()
        raise_full(path)
        raise JournalError(f"{lock_path}: {error.strerror}; journal.path must be on a disk that can be written") from None
    return file


def _opened(lock_path: Path) -> TextIO:
    return os.fdopen(os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600), "r+")


def check_access(path: Path) -> None:
    """Find out, without a change, if this user can open a journal here, or make one.

    Raises:
        JournalError: The directory can't be made or written, or one of the files can't; `DiskFullError` if there is no space.
    """
    place = path
    try:
        for place in (path, *(path.with_name(path.name + suffix) for suffix in (".lock", "-wal", "-shm"))):
            if place.is_symlink() or place.exists():
                os.close(os.open(place, os.O_RDWR | (os.O_NOFOLLOW if place.suffix == ".lock" else 0)))
        place = next(directory for directory in path.absolute().parents if directory.exists())
        # Permissions do not tell of everything that keeps a file from being made. This one has no name.
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise_full(path)
        hint = "journal.path must be in a directory that this user can write"
        raise JournalError(f"{place}: {error.strerror}; {hint}") from None
    raise_full(place / path.name)


def _warn_of_others(path: Path) -> None:
    """Log that users who are not in the group can read or replace the files. New files and directories are private."""
    others = [*(other for other in path.parent.glob(f"{path.name}*") if other.is_file()), path.parent]
    for place in sorted(others):
        if place.stat().st_mode & (0o002 if place == path.parent else 0o007) and not place.stat().st_mode & stat.S_ISVTX:
            log.warning("other users of this machine have access to the journal", path=str(place), fix=f"chmod o-rwx {place}")


def announce(file: TextIO, url: str = "", secret: str = "") -> None:
    """Write into the locked file: the process, the URL of its HTTP port, and the secret that opens the operations there."""
    text = f"{os.getpid()}\n{url}\n{secret}\n".encode()
    # Not through the file's buffer: on a full disk, its rest would make trouble again when the file is closed.
    os.pwrite(file.fileno(), text, 0)
    os.ftruncate(file.fileno(), len(text))


def _locked(file: TextIO) -> bool:
    """Get the lock; try more than once, since `holder` takes it for a moment."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(_LOCK_PAUSE)
        else:
            return True
    return False
