"""How things are written for people."""

from datetime import UTC, datetime

import msgspec
import pytest

from bridge.cli.output import Table, age, bar, block, count, json_line, plain, rate, size, time


def test_a_table_aligns_its_columns() -> None:
    table = Table([">ID", "SINK", "ERROR"], None)

    assert table.lines([["7", "alerts", "no"], ["12", "a", ""]]) == ["ID  SINK    ERROR", " 7  alerts  no", "12  a"]


def test_a_table_goes_on_over_pages_and_its_columns_only_become_wider() -> None:
    table = Table(["A", "B"], None)
    table.lines([["1", "x"]])

    assert table.lines([["long", "y"]]) == ["long  y"]
    assert table.lines([["2", "z"]]) == ["2     z"]


def test_without_rows_there_is_no_table_not_even_a_header() -> None:
    assert Table(["A"], None).lines([]) == []


def test_what_does_not_fit_the_terminal_goes_below_and_nothing_is_cut_off() -> None:
    table = Table(["SINK", "STATE"], 24)

    assert table.lines([["audit", "up"], ["alerts", "down: 10.0.0.7: connection refused"]]) == [
        "SINK    STATE",
        "audit   up",
        "alerts\n    down: 10.0.0.7:\n    connection refused",
    ]


def test_what_strangers_wrote_does_nothing_to_a_terminal() -> None:
    assert Table(["A"], None).lines([["\x1b[31mred\n\x9b2J\u202eok ü"]]) == ["A", "·[31mred··2J·ok ü"]
    assert plain("\x07a\tb") == "·a·b"
    assert block("a\n\x1bb") == "a\n·b"


@pytest.mark.parametrize("text", ["\x7f", "\x9b2J", "\u202e", "\U000e0001", "é🙂"])
def test_json_does_nothing_to_a_terminal_and_means_the_same(text: str) -> None:
    line = msgspec.json.encode({"text": text}) + b"\n"

    shown = json_line(line, terminal=True)

    assert shown.decode().rstrip("\n").isprintable()
    assert msgspec.json.decode(shown) == {"text": text}
    assert json_line(line, terminal=False) is line


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (-5, "-5 s"),
        (0.3, "<1 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3599.9, "59 min 59 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
        (864000, "10 d"),
    ],
)
def test_an_age_is_told_in_two_units(seconds: float, expected: str) -> None:
    assert age(seconds) == expected


def test_numbers_are_told_with_what_they_count() -> None:
    assert [count(number, "event") for number in (0, 1, 1200)] == ["0 events", "1 event", "1,200 events"]
    assert [size(number) for number in (0, 1023, 1024, 5 << 20, 3 << 40)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "5.0 MiB",
        "3072.0 GiB",
    ]
    assert [rate(number) for number in (0, 0.04, 9.94, 1234.5)] == ["0/s", "0.0/s", "9.9/s", "1,234/s"]


def test_a_time_can_be_given_back_as_it_is_shown() -> None:
    assert time(datetime(2026, 11, 23, 10, 0, 1, 999, UTC)) == "2026-11-23T10:00:01Z"
    assert time(None) == "-"


@pytest.mark.parametrize(
    ("done", "total", "expected"),
    [(0, 10, "[....]   0%"), (5, 10, "[##..]  50%"), (10, 10, "[####] 100%"), (11, 10, "[####] 100%"), (0, 0, "[####] 100%")],
)
def test_a_bar_fills(done: int, total: int, expected: str) -> None:
    assert bar(done, total, width=4) == expected
