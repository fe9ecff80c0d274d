"""The terminal, if there is one: how wide it is, a question, and what is said while something takes long."""

import shutil
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

from bridge.cli.output import bar

_LIVE: Final = 0.1
"""Seconds between two updates of a line on a terminal."""

_NOW_AND_THEN: Final = 10.0
"""Seconds between two lines elsewhere."""


def line_width() -> int | None:
    """Characters in a line of standard output; None if it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def confirmation() -> Callable[[str], bool] | None:
    """What asks the person at the terminal to say yes; None if there is none."""
    return _confirmed if sys.stdin.isatty() and sys.stderr.isatty() else None


def _confirmed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


class Progress:
    """A line that tells how far it is: on a terminal it changes, elsewhere there is another one now and then.

    Args:
        what: What is being done.
        total: How much there is to do.
        stream: Where to; standard error if None.
        live: Whether that is a terminal to itself; found out if None.
        monotonic: Seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        stream: TextIO | None = None,
        live: bool | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what = what
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty() if live is None else live
        self._monotonic = monotonic
        self._said_at = monotonic()
        self._shown = ""

    def at(self, done: int, note: str = "") -> None:
        """Tell that so much is done, if it is time to."""
        now = self._monotonic()
        if now - self._said_at < (_LIVE if self._live else _NOW_AND_THEN):
            return
        self._said_at = now
        text = f"{self._what} {bar(done, self._total)} {done:,} of {self._total:,}{f'; {note}' if note else ''}"
        if not self._live:
            print(text, file=self._stream, flush=True)
            return
        print("\r" + text.ljust(len(self._shown)), end="", file=self._stream, flush=True)
        self._shown = text

    def say(self, text: str) -> None:
        """Say a line of its own."""
        self.clear()
        print(text, file=self._stream, flush=True)

    def clear(self) -> None:
        """Take the changing line away."""
        if self._shown:
            print("\r" + " " * len(self._shown) + "\r", end="", file=self._stream, flush=True)
            self._shown = ""
