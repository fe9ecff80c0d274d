"""One thread per stream and one per sink: each keeps calling `step` until it is told to end.

All are daemons: a thread that hangs in a call to the outside must not keep the process from ending.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from bridge.forwarder import Forwarder
from bridge.journal import Closed, JournalError
from bridge.policy import backoff
from bridge.stream import Stream

log = structlog.get_logger(__name__)

_JOURNAL: Final = 1.0
"""Seconds before a thread asks a journal again that could not be read."""

_RESTART: Final = (0.5, 30.0)
"""First and longest delay, in seconds, before a thread that died of a bug goes on."""

_TAKEOVER: Final = 10.0
"""Seconds that a changed stream has to connect before the old session ends all the same."""

_OVERLAP: Final = 2.0
"""Seconds that both sessions are open: what was sent to the old one before the new one opened has to arrive yet."""

_PATIENCE: Final = 5.0
"""Seconds that an old session has to end before the new one goes on."""


class Count(Protocol):
    """What counts, one at a time."""

    def inc(self) -> None:
        """Count one more."""


class StreamThread(threading.Thread):
    """Follows one stream.

    Args:
        stream: What to follow.
        restarts: Counts deaths of a bug.
        at_end: Called by the thread as the last it does.
    """

    def __init__(self, stream: Stream, restarts: Count, at_end: Callable[[], None]) -> None:
        super().__init__(name=f"stream-{stream.name}", daemon=True)
        self.stream = stream
        self._restarts = restarts
        self._at_end = at_end
        self._told = threading.Event()

    def stop(self) -> None:
        """End the session, and no other follows."""
        self._told.set()
        self.stream.stop()

    def run(self) -> None:
        """Keep going; called by `start`."""
        _keep_going(self.stream.step, self._told.is_set, self._told.wait, self._restarts)
        self._at_end()


class Replaced:
    """An old session that stays until the new one is there."""

    def __init__(self, thread: StreamThread) -> None:
        self.thread = thread
        self.ending = False
        self._until = time.monotonic() + _TAKEOVER
        self._overlaps = False

    def is_needed(self, new: StreamThread | None) -> bool:
        """Whether the old session goes on for a while; without a new one, the stream was dropped meanwhile."""
        now = time.monotonic()
        if new is None or not self.thread.stream.status.connected:
            return False
        if new.stream.status.connected and not self._overlaps:
            self._overlaps, self._until = True, now + _OVERLAP
        if now >= self._until and not self._overlaps:
            log.warning("the changed stream is not connected yet, but the old session ends", stream=new.stream.name)
        return now < self._until

    def end(self) -> None:
        """End the session; what it has read is still committed."""
        self.ending, self._until = True, time.monotonic() + _PATIENCE
        self.thread.stop()

    def is_over(self) -> bool:
        """Whether nothing is committed any more, or that has been waited for long enough."""
        return self.ending and (not self.thread.stream.status.connected or time.monotonic() >= self._until)


class SinkThread(threading.Thread):
    """Forwards to one sink.

    Args:
        forwarder: What moves the sink's cursor.
        restarts: Counts deaths of a bug.
        at_end: Called by the thread as the last it does.

    Attributes:
        ended: Whether nothing is delivered and nothing of the journal is used any more.
    """

    def __init__(self, forwarder: Forwarder, restarts: Count, at_end: Callable[[], None]) -> None:
        super().__init__(name=f"sink-{forwarder.name}", daemon=True)
        self.forwarder = forwarder
        self.ended = False
        self._restarts = restarts
        self._at_end = at_end
        self._draining = threading.Event()
        self._told = threading.Event()

    def drain(self) -> None:
        """Nothing new will come: go on while there is something to deliver and the sink takes it."""
        self._draining.set()

    def stop(self) -> None:
        """End after the delivery that is under way."""
        self._told.set()
        self._draining.set()

    def run(self) -> None:
        """Keep going; called by `start`."""
        # Whether the last step began after the streams had ended: only such a one can tell that nothing is left.
        draining = False

        def drained() -> bool:
            return draining and not (self.forwarder.busy and self.forwarder.status.up)

        def done() -> bool:
            nonlocal draining
            ends = drained() or self._told.is_set()
            draining = self._draining.is_set()
            return ends

        def wait(seconds: float) -> None:
            if not draining:
                self._draining.wait(seconds)
            elif not drained():
                self._told.wait(seconds)

        try:
            _keep_going(self.forwarder.step, done, wait, self._restarts)
        finally:
            self.forwarder.close()
            self.ended = True
            self._at_end()


def _keep_going(step: Callable[[], float], done: Callable[[], bool], wait: Callable[[float], object], restarts: Count) -> None:
    delays = backoff(*_RESTART, random.uniform)
    while not done():
        try:
            seconds = step()
        except Closed:
            return
        except JournalError:
            # No bug: the journal has said what is wrong with it.
            seconds = _JOURNAL
        except Exception:
            log.exception("a thread died of a bug and is started again", thread=threading.current_thread().name)
            restarts.inc()
            seconds = next(delays)
        if seconds:
            wait(seconds)
