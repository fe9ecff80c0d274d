"""Overhearing kafka-python: why it does not get through stands in its log and nowhere else."""

import logging
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

_LIBRARY: Final = logging.getLogger("kafka")


class Overheard(logging.Handler):
    """The last lines that the library logged in some threads: of one producer, since there may be several.

    Attributes:
        lines: What was overheard.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._threads: set[int] = set()
        self.lines: deque[str] = deque(maxlen=100)

    def listen(self, threads: Iterable[threading.Thread]) -> None:
        """Listen to these threads from now on, and keep the library's log from everybody else.

        Its warnings come with every attempt; its debug lines have keys, values and passwords in them.
        """
        self._threads = {thread.ident for thread in threads if thread.ident is not None}
        _LIBRARY.setLevel(logging.WARNING)
        _LIBRARY.propagate = False
        _LIBRARY.addHandler(self)

    def stop(self) -> None:
        """Listen no more."""
        _LIBRARY.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line; with the exception, which is all that some lines are about."""
        if record.thread in self._threads:
            with suppress(Exception):
                error = record.exc_info[1] if record.exc_info else ""
                self.lines.append(f"{record.getMessage()} {error}")
