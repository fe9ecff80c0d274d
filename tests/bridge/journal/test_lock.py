"""The lock beside the journal: one holder, who can be found by commands of its user, and by nobody else."""

import fcntl
import os
from contextlib import closing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.journal import Holder, Journal, JournalError, JournalSettings, check_access, holder


def test_who_holds_a_journal_is_told_without_disturbing_anybody(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with pytest.raises(JournalError, match="there is no journal"):
        holder(path)
    assert list(tmp_path.iterdir()) == []

    with closing(Journal(JournalSettings(path=path))) as journal:
        assert [holder(path) for _ in range(2)] == [Holder(str(os.getpid()), "", "")] * 2
        journal.announce("http://127.0.0.1:9477", "a secret")
        assert holder(path) == Holder(str(os.getpid()), "http://127.0.0.1:9477", "a secret")
    assert holder(path) is None
    Journal(JournalSettings(path=path)).close()


def test_a_lock_that_an_older_version_made_for_all_is_replaced_so_that_who_has_it_open_reads_no_secret(tmp_path: Path) -> None:
    lock = tmp_path / "journal.db.lock"
    lock.touch(0o644)
    with lock.open() as stranger, closing(Journal(JournalSettings(path=tmp_path / "journal.db"))) as journal:
        journal.announce("http://127.0.0.1:9477", "a secret")
        assert lock.stat().st_mode & 0o777 == 0o600
        assert "a secret" in lock.read_text()
        assert "a secret" not in stranger.read()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("left alone")
    (tmp_path / "journal.db.lock").symlink_to(tmp_path / "precious")

    with pytest.raises(JournalError, match=r"journal\.db\.lock: "):
        Journal(JournalSettings(path=tmp_path / "journal.db"))
    assert (tmp_path / "precious").read_text() == "left alone"


def test_who_asks_for_the_holder_keeps_nobody_from_becoming_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal.db.lock").open("w") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        monkeypatch.setattr("bridge.journal.lock.time.sleep", lambda _: fcntl.flock(asking, fcntl.LOCK_UN))

        Journal(JournalSettings(path=tmp_path / "journal.db")).close()


def test_that_nobody_can_tell_who_holds_a_journal_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "journal.db").touch()
    (tmp_path / "journal.db.lock").mkdir()

    with pytest.raises(JournalError, match=r"journal\.db\.lock: "):
        holder(tmp_path / "journal.db")


def test_a_journal_that_others_can_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    Journal(JournalSettings(path=path)).close()
    path.chmod(0o644)
    with capture_logs() as logs:
        Journal(JournalSettings(path=path)).close()
    path.chmod(0o640)
    with capture_logs() as private:
        Journal(JournalSettings(path=path)).close()

    assert ("other users of this machine have access to the journal", f"chmod o-rwx {path}") in [
        (line["event"], line["fix"]) for line in logs
    ]
    assert private == []


def test_access_is_checked_without_a_change(tmp_path: Path) -> None:
    check_access(tmp_path / "new" / "deep" / "journal.db")
    assert list(tmp_path.iterdir()) == []
    with closing(Journal(JournalSettings(path=tmp_path / "journal.db"))):
        check_access(tmp_path / "journal.db")
        assert holder(tmp_path / "journal.db") is not None

    (tmp_path / "file").touch()
    (tmp_path / "journal.db-wal").unlink(missing_ok=True)
    (tmp_path / "journal.db-wal").mkdir()
    for path, words in (
        (tmp_path / "file" / "journal.db", "file: "),
        (Path("/proc/nowhere/journal.db"), "/proc: "),
        (tmp_path, f"{tmp_path.name}: Is a directory"),
        (tmp_path / "journal.db", "journal.db-wal: Is a directory"),
    ):
        with pytest.raises(JournalError, match=f"{words}.*journal.path must be in a directory that this user can write"):
            check_access(path)
