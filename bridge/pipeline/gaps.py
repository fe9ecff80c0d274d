"""Gaps of a stream: the times in which it was not read.

A tracker belongs to the stream's name, not to one session. When a changed stream takes over from the old one, two sessions are
open for a moment, and there is a gap only while none is. What the bridge itself misses is a gap, too: the time in which it did
not run, from the last one that the journal recorded, and the time in which it did not read, since the journal took nothing.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from bridge.source import Ended, EndReason

LONG_SECONDS: Final = 1.0
"""A stream that waits for the journal so long is not read; the kernel keeps what arrives in less."""


class Gap(msgspec.Struct, frozen=True):
    """A time in which a stream was not read: nobody heard what happened in it.

    Attributes:
        start: Its beginning, in seconds since the epoch; after a silence this is the last sign of life.
        end: Opening of the next session, or the time at which reading went on.
        reason: Last known reason.
        error: The same as text.
    """

    start: float
    end: float
    reason: EndReason | Literal["not_running", "journal"]
    error: str


class GapTracker:
    """Counts open sessions and the time without one. Thread-safe.

    Args:
        on_change: Called with 1 when a session opens, with 0 when the last one has ended.
        clock: Time of day in seconds since the epoch.
        monotonic: Monotonic clock.
        heard: When the stream was last known to work, in seconds since the epoch; None if it never was.

    Attributes:
        latest: The last twenty gaps.
        waits_since: The monotonic time since which the stream is not read because it waits for the journal.
    """

    def __init__(
        self,
        on_change: Callable[[float], None],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        heard: float | None = None,
    ) -> None:
        self.latest: deque[Gap] = deque(maxlen=20)
        self._on_change = on_change
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._sessions = 0
        self._seconds = 0.0
        self._start = clock() if heard is None else min(heard, clock())
        # Beginning of the present gap; None while there is a session.
        self._since: float | None = monotonic() - (clock() - self._start)
        self._why: tuple[EndReason | Literal["not_running"], str] | None = None
        if heard is not None:
            self._why = "not_running", "the bridge did not run, or not this stream"
        self.waits_since: float | None = None

    def opened(self) -> float:
        """Note a new session; return the seconds of the gap that ends with it."""
        with self._lock:
            self._sessions += 1
            self._on_change(1)
            if self._since is None:
                return 0.0
            gap, self._since = self._monotonic() - self._since, None
            self._seconds += gap
            if self._why is not None:
                self.latest.append(Gap(self._start, self._clock(), *self._why))
            return gap

    def closed(self, end: Ended, silent: float) -> None:
        """Note the end of a session after `silent` seconds without a sign of life, which belong to the gap."""
        with self._lock:
            self._sessions -= 1
            if self._sessions == 0:
                self._on_change(0)
                self._since, self._start = self._monotonic() - silent, self._clock() - silent
                self._why = end.reason, end.error

    def failed(self, end: Ended) -> None:
        """Note that a session could not be opened."""
        with self._lock:
            self._why = end.reason, end.error

    def waited(self) -> None:
        """Note that the stream can be read again."""
        with self._lock:
            if seconds := self._waiting_seconds():
                now = self._clock()
                self.latest.append(Gap(now - seconds, now, "journal", "not read, since the journal took no events"))
            self._seconds += seconds
            self.waits_since = None

    def total_seconds(self) -> float:
        """Return the seconds of all gaps, the present one included."""
        with self._lock:
            present = 0.0 if self._since is None else self._monotonic() - self._since
            return self._seconds + present + self._waiting_seconds()

    def _waiting_seconds(self) -> float:
        seconds = 0.0 if self.waits_since is None else self._monotonic() - self.waits_since
        return seconds if seconds >= LONG_SECONDS else 0.0
