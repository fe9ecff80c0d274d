"""The commands that move a sink, on the file of a stopped bridge."""

from pathlib import Path

import pytest

from bridge.cli.main import main
from bridge.journal import Settlement
from tests.support.journal_samples import append, event, opened
from tests.support.journal_work import read


@pytest.fixture(autouse=True)
def _journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal with three events, of which the sink has had one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "")
    Path("bridge.yaml").write_text(
        "streams: {acme: {}}\nsinks: {alerts: {type: webhook, url: 'http://127.0.0.1:1'}}\njournal: {path: journal.db}\n"
    )
    with opened(Path("journal.db"), "alerts") as journal:
        append(journal, [event(1), event(2), event(3)])
        (first,) = read(journal, "alerts", 1, 1 << 20, 0.0)
        journal.settle("alerts", Settlement(first.seq, first.seq + 1, delivered=1))


def test_a_sink_is_set_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rewind", "--sink", "alerts", "--to", "1", "--dry-run"]) == 0
    assert main(["rewind", "--sink", "alerts", "--to", "1970-01-02"]) == 0
    assert main(["rewind", "--sink", "alerts", "--to", "2"]) == 1

    shown = capsys.readouterr()
    assert shown.out == ("alerts: would get 1 event, from place 1 on, again\nalerts: gets 1 event, from place 1 on, again\n")
    assert shown.err == "alerts: nothing to deliver again: no event from there on is stored that it has passed\n"


def test_the_next_event_is_set_aside_when_asked_for_expressly(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["skip", "--sink", "alerts"]) == 2
    assert "say --yes" in capsys.readouterr().err
    assert main(["skip", "--sink", "alerts", "--yes"]) == 0
    assert "the event at place 2 is a dead letter now" in capsys.readouterr().out
    assert main(["skip", "--sink", "alerts", "--yes"]) == 0
    assert main(["skip", "--sink", "alerts", "--yes"]) == 1
    assert capsys.readouterr().err == "alerts: no event waits\n"


@pytest.mark.parametrize("arguments", [["rewind", "--sink", "alert", "--to", "1"], ["skip", "--sink", "alert", "--yes"]])
def test_an_unknown_sink_is_said(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 1
    assert "no sink alert is configured" in capsys.readouterr().err


def test_a_time_that_makes_no_sense_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["rewind", "--sink", "alerts", "--to", "yesterday"])
    assert "must be a time" in capsys.readouterr().err
