"""The commands about dead letters, on a file; beside a running bridge they are tried in tests/e2e/test_operator.py."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bridge.admin.client import OperationError
from bridge.cli import dead_letter_table, dead_letters
from bridge.cli.dead_letters import Refused, Selection, drop, replay, show_list, show_one
from bridge.cli.target import Target
from bridge.journal import DeadLetterQuery
from tests.support.journal_samples import append, bury, damage, event, opened, uuid

EVENTS = [event(number) for number in range(1, 11)]
DIED = datetime.now(UTC) - timedelta(hours=2, minutes=5)
ALL = Selection(DeadLetterQuery())
ALERTS = Selection(DeadLetterQuery(sink="alerts"))


@pytest.fixture(autouse=True)
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A journal in an own directory: `alerts` has ten dead letters (1 to 10), `audit` the same ten once more."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "")
    configure(1000)
    path = tmp_path / "journal.db"
    with opened(path, "alerts", "audit") as made:
        append(made, EVENTS)
        bury(made, "alerts", 1, EVENTS, died=DIED.timestamp())
        bury(made, "audit", 1, EVENTS, reason="too_old", died=DIED.timestamp())
    return path


def configure(max_pending: int) -> None:
    sink = f"{{type: webhook, url: 'http://127.0.0.1:1', retry: {{max_pending: {max_pending}}}}}"
    Path("bridge.yaml").write_text(
        f"streams: {{acme: {{}}}}\nsinks: {{alerts: {sink}}}\njournal: {{path: journal.db}}\nhttp: {{listen: 'off'}}\n"
    )


def ids(selection: Selection, capsys: pytest.CaptureFixture[str]) -> list[int]:
    capsys.readouterr()
    show_list(Target(), selection, as_json=True)
    return [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]


def test_a_list_elsewhere_than_on_a_terminal_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_list(Target(), ALERTS._replace(limit=2), as_json=False) == 0

    output = capsys.readouterr()
    header, first, second = output.out.splitlines()
    assert header.split() == ["ID", "SINK", "DIED", "REASON", "TRIES", "EVENT", "RESOURCE", "ERROR"]
    assert first.split()[:7] == [
        "1",
        "alerts",
        DIED.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "rejected",
        "3",
        "container/update",
        f"/api/app/v1/acme/container/{uuid(0)}/",
    ]
    assert first.endswith("answered 400 ·[31mBad")
    assert second.startswith(" 2  alerts")
    assert output.err == "2 dead letters\n"


def test_a_list_on_a_terminal_fits_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letter_table, "line_width", lambda: 100)

    show_list(Target(), ALERTS._replace(limit=1), as_json=False)

    line = capsys.readouterr().out.splitlines()[1]
    facts = f"rejected      3  container/update  {uuid(0)[:8]}  answered 400 ·[31mBad"
    assert re.fullmatch(r" 1  alerts  2 h \d+ min ago  " + re.escape(facts), line)
    assert len(line) <= 100


def test_a_line_of_json_is_the_whole_dead_letter(capsys: pytest.CaptureFixture[str]) -> None:
    show_list(Target(), Selection(DeadLetterQuery(uuid=uuid(3), sink="audit")), as_json=True)

    output = capsys.readouterr()
    letter = json.loads(output.out)
    assert (letter["id"], letter["sink"], letter["reason"], letter["damaged"]) == (13, "audit", "too_old", False)
    assert letter["event"] == json.loads(EVENTS[2].json)
    assert output.err == ""


def test_pages_are_put_together(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "DEAD_LETTERS_PER_PAGE", 3)

    assert ids(ALL, capsys) == list(range(1, 21))
    assert ids(ALL._replace(limit=7), capsys) == list(range(1, 8))


def test_nothing_found_is_said_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_list(Target(), Selection(DeadLetterQuery(reason="too_large")), as_json=False) == 0
    assert capsys.readouterr() == ("", "no dead letters\n")


def test_a_sink_that_nobody_knows_is_told_from_one_without_dead_letters() -> None:
    with pytest.raises(OperationError, match=r"^there is no sink alert, nor a dead letter of it; sinks are alerts, audit$"):
        show_list(Target(), Selection(DeadLetterQuery(sink="alert")), as_json=True)


def test_one_is_shown_in_full_by_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_one(Target(), "3", as_json=False) == 0

    text = capsys.readouterr().out
    assert text.startswith("dead letter 3\n  sink          alerts\n  reason        rejected\n")
    assert "  error         answered 400 ·[31mBad\n" in text
    assert re.search(rf"  died          {re.escape(DIED.isoformat())} \(2 h \d+ min ago\)\n", text)
    assert json.loads(text[text.index("{") :]) == json.loads(EVENTS[2].json)


def test_all_of_an_event_are_shown_by_its_uuid(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_one(Target(), uuid(3), as_json=False) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("dead letter")] == [
        "dead letter 3",
        "dead letter 13",
    ]

    assert show_one(Target(), uuid(3), as_json=True) == 0
    assert [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()] == [3, 13]


@pytest.mark.parametrize(
    ("key", "said"), [("99", "there is no dead letter 99\n"), (uuid(99), f"there is no dead letter of event {uuid(99)}\n")]
)
def test_one_that_is_not_there_is_a_failure(key: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_one(Target(), key, as_json=False) == 1
    assert capsys.readouterr() == ("", said)


def test_a_replay_on_the_file_sends_what_there_is_room_for(capsys: pytest.CaptureFixture[str]) -> None:
    configure(8)

    assert replay(Target(), ALERTS, dry_run=False, patience=60.0) == 1

    output = capsys.readouterr()
    assert output.err == (
        "alerts: 4 dead letters queued, 6 left: alerts has 4 events waiting for a retry and takes no more now;"
        " replay the rest while the bridge runs\n"
    )
    assert ids(ALERTS, capsys) == [5, 6, 7, 8, 9, 10]


def test_a_replay_by_numbers_takes_those_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(Target(), Selection(DeadLetterQuery(), [3, 99, 1, 3]), dry_run=False, patience=60.0) == 0

    assert capsys.readouterr() == ("alerts: 2 dead letters queued\n", "there is no dead letter 99\n")
    assert ids(ALERTS, capsys) == [2, *range(4, 11)]


def test_what_a_sink_that_is_not_configured_has_stays(capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(Target(), ALL, dry_run=False, patience=60.0) == 1

    output = capsys.readouterr()
    assert output.out == "alerts: 10 dead letters queued\n"
    assert output.err == (
        "audit: 0 dead letters queued, 10 left: no sink audit is configured, so that nothing can be sent to it again\n"
    )
    assert ids(ALL, capsys) == list(range(11, 21))


def test_a_second_replay_sends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    replay(Target(), ALERTS, dry_run=False, patience=60.0)
    capsys.readouterr()

    assert replay(Target(), ALERTS, dry_run=False, patience=60.0) == 0
    assert capsys.readouterr() == ("", "no dead letters\n")


def test_a_dry_run_shows_which_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert replay(Target(), ALL._replace(limit=12), dry_run=True, patience=60.0) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 13
    assert output.err == "would be queued: 10 dead letters of alerts, 2 dead letters of audit; nothing was changed\n"

    assert drop(Target(), ALERTS, dry_run=True, yes=True, ask=None) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 11
    assert output.err == "would be deleted: 10 dead letters of alerts; nothing was changed\n"
    assert ids(ALL, capsys) == list(range(1, 21))


def test_damaged_ones_are_not_sent_but_dropped(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(journal, "UPDATE dead_letters SET json = X'00' WHERE id IN (2, 3)")

    assert replay(Target(), ALERTS._replace(limit=3), dry_run=False, patience=60.0) == 1
    output = capsys.readouterr()
    assert output.out == "alerts: 1 dead letter queued\n"
    assert output.err == "damaged, and can't be queued: 2 dead letters of alerts\n"

    show_one(Target(), "2", as_json=False)
    assert "its bytes changed on the disk" in capsys.readouterr().out
    show_list(Target(), Selection(DeadLetterQuery(), [2]), as_json=False)
    line = capsys.readouterr().out.splitlines()[1]
    assert " ".join(line.split()) == "2 alerts - damaged 0 - - its bytes changed on the disk"

    assert drop(Target(), ALERTS, dry_run=False, yes=True, ask=None) == 0
    assert capsys.readouterr().out == "deleted 9 dead letters\n"


def test_dropped_ones_are_gone_for_ever(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "DEAD_LETTERS_PER_PAGE", 3)

    assert drop(Target(), ALERTS, dry_run=False, yes=True, ask=None) == 0
    assert capsys.readouterr() == ("deleted 10 dead letters\n", "")
    assert ids(ALL, capsys) == list(range(11, 21))
    assert drop(Target(), ALERTS, dry_run=False, yes=True, ask=None) == 0
    assert capsys.readouterr() == ("", "no dead letters\n")


@pytest.mark.parametrize(("answer", "status", "left"), [(True, 0, 10), (False, 1, 20)])
def test_a_person_is_asked_with_what_would_go(
    capsys: pytest.CaptureFixture[str], status: int, left: int, *, answer: bool
) -> None:
    asked: list[str] = []

    def ask(question: str) -> bool:
        asked.append(question)
        return answer

    assert drop(Target(), ALERTS, dry_run=False, yes=False, ask=ask) == status
    assert asked == ["Delete for ever: 10 dead letters of alerts? [y/N] "]
    assert len(ids(ALL, capsys)) == left


def test_without_anybody_to_ask_nothing_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Refused, match="--yes"):
        drop(Target(), ALERTS, dry_run=False, yes=False, ask=None)

    assert len(ids(ALL, capsys)) == 20


def test_what_dies_after_it_was_chosen_is_not_dropped(journal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = range(11, 13)

    def ask(_: str) -> bool:
        with opened(journal, "alerts", "audit") as made:
            append(made, [event(number) for number in late])
            bury(made, "alerts", 11, [event(number) for number in late])
        return True

    assert drop(Target(), ALERTS, dry_run=False, yes=False, ask=ask) == 0
    assert ids(ALERTS, capsys) == [21, 22]
