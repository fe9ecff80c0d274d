"""What stands on standard error, for people and for machines."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest
import structlog

from bridge import logs

Level = Literal["debug", "info", "warning", "error"]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Logging belongs to the process; other tests want it as it was."""
    names = ("bridge", "sinks", "config")
    root = logging.getLogger()
    handlers, levels = root.handlers, [logging.getLogger(name).level for name in ("", *names)]
    configured, settings = structlog.is_configured(), structlog.get_config()
    yield
    root.handlers = handlers
    for name, level in zip(("", *names), levels, strict=True):
        logging.getLogger(name).setLevel(level)
    if configured:
        structlog.configure(**settings)
    else:
        structlog.reset_defaults()


def configured(log_format: logs.Format = "json", level: Level = "info", stream: io.StringIO | None = None) -> io.StringIO:
    stream = stream or io.StringIO()
    logs.configure(log_format, level, stream)
    return stream


def ours() -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("bridge.some.module")
    return logger


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


# --- for machines ------------------------------------------------------------------------------------------------------


def test_a_line_has_the_fields_of_open_telemetry() -> None:
    stream = configured()

    ours().warning("stream ended", stream="acme", attempts=3)

    (line,) = lines(stream)
    assert datetime.fromisoformat(line.pop("timestamp")).utcoffset() is not None
    assert line == {
        "severity_text": "WARNING",
        "severity_number": 13,
        "body": "stream ended",
        "scope": "bridge.some.module",
        "attributes": {"stream": "acme", "attempts": 3},
    }


@pytest.mark.parametrize(("level", "number"), [("debug", 5), ("info", 9), ("warning", 13), ("error", 17), ("critical", 21)])
def test_a_severity_has_its_number(level: str, number: int) -> None:
    stream = configured(level="debug")

    getattr(ours(), level)("something")

    assert [(line["severity_text"], line["severity_number"]) for line in lines(stream)] == [(level.upper(), number)]


def test_an_exception_is_an_attribute_of_one_line() -> None:
    stream = configured()

    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        ours().exception("a thread died", thread="sink-audit")

    (line,) = lines(stream)
    assert (line["severity_text"], line["body"], line["attributes"]["thread"]) == ("ERROR", "a thread died", "sink-audit")
    trace = line["attributes"]["exception.stacktrace"]
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.endswith("ZeroDivisionError: why")


def test_a_line_break_in_a_value_does_not_make_a_second_line() -> None:
    stream = configured()

    ours().info("control frame", text='a\nb"\u2028\x1b[2J')

    assert stream.getvalue().count("\n") == 1
    assert lines(stream)[0]["attributes"] == {"text": 'a·b"··[2J'}


@pytest.mark.parametrize("log_format", ["human", "json"])
def test_a_text_from_outside_is_cut_and_can_not_write_on_the_terminal(log_format: logs.Format) -> None:
    stream = configured(log_format, stream=Terminal())

    ours().info("odd", error="\x1b]0;owned\x07" + "x" * 1_000_000)

    assert "\x1b]0;" not in stream.getvalue()
    assert len(stream.getvalue()) < 3000


def test_lines_of_a_kind_are_limited_and_counted() -> None:
    now = 100.0
    limiter = logs.Limiter(lambda: now)

    def written(**attributes: str) -> list[dict[str, Any]]:
        found = []
        for _ in range(1000):
            with suppress(structlog.DropEvent):
                found.append(dict(limiter(None, "info", {"event": "refused", **attributes})))
        return found

    assert len(written(stream="a")) == 50
    assert len(written(stream="b")) == 50
    now += 10
    assert written(stream="a")[0]["left_out"] == 950


def test_the_limit_of_lines_needs_bounded_memory() -> None:
    limiter = logs.Limiter()

    for number in range(5000):
        limiter(None, "info", {"event": f"text {number}"})

    assert len(limiter._counts) <= 1000


def test_a_value_that_json_does_not_know_is_written_as_it_looks() -> None:
    stream = configured()

    ours().info("journal opened", path=Path("/var/lib/x.db"))

    assert "/var/lib/x.db" in lines(stream)[0]["attributes"]["path"]


def test_an_attribute_may_have_any_name() -> None:
    stream = configured()

    ours().info("odd", body="x", attributes={"severity_text": "y"}, scope="z")

    assert lines(stream)[0]["attributes"] == {"body": "x", "attributes": {"severity_text": "y"}, "scope": "z"}
    assert lines(stream)[0]["body"] == "odd"


def test_a_flat_line_has_the_fields_that_most_pipelines_know() -> None:
    stream = configured("flat")

    ours().warning("sink unavailable", sink="audit", time="noon", msg="own")
    logging.getLogger("urllib3.connectionpool").warning("node %d is %s", 7, "gone")

    first, second = lines(stream)
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "level": "warning",
        "msg": "sink unavailable",
        "logger": "bridge.some.module",
        "sink": "audit",
        "time_": "noon",
        "msg_": "own",
    }
    assert (second["msg"], second["level"]) == ("node 7 is gone", "warning")


# --- others' records ---------------------------------------------------------------------------------------------------


def test_a_record_of_a_library_looks_the_same() -> None:
    stream = configured()

    logging.getLogger("urllib3.connectionpool").warning("node %d is %s", 7, "gone")

    (line,) = lines(stream)
    assert (line["severity_text"], line["body"], line["scope"]) == ("WARNING", "node 7 is gone", "urllib3.connectionpool")
    assert line["attributes"] == {}


def test_a_library_s_exception_is_there_as_well() -> None:
    stream = configured()

    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        logging.getLogger("paho").exception("callback failed")

    assert lines(stream)[0]["attributes"]["exception.stacktrace"].endswith("ZeroDivisionError: why")


@pytest.mark.parametrize("level", ["debug", "info", "warning"])
def test_a_library_is_heard_from_warnings_on(level: Level) -> None:
    stream = configured(level=level)

    logging.getLogger("urllib3").info("chatter")
    logging.getLogger("urllib3").warning("trouble")

    assert [line["body"] for line in lines(stream)] == ["trouble"]


def test_a_library_is_not_heard_below_the_level_that_was_set() -> None:
    stream = configured(level="error")

    logging.getLogger("urllib3").warning("trouble")
    logging.getLogger("urllib3").error("more trouble")

    assert [line["body"] for line in lines(stream)] == ["more trouble"]


@pytest.mark.parametrize("name", ["bridge.pipeline.stream", "sinks.kafka", "config.load"])
@pytest.mark.parametrize(
    ("level", "heard"), [("debug", ["d", "i", "w", "e"]), ("info", ["i", "w", "e"]), ("warning", ["w", "e"]), ("error", ["e"])]
)
def test_we_are_heard_from_the_level_on_that_was_set(name: str, level: Level, heard: list[str]) -> None:
    stream = configured(level=level)
    logger = structlog.get_logger(name)

    logger.debug("d")
    logger.info("i")
    logger.warning("w")
    logger.error("e")

    assert [line["body"] for line in lines(stream)] == heard


def test_what_was_configured_last_holds() -> None:
    first = configured("human")
    logger = ours()
    logger.info("first")

    second = configured("json", "warning")
    logger.info("second")
    logger.warning("third")

    assert first.getvalue().count("\n") == 1
    assert [line["body"] for line in lines(second)] == ["third"]


# --- for people --------------------------------------------------------------------------------------------------------


def test_on_a_terminal_a_line_is_for_people() -> None:
    stream = configured("auto", stream=Terminal())

    ours().warning("stream ended", reason="network")

    written = stream.getvalue()
    assert "stream ended" in written
    assert "network" in written
    assert "\x1b[" in written
    assert not written.startswith("{")


def test_elsewhere_it_is_for_machines() -> None:
    stream = configured("auto")

    ours().info("x")

    assert lines(stream)[0]["body"] == "x"


def test_who_wants_to_read_it_from_a_file_gets_no_colours() -> None:
    stream = configured("human")

    ours().info("stream connected", stream="acme")
    logging.getLogger("urllib3").warning("trouble")

    assert "\x1b" not in stream.getvalue()
    ours_line, theirs = stream.getvalue().splitlines()
    assert "[info     ] stream connected [bridge.some.module] stream=acme" in ours_line
    assert "[warning  ] trouble [urllib3]" in theirs


def test_who_wants_json_on_a_terminal_gets_it() -> None:
    stream = configured("json", stream=Terminal())

    ours().info("x")

    assert lines(stream)[0]["body"] == "x"


def test_a_traceback_for_people_shows_no_values() -> None:
    stream = configured("human")
    password = "ge" + "heim"

    try:
        raise ZeroDivisionError(len(password))
    except ZeroDivisionError:
        ours().exception("a thread died")

    assert "ZeroDivisionError: 6" in stream.getvalue()
    assert "geheim" not in stream.getvalue()
