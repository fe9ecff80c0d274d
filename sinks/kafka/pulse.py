"""Whether brokers are still there, found out by asking now and then, without ever waiting for the answer; pure."""

import time
from collections.abc import Callable
from typing import Final

Answer = Callable[[], bool | None]
"""Tells whether a question was answered: yes, no and never, or (None) not yet."""

INTERVAL: Final = 10.0
"""Seconds after which a sink that has nothing to deliver asks."""
_FAILURES: Final = 2
"""Questions in a row that have to fail: after one, another broker may answer."""


class Pulse:
    """The brokers' pulse.

    Args:
        ask: Asks them something, and does not wait.
        patience: Seconds that an answer may take.
        interval: Seconds between what was heard last and the next question.
        clock: Tells the time in seconds.
    """

    def __init__(
        self, ask: Callable[[], Answer], patience: float, interval: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._patience = patience
        self._interval = interval
        self._clock = clock
        self.heard()

    def heard(self) -> None:
        """The brokers have said something."""
        self._since = self._clock()
        self._answer: Answer | None = None
        self._failures = 0

    def is_gone(self) -> bool:
        """Look for an answer, or ask if it is time to; whether nobody answers any more."""
        waited = self._clock() - self._since
        if self._answer is None:
            if waited >= self._interval:
                self._since = self._clock()
                self._answer = self._ask()
            return False
        answered = self._answer()
        if answered:
            self.heard()
            return False
        if answered is None:
            return waited >= self._patience
        self._failures += 1
        if self._failures < _FAILURES:
            self._answer = self._ask()
        return self._failures >= _FAILURES
