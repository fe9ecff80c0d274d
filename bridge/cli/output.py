"""Output for people: tables, ages, sizes, progress, and questions at a terminal."""

import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from datetime import datetime
from time import monotonic as monotonic_time
from typing import Final, TextIO

_MINUTE: Final = 60.0
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_KIBI: Final = 1024
_LIVE_SECONDS: Final = 0.1
"""Time between two updates of a line on a terminal."""

_PRINT_SECONDS: Final = 10.0
"""Time between two lines elsewhere."""

Row = Sequence[str]


def plain(text: str) -> str:
    """Return text in one line without control characters: errors and messages come from outside."""
    return "".join(character if character.isprintable() else "·" for character in text)


def block(text: str) -> str:
    """Return text in several lines without other control characters."""
    return "\n".join(map(plain, text.split("\n")))


def json_line(line: bytes, *, terminal: bool | None = None) -> bytes:
    """Return JSON, one or more lines of it, which a terminal shows as it is: characters that it may obey are escaped.

    Args:
        line: UTF-8.
        terminal: Whether standard output is a terminal; None finds out. Elsewhere nothing is changed.
    """
    if not (sys.stdout.isatty() if terminal is None else terminal):
        return line
    return "".join(
        character if character.isprintable() or character == "\n" else _escaped(character)
        for character in line.decode(errors="replace")
    ).encode()


def _escaped(character: str) -> str:
    """Return what JSON writes for a character: its units of UTF-16."""
    units = character.encode("utf-16-be").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


class Table:
    """Rows in columns, page by page: columns only become wider.

    Args:
        header: The columns' names; those that begin with `>` are set to the right.
        width: Characters in a line; what is longer in the last column goes on below. None lets lines be as long as they are.
    """

    def __init__(self, header: Row, width: int | None) -> None:
        self._header = [name.removeprefix(">") for name in header]
        self._right = [name.startswith(">") for name in header]
        self._widths = [0] * len(header)
        self._width = width
        self._begun = False

    def lines(self, rows: Sequence[Row]) -> list[str]:
        """Return the lines of some rows, with the header before the first ones; none without rows."""
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
        if self._width is None or len(line) <= self._width:
            return line
        below = textwrap.wrap(row[-1], max(16, self._width), initial_indent="    ", subsequent_indent="    ")
        return "\n".join(["  ".join(cells[:-1]).rstrip(), *below])


def age(seconds: float) -> str:
    """Return a duration in its two largest units: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < _MINUTE:
        return f"{seconds:.0f} s" if seconds >= 1 or seconds <= 0 else "<1 s"
    for unit, name, part, part_name in ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", 1.0, "s")):
        if seconds >= unit:
            rest = int(seconds % unit // part)
            return f"{int(seconds // unit)} {name}" + (f" {rest} {part_name}" if rest else "")
    raise AssertionError


def size(count: int) -> str:
    """Return a number of bytes with a unit."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < _KIBI or unit == "GiB":
            return f"{value:.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= _KIBI
    raise AssertionError


def count(number: int, noun: str) -> str:
    """Return a number with its noun: 1 event, 1,200 events."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def time(moment: datetime | None) -> str:
    """Return a point in time to the second, in UTC, in a form that --since takes."""
    return "-" if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def bar(done: int, total: int, width: int = 24) -> str:
    """Return a bar of progress with its percentage."""
    share = min(1.0, done / total) if total else 1.0
    full = int(share * width)
    return f"[{'#' * full}{'.' * (width - full)}] {share:4.0%}"


def rate(per_second: float) -> str:
    """Return events per second."""
    return f"{per_second:,.{1 if 0 < per_second < 10 else 0}f}/s"


def line_width() -> int | None:
    """Return the characters in a line of standard output; None if it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def confirmation() -> Callable[[str], bool] | None:
    """Return a function that asks the person at the terminal; None without a terminal."""
    return _confirmed if sys.stdin.isatty() and sys.stderr.isatty() else None


def _confirmed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


class Progress:
    """Progress on standard error: one changing line on a terminal, elsewhere a line now and then.

    Args:
        what: Name of the work.
        total: Amount of the work.
        stream: Output; standard error if None.
        live: The output is a terminal that nothing else writes to; None finds out.
        monotonic: Monotonic clock.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        stream: TextIO | None = None,
        live: bool | None = None,
        monotonic: Callable[[], float] = monotonic_time,
    ) -> None:
        self._what = what
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty() if live is None else live
        self._monotonic = monotonic
        self._said_at = monotonic()
        self._shown = ""

    def at(self, done: int, note: str = "") -> None:
        """Show that so much is done, if it is time to."""
        now = self._monotonic()
        if now - self._said_at < (_LIVE_SECONDS if self._live else _PRINT_SECONDS):
            return
        self._said_at = now
        text = f"{self._what} {bar(done, self._total)} {done:,} of {self._total:,}{f'; {note}' if note else ''}"
        if not self._live:
            print(text, file=self._stream, flush=True)
            return
        print("\r" + text.ljust(len(self._shown)), end="", file=self._stream, flush=True)
        self._shown = text

    def say(self, text: str) -> None:
        """Print a line of its own."""
        self.clear()
        print(text, file=self._stream, flush=True)

    def clear(self) -> None:
        """Remove the changing line."""
        if self._shown:
            print("\r" + " " * len(self._shown) + "\r", end="", file=self._stream, flush=True)
            self._shown = ""
