"""Units of settings: seconds and bytes, written as people write them."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ByteSize, Field, WithJsonSchema

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.ASCII)


def duration(text: str) -> float:
    """Read seconds as people write them: a number, or one with a unit.

    Raises:
        ValueError: It is none.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a duration: write seconds (2.5) or a number with ms, s, m, h or d (500ms, 24h)")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _parse_duration(value: Any) -> Any:
    return duration(str(value)) if isinstance(value, str | bool) else value


Seconds = Annotated[
    float,
    # A delay without an end is a thread that sleeps for ever.
    Field(allow_inf_nan=False),
    BeforeValidator(_parse_duration),
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\d+(\.\d+)? ?(ms|s|m|h|d)?$"}]}
    ),
]
"""A duration in seconds: a number, or text like `500ms`, `10s`, `5m`, `24h`, `3d`."""

Bytes = ByteSize
"""A number of bytes: a number, or text like `64KiB`, `1GiB`."""
