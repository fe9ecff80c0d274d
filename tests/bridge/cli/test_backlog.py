"""What waits: the figures of two looks, and how they are shown."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.cli.backlog import backlog, pace
from bridge.cli.target import Target
from bridge.journal import SinkBacklog
from tests.support.journal_samples import append, event, opened


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (SinkBacklog(100, 40, 60, 0, 0), SinkBacklog(110, 70, 40, 0, 0), (15.0, 5.0, 4.0)),
        (SinkBacklog(100, 40, 60, 0, 0), SinkBacklog(120, 50, 70, 0, 0), (5.0, 10.0, math.inf)),
        (SinkBacklog(100, 40, 60, 0, 0), SinkBacklog(100, 40, 60, 0, 0), (0.0, 0.0, math.inf)),
        (SinkBacklog(100, 100, 0, 0, 0), SinkBacklog(120, 120, 0, 0, 0), (10.0, 10.0, 0.0)),
        # What is filtered or dies does not wait any more either.
        (SinkBacklog(100, 40, 60, 0, 0), SinkBacklog(100, 40, 30, 0, 30), (0.0, 0.0, 2.0)),
    ],
)
def test_two_looks_tell_the_pace(first: SinkBacklog, second: SinkBacklog, expected: tuple[float, float, float]) -> None:
    assert pace(first, second, 2.0) == expected


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, SinkBacklog]]:
    """What a running bridge tells, look by look."""
    answers: list[Mapping[str, SinkBacklog]] = []

    @contextmanager
    def open_reader(_: Target) -> Iterator[object]:
        yield SimpleNamespace(running=True, backlog=lambda: answers.pop(0))

    monkeypatch.setattr(Target, "open_reader", open_reader)
    return answers


def show(*, as_json: bool) -> None:
    slept: list[float] = []
    assert backlog(Target(), interval=2.0, as_json=as_json, sleep=slept.append, monotonic=lambda: 100.0 + sum(slept)) == 0
    assert slept == [2.0]


BEFORE = {
    "failing": SinkBacklog(100, 40, 12, 12, 0, up=True, lag_seconds=0.5),
    "steady": SinkBacklog(1000, 940, 60, 0, 0, up=True, lag_seconds=0.5),
    "untested": SinkBacklog(100, 98, 2, 0, 0, up=True, lag_seconds=0.5),
    "alerts": SinkBacklog(100, 40, 60, 1, 2, up=True, lag_seconds=90.0),
    "audit": SinkBacklog(100, 40, 60, 0, 0, up=True, lag_seconds=90.0),
    "down": SinkBacklog(100, 40, 60, 0, 0, up=False, error="connection refused", lag_seconds=90.0),
    "idle": SinkBacklog(100, 100, 0, 0, 0, up=True, lag_seconds=0.0),
}
AFTER = {
    "failing": SinkBacklog(100, 40, 12, 12, 0, up=True, lag_seconds=0.5),
    "steady": SinkBacklog(1230, 1140, 90, 0, 0, up=True, lag_seconds=0.5),
    "untested": SinkBacklog(101, 98, 3, 0, 0, up=True, lag_seconds=0.5),
    "alerts": SinkBacklog(100, 60, 40, 1, 2, up=True, lag_seconds=91.0),
    "audit": SinkBacklog(2200, 60, 2140, 0, 0, up=True, lag_seconds=7200.0),
    "down": SinkBacklog(100, 40, 60, 0, 0, up=False, error="connection \x1b[31mrefused", lag_seconds=None),
    "idle": SinkBacklog(101, 101, 0, 0, 0, up=True, lag_seconds=0.0),
    "new": SinkBacklog(1, 0, 1, 0, 0, up=True, lag_seconds=0.5),
}


def test_every_sink_has_a_line(looks: list[Mapping[str, SinkBacklog]], capsys: pytest.CaptureFixture[str]) -> None:
    looks += [BEFORE, AFTER]

    show(as_json=False)

    header, *rows = capsys.readouterr().out.splitlines()
    assert [header, *sorted(rows)] == [
        "SINK      PENDING  RETRYING  DEAD LETTERS      OLDEST   RATE           DRAINS IN  STATE",
        "alerts         40         1             2  1 min 31 s   10/s                 4 s  up",
        "audit       2,140         0             0         2 h   10/s  never at this rate  up",
        "down           60         0             0           -    0/s                   -  down: connection ·[31mrefused",
        "failing        12        12             0        <1 s    0/s       after retries  up",
        "idle            0         0             0           -  0.5/s                   -  up",
        "new             1         0             0        <1 s      -                   -  up",
        "steady         90         0             0        <1 s  100/s                <1 s  up",
        "untested        3         0             0        <1 s    0/s                   -  up",
    ]


def test_a_script_gets_a_line_of_json_for_every_sink(
    looks: list[Mapping[str, SinkBacklog]], capsys: pytest.CaptureFixture[str]
) -> None:
    looks += [BEFORE, AFTER]

    show(as_json=True)

    lines = {line["sink"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert lines["alerts"] == {
        "sink": "alerts",
        "pending": 40,
        "retrying": 1,
        "dead_letters": 2,
        "oldest_seconds": 91.0,
        "delivered_per_second": 10.0,
        "accepted_per_second": 0.0,
        "drains": True,
        "drain_seconds": 4.0,
        "up": True,
        "error": None,
        "next_attempt": None,
    }
    known = ("alerts", "audit", "down", "idle", "new")
    assert [(name, lines[name]["drains"], lines[name]["drain_seconds"]) for name in known] == [
        ("alerts", True, 4.0),
        ("audit", False, None),
        ("down", None, None),
        ("idle", True, 0.0),
        ("new", None, None),
    ]


def test_of_a_file_one_look_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path / "journal.db", "alerts") as journal:
        append(journal, [event(1)])

    status = backlog(Target(journal=tmp_path / "journal.db"), interval=2.0, as_json=False, sleep=lambda _: pytest.fail("slept"))

    output = capsys.readouterr()
    assert status == 0
    assert output.out.splitlines()[1].split()[:4] == ["alerts", "1", "0", "0"]
    assert output.out.splitlines()[1].endswith("-          -  stopped")
    assert output.err == "no bridge runs on this journal\n"
