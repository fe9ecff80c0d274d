"""How things are written for people: tables, ages, sizes, bars. Pure."""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

_MINUTE: Final = 60.0
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_KIBI: Final = 1024
_FEW: Final = 10

Row = Sequence[str]


def plain(text: str) -> str:
    """Text in one line that does nothing to a terminal: errors and messages are written by strangers."""
    return "".join(character if character.isprintable() else "·" for character in text)


def block(text: str) -> str:
    """Text in several lines that does nothing to a terminal."""
    return "\n".join(map(plain, text.split("\n")))


def shortened(text: str, width: int) -> str:
    """Text of at most so many characters."""
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"


class Table:
    """Rows in columns, page by page: columns only become wider.

    Args:
        header: The columns' names; those that begin with `>` are set to the right.
        width: Characters in a line; the last column is shortened to fit. None lets lines be as long as they are.
    """

    def __init__(self, header: Row, width: int | None) -> None:
        self._header = [name.removeprefix(">") for name in header]
        self._right = [name.startswith(">") for name in header]
        self._widths = [0] * len(header)
        self._width = width
        self._begun = False

    def lines(self, rows: Sequence[Row]) -> list[str]:
        """The lines of some rows, with the header before the first ones; none without rows."""
        if not rows:
            return []
        page = [[plain(cell) for cell in row] for row in rows]
        if not self._begun:
            page.insert(0, self._header)
            self._begun = True
        for column, cells in enumerate(zip(*page, strict=True)):
            self._widths[column] = max(self._widths[column], *map(len, cells))
        return [self._line(row) for row in page]

    def _line(self, row: Row) -> str:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, self._widths, self._right, strict=True)
        ]
        line = "  ".join(cells).rstrip()
        return line if self._width is None else shortened(line, self._width)


def age(seconds: float) -> str:
    """A duration in its two largest units: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s" if seconds >= 1 or seconds <= 0 else "<1 s"
    for unit, name, part, part_name in ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", 1.0, "s")):
        if seconds >= unit:
            rest = int(seconds % unit // part)
            return f"{int(seconds // unit)} {name}" + (f" {rest} {part_name}" if rest else "")
    raise AssertionError


def size(count: int) -> str:
    """A number of bytes with a unit."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < _KIBI or unit == "GiB":
            return f"{value:.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= _KIBI
    raise AssertionError


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 event, 1,200 events."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def time(moment: datetime | None) -> str:
    """A point in time to the second, in UTC, as it can be given to --since."""
    return "-" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def bar(done: int, total: int, width: int = 24) -> str:
    """A bar of progress with its percentage."""
    share = min(1.0, done / total) if total else 1.0
    full = int(share * width)
    return f"[{'#' * full}{'.' * (width - full)}] {share:4.0%}"


def rate(per_second: float) -> str:
    """Events per second."""
    return f"{per_second:,.{1 if 0 < per_second < _FEW else 0}f}/s"
