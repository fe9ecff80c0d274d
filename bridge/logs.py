"""Logs: to stderr, for people on a terminal, as JSON otherwise.

The JSON has the field names of OpenTelemetry's log data model: timestamp, severity_text, severity_number, body, attributes. The
format `flat` has those that most log pipelines know: time, level, msg, logger, and the attributes beside them.
Records of the client libraries look the same; below warnings they are left out.
"""

import logging
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog

from bridge.text import MAX_CHARS, lines_of, plain

log = structlog.get_logger(__name__)
_bridge: Final = logging.getLogger("bridge")

_SEVERITY: Final = {"debug": 5, "info": 9, "warning": 13, "error": 17, "critical": 21}
Format = Literal["auto", "human", "json", "flat"]


_BURST: Final = 50
_BURST_SECONDS: Final = 10.0
"""Lines of one kind about one stream or sink that are written in so much time; the next one says how many were left out."""

_KINDS: Final = 1000
"""Kinds of lines that are remembered; the text of a library's line may be a new one each time."""


class Limiter:
    """Drops log lines of a kind that come too often; a processor of structlog.

    Args:
        monotonic: Monotonic clock.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._counts: dict[tuple[object, ...], tuple[float, int]] = {}

    def __call__(self, _: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        """Return the line, with the number of those left out before it; raise `structlog.DropEvent` for one too many."""
        # Who wants to see lines of level debug wants all. What an operator changed is written nowhere else.
        if method == "debug" or "operation" in event:
            return event
        kind, now = (event["event"], event.get("stream"), event.get("sink")), self._monotonic()
        since, count = self._counts.get(kind, (now, 0))
        if now - since >= _BURST_SECONDS:
            if count > _BURST:
                event["left_out"] = count - _BURST
            since, count = now, 0
        if len(self._counts) >= _KINDS:
            self._counts.clear()
        self._counts[kind] = since, count + 1
        if count >= _BURST:
            raise structlog.DropEvent
        return event


def debug(text: str, **fields: object) -> None:
    """Write a line of level debug; where these are not written, this costs next to nothing."""
    if _bridge.isEnabledFor(logging.DEBUG):
        log.debug(text, **fields)


def configure(log_format: Format, level: str, stream: TextIO | None = None) -> None:
    """Set up logging for the process.

    Args:
        log_format: "auto" is "human" on a terminal and "json" elsewhere; "flat" is JSON without nesting.
        level: The least severity that is written: debug, info, warning or error.
        stream: Where to; standard error if None.
    """
    stream = stream or sys.stderr
    human = log_format == "human" or (log_format == "auto" and stream.isatty())
    shared: list[structlog.types.Processor] = [
        Limiter(),
        _clean,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        # Plain tracebacks: the pretty ones show local variables, secrets among them.
        structlog.processors.format_exc_info,
        _clean_traceback,
    ]
    renderer: list[structlog.types.Processor] = (
        [structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0)]
        if human
        else [
            _flat if log_format == "flat" else _as_opentelemetry,
            structlog.processors.JSONRenderer(sort_keys=False),
        ]
    )
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    output = logging.StreamHandler(stream)
    output.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer]
        )
    )
    root = logging.getLogger()
    root.handlers = [output]
    for ours in ("bridge", "sinks", "config"):
        logging.getLogger(ours).setLevel(level.upper())
    root.setLevel(max(logging.WARNING, logging.getLogger("bridge").level))


def _clean(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str) and not key.startswith("_"):
            event[key] = plain(value, 2 * MAX_CHARS)
    return event


def _clean_traceback(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if isinstance(event.get("exception"), str):
        event["exception"] = lines_of(event["exception"])
    return event


def _as_opentelemetry(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    level = event.pop("level", "info")
    line: dict[str, Any] = {
        "timestamp": event.pop("timestamp"),
        "severity_text": level.upper(),
        "severity_number": _SEVERITY.get(level, 9),
        "body": event.pop("event"),
        "scope": event.pop("logger", None),
    }
    exception = event.pop("exception", None)
    if exception is not None:
        event["exception.stacktrace"] = exception
    line["attributes"] = dict(event)
    return line


def _flat(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    names = {"time": "timestamp", "level": "level", "msg": "event", "logger": "logger"}
    line = {name: event.pop(old, None) for name, old in names.items()}
    # An attribute never takes the place of these.
    return line | {f"{name}_" if name in line else name: value for name, value in event.items()}
