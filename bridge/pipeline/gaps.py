"""Gaps of a stream: the times without a session.

A tracker belongs to the stream's name, not to one session. When a changed stream takes over from the old one, two sessions are
open for a moment, and there is a gap only while none is.
"""

import threading
from collections import deque
from collections.abc import Callable

import msgspec

from bridge.source import Ended, EndReason


class Gap(msgspec.Struct, frozen=True):
    """A time without a connection: nobody heard what happened in it.

    Attributes:
        start: Its beginning, in seconds since the epoch; after a silence this is the last sign of life.
        end: Opening of the next session.
        reason: Last known reason why there was no connection.
        error: The same as text.
    """

    start: float
    end: float
    reason: EndReason
    error: str


class GapTracker:
    """Counts open sessions and the time without one. Thread-safe.

    Args:
        on_change: Called with 1 when a session opens, with 0 when the last one has ended.
        clock: Time of day in seconds since the epoch.
        monotonic: Monotonic clock.

    Attributes:
        latest: The last twenty gaps.
    """

    def __init__(self, on_change: Callable[[float], None], clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self.latest: deque[Gap] = deque(maxlen=20)
        self._on_change = on_change
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._sessions = 0
        self._seconds = 0.0
        # Beginning of the present gap; None while there is a session.
        self._since: float | None = monotonic()
        self._start = clock()
        self._end: Ended | None = None

    def opened(self) -> float:
        """Note a new session; return the seconds of the gap that ends with it."""
        with self._lock:
            self._sessions += 1
            self._on_change(1)
            if self._since is None:
                return 0.0
            gap, self._since = self._monotonic() - self._since, None
            self._seconds += gap
            if self._end is not None:
                self.latest.append(Gap(self._start, self._clock(), self._end.reason, str(self._end)))
            return gap

    def closed(self, end: Ended, silent: float) -> None:
        """Note the end of a session after `silent` seconds without a sign of life, which belong to the gap."""
        with self._lock:
            self._sessions -= 1
            if self._sessions == 0:
                self._on_change(0)
                self._since, self._start, self._end = self._monotonic() - silent, self._clock() - silent, end

    def failed(self, end: Ended) -> None:
        """Note that a session could not be opened."""
        with self._lock:
            self._end = end

    def total_seconds(self) -> float:
        """Return the seconds of all gaps, the present one included."""
        with self._lock:
            return self._seconds + (self._monotonic() - self._since if self._since is not None else 0.0)
