"""The commands about the journal and the quarantine, on a file; beside a bridge: tests/e2e/test_operator.py."""

import base64
import json
import os
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from bridge.admin.client import OperationError
from bridge.cli import journal as inspect_journal
from bridge.cli.journal import Wanted, backup, export, prune, quarantine, verify
from bridge.cli.target import Target
from bridge.event import Malformed
from bridge.journal import JournalExtent, JournalReader
from tests.support.journal_samples import RECEIVED, append, damage, event, opened

EVENTS = [event(number, "container" if number % 2 else "service") for number in range(1, 31)]
MALFORMED = [Malformed("not_json", b"\xff\x00"), Malformed("bad_field", '{"type":[],"ü":"\x1b[31m"}'.encode() + b" " * 500)]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal with thirty events, in rows of ten."""
    path = tmp_path / "journal.db"
    with opened(path, "audit") as made:
        for begin in (0, 10, 20):
            append(made, EVENTS[begin : begin + 10], MALFORMED if begin == 10 else [])
    return path


def json_of(events: list[int]) -> bytes:
    """What an export of the events at these places is."""
    return b"".join(EVENTS[place - 1].json + b"\n" for place in events)


def test_a_sound_journal_is_told_to_be_sound(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(Target(journal=journal)) == 0

    output = capsys.readouterr()
    assert output.out.startswith("30 events sound, 0 lost; places 1 to 30, ")
    assert output.err == ""


def test_what_is_lost_is_told_place_by_place(
    journal: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_journal, "ROWS_PER_VERIFY", 1)
    damage(journal, "UPDATE batches SET body = X'00' WHERE first = 11")

    assert verify(Target(journal=journal)) == 1

    output = capsys.readouterr()
    assert output.out.splitlines()[0] == "lost: 10 events from place 11 on"
    assert output.out.splitlines()[1].startswith("20 events sound, 10 lost; places 1 to 30, ")
    assert output.err == "damaged; `event-bridge journal export` saves what can be read\n"


def test_of_many_losses_the_first_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "journal.db"
    with opened(path, "audit") as made:
        for each in EVENTS:
            append(made, [each])
    damage(path, "UPDATE batches SET crc = crc + 1")

    assert verify(Target(journal=path)) == 1

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lost: 1 event from place 1 on"
    assert lines[20] == "lost: 10 more such stretches"


def scratch(journal: Path, name: str) -> None:
    """Overwrite the first page of a table or an index."""
    with closing(sqlite3.connect(journal)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    content = bytearray(journal.read_bytes())
    content[(page - 1) * size : page * size] = b"\xff" * size
    journal.write_bytes(content)


def test_damage_of_the_file_itself_is_told_even_if_no_event_is_lost(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scratch(journal, "retries_by_lane")

    assert verify(Target(journal=journal)) == 1

    output = capsys.readouterr().out
    assert "the file itself is damaged: " in output
    assert "30 events sound, 0 lost; places 1 to 30, " in output


@pytest.mark.parametrize("table", ["meta", "sinks", "streams", "seen", "dead_letters", "quarantine"])
def test_events_are_saved_whatever_else_is_damaged(journal: Path, tmp_path: Path, table: str) -> None:
    scratch(journal, table)

    assert verify(Target(journal=journal)) == 1
    assert export(Target(journal=journal), Wanted(), tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == json_of(list(range(1, 31)))


def test_what_is_appended_during_an_export_is_not_part_of_it(
    journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JournalReader, "extent", lambda _: JournalExtent(1, 26, 0))

    assert export(Target(journal=journal), Wanted(), tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == json_of(list(range(1, 26)))


def test_an_export_is_what_was_stored(journal: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert export(Target(journal=journal), Wanted(), None) == 0

    output = capfdbinary.readouterr()
    assert output.out == json_of(list(range(1, 31)))
    assert output.err == b"exported 30 events, places 1 to 30\n"


@pytest.mark.parametrize(
    ("wanted", "places"),
    [
        (Wanted(after=25), [26, 27, 28, 29, 30]),
        (Wanted(after=30), []),
        (Wanted(after=10**15), []),
        (Wanted(types=frozenset({"service"}), after=24), [26, 28, 30]),
        (Wanted(types=frozenset({"node", "container"}), after=24), [25, 27, 29]),
        (Wanted(since=RECEIVED), list(range(1, 31))),
        (Wanted(since=RECEIVED + timedelta(seconds=1)), []),
    ],
)
def test_an_export_holds_what_was_wanted(journal: Path, tmp_path: Path, wanted: Wanted, places: list[int]) -> None:
    assert export(Target(journal=journal), wanted, tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == json_of(places)


def test_an_export_of_a_damaged_journal_goes_as_far_as_possible(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(journal, "UPDATE batches SET body = X'00' WHERE first = 11")

    assert export(Target(journal=journal), Wanted(), tmp_path / "out.jsonl") == 1

    assert (tmp_path / "out.jsonl").read_bytes() == json_of([*range(1, 11), *range(21, 31)])
    assert capsys.readouterr().err.splitlines() == [
        "exported 20 events, places 1 to 30",
        "damaged: 10 events could not be read",
    ]


@pytest.mark.parametrize("is_there", [False, True])
def test_an_export_is_for_its_user_only(journal: Path, tmp_path: Path, is_there: bool) -> None:
    if is_there:
        (tmp_path / "saved.jsonl").touch(0o644)
    mask = os.umask(0o022)
    try:
        export(Target(journal=journal), Wanted(), tmp_path / "saved.jsonl")
    finally:
        os.umask(mask)

    assert (tmp_path / "saved.jsonl").stat().st_mode & 0o777 == 0o600


def test_an_export_is_put_together_of_pages(journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect_journal, "EVENTS_PER_PAGE", 7)

    assert export(Target(journal=journal), Wanted(), tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == json_of(list(range(1, 31)))


def test_an_output_that_can_not_be_written_is_told(journal: Path, tmp_path: Path) -> None:
    with pytest.raises(OperationError, match=r"nowhere/out\.jsonl: No such file or directory"):
        export(Target(journal=journal), Wanted(), tmp_path / "nowhere" / "out.jsonl")


def test_malformed_messages_are_listed_with_their_beginnings(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quarantine(Target(journal=journal), as_json=False) == 0

    output = capsys.readouterr()
    assert [line.split()[:6] for line in output.out.splitlines()] == [
        ["ID", "STREAM", "RECEIVED", "REASON", "BYTES", "BEGINNING"],
        ["1", "acme", "2026-11-23T10:00:00Z", "not_json", "2", "\N{REPLACEMENT CHARACTER}·"],
        ["2", "acme", "2026-11-23T10:00:00Z", "bad_field", "524", '{"type":[],"ü":"·[31m"}'],
    ]
    assert output.err == "2 malformed messages\n"


def test_malformed_messages_are_exported_with_every_byte_that_is_kept(
    journal: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_journal, "MESSAGES_PER_PAGE", 1)

    assert quarantine(Target(journal=journal), as_json=True) == 0

    output = capsys.readouterr()
    binary, text = map(json.loads, output.out.splitlines())
    assert binary == {
        "id": 1,
        "stream": "acme",
        "received": "2026-11-23T10:00:00Z",
        "reason": "not_json",
        "base64": base64.b64encode(MALFORMED[0].frame).decode(),
    }
    assert text["text"].encode() == MALFORMED[1].frame
    assert output.err == ""


def test_an_empty_quarantine_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path / "journal.db"):
        pass

    assert quarantine(Target(journal=tmp_path / "journal.db"), as_json=False) == 0
    assert capsys.readouterr() == ("", "no malformed messages\n")


def test_pruning_the_file_tells_what_became_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "")
    Path("bridge.yaml").write_text("streams: {acme: {}}\njournal: {path: journal.db}\n")
    with opened(tmp_path / "journal.db") as made:
        for number in range(300):
            append(made, [event(number)])

    assert prune(Target()) == 0
    assert capsys.readouterr().out.endswith(" are in use\n")
    with closing(JournalReader(tmp_path / "journal.db")) as reader:
        assert reader.extent().first == reader.extent().next
    assert prune(Target()) == 0
    assert capsys.readouterr().out.startswith("0 bytes became free, ")


def test_a_backup_is_whole_private_and_never_overwrites(
    journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copies" / "backup.db"
    copy.parent.mkdir()
    with opened(journal, "audit") as running:
        append(running, [event(31)])
        assert backup(Target(journal=journal), copy) == 0
        append(running, [event(32)])

    assert capsys.readouterr().out.startswith(f"{copy}: 31 events sound, 0 lost; places 1 to 31, ")
    assert copy.stat().st_mode & 0o777 == 0o600
    assert list(copy.parent.iterdir()) == [copy]
    with pytest.raises(OperationError, match=r"backup\.db: exists; a backup overwrites nothing"):
        backup(Target(journal=journal), copy)
    with pytest.raises(OperationError, match="No such file or directory"):
        backup(Target(journal=journal), tmp_path / "nowhere" / "backup.db")
    with opened(copy, "audit") as restored:
        assert running.counters().sinks["audit"].pending == 32
        assert restored.counters().sinks["audit"].pending == 31


def test_nothing_is_left_of_a_backup_that_fails(journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "backup.db"

    def full(_: Path, how: str) -> sqlite3.Connection:
        if how == "mode=rw":
            raise sqlite3.OperationalError("database or disk is full")
        return sqlite3.connect(journal, isolation_level=None)

    monkeypatch.setattr("bridge.journal.file._connect", full)
    with pytest.raises(OperationError, match=r"backup\.db: database or disk is full"):
        backup(Target(journal=journal), copy)
    assert not copy.exists()


def test_half_of_a_copy_is_called_that(journal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = tmp_path / "half.db"
    with opened(journal, "audit") as running:
        append(running, [event(31)])
        half.write_bytes(journal.read_bytes())
    capsys.readouterr()

    assert verify(Target(journal=half)) == 1
    assert capsys.readouterr().err.startswith("half.db-wal is missing: this looks like half of a copy")
    assert verify(Target(journal=journal)) == 0
    half.write_bytes(journal.read_bytes())
    assert verify(Target(journal=half)) == 0
