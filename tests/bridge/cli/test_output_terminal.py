"""Progress and questions, on a terminal and elsewhere."""

import io
import os
import sys

import pytest

from bridge.cli.output import Progress, confirmation, line_width


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def progress(*, live: bool) -> tuple[Progress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return Progress("replay", 200, stream=stream, live=live, monotonic=clock), stream, clock


def test_on_a_terminal_a_line_changes_and_goes_away() -> None:
    told, stream, clock = progress(live=True)
    told.at(10)
    clock.now = 0.2
    told.at(100, "a rather long note")
    clock.now = 0.4
    told.at(150)
    told.say("something else")

    assert stream.getvalue().split("\r") == [
        "",
        "replay [############............]  50% 100 of 200; a rather long note",
        "replay [##################......]  75% 150 of 200                    ",
        " " * len("replay [##################......]  75% 150 of 200"),
        "something else\n",
    ]


def test_elsewhere_there_is_a_line_now_and_then() -> None:
    told, stream, clock = progress(live=False)
    for number in range(30):
        clock.now = float(number)
        told.at(number)
    told.clear()

    assert stream.getvalue().splitlines() == [
        "replay [#.......................]   5% 10 of 200",
        "replay [##......................]  10% 20 of 200",
    ]


def test_standard_error_is_no_terminal_here(capsys: pytest.CaptureFixture[str]) -> None:
    Progress("x", 1, monotonic=lambda: 0.0).say("words")

    assert capsys.readouterr() == ("", "words\n")
    assert line_width() is None
    assert confirmation() is None


@pytest.mark.parametrize(
    ("typed", "expected"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("yess\n", False)]
)
def test_a_person_is_asked_and_no_is_the_answer_unless_it_is_yes(
    monkeypatch: pytest.MonkeyPatch, typed: str, *, expected: bool
) -> None:
    person, ours = os.openpty()
    with os.fdopen(ours, "r") as theirs, os.fdopen(os.dup(ours), "w") as errors:
        monkeypatch.setattr(sys, "stdin", theirs)
        monkeypatch.setattr(sys, "stderr", errors)
        ask = confirmation()
        os.write(person, typed.encode())

        assert ask is not None
        assert ask("Really? ") is expected
        seen = b""
        while b"Really? " not in seen:  # What was typed is echoed, and may come alone.
            seen += os.read(person, 1000)
    os.close(person)
