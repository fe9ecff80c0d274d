"""Dead letters as people read them: rows of a table, or one in full."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from bridge.cli.output import Table, age, block, line_width, plain, time
from bridge.journal import StoredDeadLetter

_SHORT_ID: Final = 8
"""Characters of a resource's id that are shown in a table."""


class _Shown(msgspec.Struct):
    """The fields of an event that a row shows."""

    type: str = ""
    action: str = ""
    resource_uri: str = ""


def table() -> Table:
    """Return the empty table of dead letters."""
    return Table([">ID", "SINK", "DIED", "REASON", ">TRIES", "EVENT", "RESOURCE", "ERROR"], line_width())


def rows(letters: Sequence[StoredDeadLetter]) -> list[list[str]]:
    """Return a row for each: short ones for a terminal, whole ones otherwise."""
    now = None if line_width() is None else datetime.now(UTC)
    return [_row(letter, now) for letter in letters]


def _row(letter: StoredDeadLetter, now: datetime | None) -> list[str]:
    try:
        event = msgspec.json.decode(letter.event, type=_Shown)
    except msgspec.MsgspecError:
        event = _Shown()
    died, resource = time(letter.died), event.resource_uri
    if now is not None:
        died = died if letter.died is None else f"{age((now - letter.died).total_seconds())} ago"
        resource = resource.rstrip("/").rpartition("/")[2][:_SHORT_ID]
    what = f"{event.type}/{event.action}" if event.type else "-"
    return [str(letter.id), letter.sink, died, letter.reason, str(letter.attempts), what, resource or "-", letter.error]


def in_full(letter: StoredDeadLetter, now: datetime) -> str:
    """Return everything about a dead letter, in several lines."""

    def when(moment: datetime | None) -> str:
        return "-" if moment is None else f"{moment.isoformat()} ({age((now - moment).total_seconds())} ago)"

    facts = {
        "sink": letter.sink,
        "reason": letter.reason,
        "error": letter.error,
        "attempts": str(letter.attempts),
        "received": when(letter.received),
        "first failed": when(letter.first_failed),
        "died": when(letter.died),
        "place": "-" if letter.seq is None else str(letter.seq),
    }
    lines = [f"dead letter {letter.id}", *(f"  {name:<13} {plain(text)}" for name, text in facts.items())]
    return "\n".join(lines) + "\n" + block(msgspec.json.format(bytes(letter.event), indent=2).decode(errors="replace"))
