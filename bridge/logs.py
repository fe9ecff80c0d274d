"""Logs: to stderr, for people on a terminal, as JSON otherwise.

The JSON has the field names of OpenTelemetry's log data model: timestamp, severity_text, severity_number, body, attributes.
Records of the client libraries look the same; below warnings they are left out.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, Literal, TextIO

import structlog

_SEVERITY: Final = {"debug": 5, "info": 9, "warning": 13, "error": 17, "critical": 21}
Format = Literal["auto", "human", "json"]


def configure(log_format: Format, level: str, stream: TextIO | None = None) -> None:
    """Set up logging for the process.

    Args:
        log_format: "auto" is "human" on a terminal and "json" elsewhere.
        level: The least severity that is written: debug, info, warning or error.
        stream: Where to; standard error if None.
    """
    stream = stream or sys.stderr
    human = log_format == "human" or (log_format == "auto" and stream.isatty())
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: list[structlog.types.Processor] = (
        # Plain tracebacks: the pretty ones show local variables, secrets among them.
        [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
            )
        ]
        if human
        else [structlog.processors.format_exc_info, _as_opentelemetry, structlog.processors.JSONRenderer(sort_keys=False)]
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
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
