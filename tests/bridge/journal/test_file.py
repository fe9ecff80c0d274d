"""Opening the journal's file: who may, what is done about damage, and which formats are understood."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.event import Event
from bridge.journal import Batch, Journal, JournalError, JournalReader, JournalSettings, Retry, Settlement
from bridge.journal.schema import SCHEMA_VERSION
from bridge.journal.writer import disk_space
from tests.support.journal_work import due_retries, waiting_keys


def fill(path: Path, events: int = 500) -> None:
    """Make a journal of some pages, closed in order."""
    with closing(Journal(JournalSettings(path=path))) as journal:
        journal.add_sink("a", "earliest")
        for i in range(events):
            key = i.to_bytes(16, "big")
            journal.append(Batch("s", 0.0, [Event(key, b'{"n":%d,"text":"%s"}' % (i, b"x" * 300))], []))


def accepts(path: Path) -> bool:
    """Whether a journal there opens and takes an event."""
    with closing(Journal(JournalSettings(path=path))) as journal:
        return journal.append(Batch("s", 0.0, [Event(b"new" + bytes(13), b"{}")], [])).accepted == 1


def aside(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


def test_the_directory_is_made_and_any_name_will_do(tmp_path: Path) -> None:
    path = tmp_path / "new dir" / "50% of what? #1.db"
    fill(path, 1)
    assert path.stat().st_size > 0


def test_a_second_process_is_refused_and_told_who_holds_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    script = "import sys; from bridge.journal import *; Journal(JournalSettings(path=sys.argv[1]))"
    with closing(Journal(JournalSettings(path=path))):
        second = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert f"{path}: in use by process {os.getpid()}; stop it, or give this one a journal.path of its own" in second.stderr
        with pytest.raises(JournalError, match=f"in use by process {os.getpid()}"):
            Journal(JournalSettings(path=path))
    subprocess.run([sys.executable, "-c", script, path], check=True)


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    fill(path, 3)
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(JournalError, match=rf"newer event-bridge \(format {SCHEMA_VERSION + 1}, this one knows"):
            Journal(JournalSettings(path=path))
    assert path.read_bytes() == before
    assert not aside(path)


def test_an_older_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    fill(path, 3)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=1")
    before = path.read_bytes()
    too_old = rf"format 1 is too old, this event-bridge knows {SCHEMA_VERSION}; give it a"
    with pytest.raises(JournalError, match=too_old):
        Journal(JournalSettings(path=path))
    with pytest.raises(JournalError, match=too_old):
        JournalReader(path)
    assert path.read_bytes() == before
    assert not aside(path)


@pytest.mark.parametrize("content", [b"this is not a database" * 100, b"SQLite format 3\0", b"\0" * 5000])
def test_what_is_no_database_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(content)
    with capture_logs() as logs:
        assert accepts(path)
    (kept,) = aside(path)
    assert kept.read_bytes() == content
    assert [(entry["log_level"], entry["kept_as"]) for entry in logs if "set aside" in entry["event"]] == [("error", str(kept))]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_was_cut_off_is_set_aside(tmp_path: Path, share: float) -> None:
    path = tmp_path / "journal.db"
    fill(path)
    os.truncate(path, int(path.stat().st_size * share))
    assert accepts(path)
    assert len(aside(path)) == 1


def test_a_file_with_a_damaged_schema_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    fill(path, 3)
    content = bytearray(path.read_bytes())
    content[100:200] = b"\xa5" * 100
    path.write_bytes(content)
    assert accepts(path)
    (kept,) = aside(path)
    assert kept.read_bytes() == content


def test_a_schema_that_is_no_text_any_more_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    fill(path, 3)
    content = path.read_bytes()
    damaged = content.replace(b"tablestreamsstreams", b"tablestr\xf4\x84msstreams").replace(
        b"CREATE TABLE streams", b"CREATE TABLX streams"
    )
    assert damaged != content
    path.write_bytes(damaged)
    assert accepts(path)
    assert len(aside(path)) == 1


def test_an_index_that_does_not_fit_its_rows_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with closing(Journal(JournalSettings(path=path))) as journal:
        journal.add_sink("a", "earliest")
        journal.append(Batch("s", 0.0, [Event(bytes(16), b"{}")], []))
        waiting = Retry(1, 0.0, b"{}", "the lane", 1, 0.0, 0.0, "timeout", "")
        journal.settle("a", Settlement(1, 2, retries=[waiting]))
    content = path.read_bytes()
    # The first copy is in the row, or in the index; in either case they differ.
    at = content.index(b"the lane")
    path.write_bytes(content[:at] + b"the line" + content[at + 8 :])
    with capture_logs() as logs, closing(Journal(JournalSettings(path=path))) as journal:
        journal.add_sink("a", "earliest")
        assert due_retries(journal, "a", 1.0, 10.0, 10, 1000) in ([], [waiting])
        assert due_retries(journal, "a", 1.0, 10.0, 10, 1000) in ([], [waiting])
        assert len(waiting_keys(journal, "a")) == journal.counters().sinks["a"].retrying
        assert not [line for line in logs if "trouble" in line["event"]]
    assert [line["table"] for line in logs if "index" in line["event"]] == ["retries"]
    assert not aside(path)


def test_flipped_bytes_anywhere_never_keep_the_journal_from_opening(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    fill(path, 60)
    good = path.read_bytes()
    # Page 1 tells the format of the file, which is refused when it seems to be a newer one; other pages are taken in turn.
    for position in range(4096 + 3, len(good), 1999):
        content = bytearray(good)
        content[position : position + 4] = bytes(byte ^ 0xFF for byte in content[position : position + 4])
        path.write_bytes(content)
        assert accepts(path), f"bytes flipped at {position}"
    assert aside(path)


def test_an_unwritable_place_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match=r"file/journal.db.lock: File exists; journal.path must be in a directory"):
        Journal(JournalSettings(path=tmp_path / "file" / "journal.db"))
    (tmp_path / "directory.db").mkdir()
    with pytest.raises(JournalError, match=r"directory.db: unable to open database file; journal.path must be a file"):
        Journal(JournalSettings(path=tmp_path / "directory.db"))


def test_a_full_disk_at_the_start_is_explained(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from bridge.journal import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try: Journal(JournalSettings(path=Path(sys.argv[1])))\n"
        "except JournalError as error: print(error)\n"
    )
    path = tmp_path / "journal.db"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}.lock: File too large; journal.path must be on a disk that can be written\n"


def test_the_disk_tells_its_size_or_is_taken_for_endless(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    fill(path, 1)
    space = disk_space(path)
    assert space.total == shutil.disk_usage(tmp_path).total
    assert path.stat().st_size <= space.available <= space.total
    assert min(disk_space(tmp_path / "missing.db")[:2]) > 1 << 60


def test_the_lock_is_let_go_when_opening_fails(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.mkdir()
    with pytest.raises(JournalError):
        Journal(JournalSettings(path=path))
    path.rmdir()
    assert accepts(path)
