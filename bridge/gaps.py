"""Whether a stream is there, and when it was not.

It belongs to the stream's name, not to one session: when a changed stream takes over from the old one, two sessions are open
for a moment, and there is a gap only while none is.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from bridge.source import Ended, EndReason

_GAPS_KEPT: Final = 20
"""Gaps that the status shows, the latest ones."""


class Gap(msgspec.Struct, frozen=True):
    """A time without a connection: what happened in it was heard by nobody.

    Attributes:
        start: When it began, in seconds since the epoch; after a silence this is the last sign of life.
        end: When the next session opened.
        reason: Why there was no connection, as it was seen last.
        error: The same in words.
    """

    start: float
    end: float
    reason: EndReason
    error: str


class Presence:
    """Counts open sessions and the time without one. Any thread may call.

    Args:
        tell: Called with 1 when there is a session, with 0 when there is none any more.
        clock: The time of day in seconds since the epoch.
        monotonic: Seconds of a clock that nobody sets.

    Attributes:
        gaps: The latest gaps.
    """

    def __init__(self, tell: Callable[[float], None], clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self.gaps: deque[Gap] = deque(maxlen=_GAPS_KEPT)
        self._tell = tell
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._sessions = 0
        self._seconds = 0.0
        # When the present gap began; None while there is a session.
        self._since: float | None = monotonic()
        self._start = clock()
        self._why: Ended | None = None

    def opened(self) -> float:
        """A session was opened; return the seconds of the gap that ends with it."""
        with self._lock:
            self._sessions += 1
            self._tell(1)
            if self._since is None:
                return 0.0
            gap, self._since = self._monotonic() - self._since, None
            self._seconds += gap
            if self._why is not None:
                self.gaps.append(Gap(self._start, self._clock(), self._why.reason, str(self._why)))
            return gap

    def closed(self, end: Ended, silent: float) -> None:
        """A session ended, after so many seconds without a sign of life, in which something may have been lost."""
        with self._lock:
            self._sessions -= 1
            if self._sessions == 0:
                self._tell(0)
                self._since, self._start, self._why = self._monotonic() - silent, self._clock() - silent, end

    def failed(self, end: Ended) -> None:
        """A session could not be opened."""
        with self._lock:
            self._why = end

    def gap_seconds(self) -> float:
        """The seconds of all gaps, the present one included."""
        with self._lock:
            return self._seconds + (self._monotonic() - self._since if self._since is not None else 0.0)
