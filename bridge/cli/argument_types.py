"""The values that options take; each function raises `argparse.ArgumentTypeError` with what would be right."""

import argparse
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from bridge.admin.client import Client, OperationError
from bridge.field_types import duration, parse_time

_DIGITS: Final = 16
"""Digits of a number of a dead letter at most."""


def moment(text: str) -> datetime:
    """Read a time or an age."""
    try:
        return parse_time(text, datetime.now(UTC))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def place_or_moment(text: str) -> int | datetime:
    """Read a place in the journal, a time or an age."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _DIGITS else moment(text)


def seconds(text: str) -> float:
    """Read a duration that is more than nothing."""
    try:
        seconds = duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not seconds:
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds


def url(text: str) -> str:
    """Read the URL of a bridge."""
    try:
        Client(text, None)
    except OperationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def uuid_text(text: str) -> str:
    """Read a uuid."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise argparse.ArgumentTypeError("must be a uuid") from None


def number(text: str) -> int:
    """Read a whole number."""
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
        raise argparse.ArgumentTypeError("must be a whole number")
    return int(text)


def key(text: str) -> str:
    """A uuid or a number; a uuid of 32 digits is not taken for a number."""
    try:
        return uuid_text(text)
    except argparse.ArgumentTypeError:
        pass
    try:
        return str(number(text))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError("must be a uuid, or the number that list shows") from None


def values(options: Sequence[str]) -> list[str]:
    """Return the values of a repeatable option, which may be separated by commas."""
    return [value for option in options for value in option.split(",") if value]
