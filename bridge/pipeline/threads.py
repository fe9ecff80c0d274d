"""One thread per stream and one per sink: each keeps calling `step` until it is stopped.

All are daemons: a thread that hangs in a call to the outside must not keep the process from ending.
"""

import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import structlog

from bridge.journal import Closed, JournalError
from bridge.pipeline.forwarder import Forwarder
from bridge.pipeline.stream import Stream
from bridge.policy import backoff

log = structlog.get_logger(__name__)

_JOURNAL_RETRY_SECONDS: Final = 1.0

_RESTART_SECONDS: Final = (0.5, 30.0)
"""First and longest delay before a thread that died of a bug goes on."""

_CONNECT_SECONDS: Final = 10.0
"""A changed stream has so long to connect; then the old session ends all the same."""

_OVERLAP_SECONDS: Final = 2.0
"""Both sessions are open so long: what was sent to the old one before still arrives."""

_PROGRESS_SECONDS: Final = 0.02
"""Time between two records of what deliveries have brought: a kill repeats what was acknowledged since the last one."""

_END_SECONDS: Final = 5.0
"""An old session has so long to end; then the new one is read all the same."""


class Count(Protocol):
    """A counter of the metrics."""

    def inc(self) -> None:
        """Count one more."""


class Pause:
    """The wait of a thread between two steps, which others can end.

    Attributes:
        until: When the next step begins, in seconds since the epoch; None while one is under way.
    """

    def __init__(self) -> None:
        self.until: float | None = None
        self._ended = threading.Event()

    def wait(self, seconds: float) -> None:
        """Wait for so long, or until somebody ends it."""
        self.until = time.time() + seconds
        self._ended.wait(seconds)
        self.until = None
        self._ended.clear()

    def end(self) -> None:
        """End the wait, or the next one."""
        self._ended.set()


class StreamThread(threading.Thread):
    """Follows one stream. `at_end` is called by the thread before it ends."""

    def __init__(self, stream: Stream, restarts: Count, at_end: Callable[[], None]) -> None:
        super().__init__(name=f"stream-{stream.name}", daemon=True)
        self.stream = stream
        self._restarts = restarts
        self._at_end = at_end
        self._stopped = threading.Event()
        self.pause = Pause()

    def stop(self) -> None:
        """End the session, and no other follows."""
        self._stopped.set()
        self.pause.end()
        self.stream.stop()

    def run(self) -> None:
        """Keep going; called by `start`."""
        _keep_going(lambda: None if self._stopped.is_set() else self.stream.step(), self.pause.wait, self._restarts)
        self._at_end()


class Handover:
    """The old session of a changed stream, kept until the new one is connected."""

    def __init__(self, thread: StreamThread) -> None:
        self.thread = thread
        self.ending = False
        self._until = time.monotonic() + _CONNECT_SECONDS
        self._overlaps = False

    def is_needed(self, new: StreamThread | None) -> bool:
        """Return whether the old session goes on for a while; `new` is None if the stream was dropped meanwhile."""
        now = time.monotonic()
        if new is None or not self.thread.stream.status.connected:
            return False
        if new.ident is None:  # The system has no room for its thread.
            self._until = now + _CONNECT_SECONDS
        if new.stream.status.connected and not self._overlaps:
            self._overlaps, self._until = True, now + _OVERLAP_SECONDS
        if now >= self._until and not self._overlaps:
            log.warning("the changed stream is not connected yet, but the old session ends", stream=new.stream.name)
        return now < self._until

    def end(self) -> None:
        """End the session; what it has read is still committed."""
        self.ending, self._until = True, time.monotonic() + _END_SECONDS
        self.thread.stop()

    def is_over(self) -> bool:
        """Return True once the old session can commit no more, or after `_END_SECONDS`."""
        return self.ending and (not self.thread.stream.status.connected or time.monotonic() >= self._until)


class SinkThread(threading.Thread):
    """Forwards to one sink. `at_end` is called by the thread before it ends.

    Attributes:
        ended: True once nothing is delivered and the journal is not used any more.
    """

    def __init__(self, forwarder: Forwarder, restarts: Count, at_end: Callable[[], None]) -> None:
        super().__init__(name=f"sink-{forwarder.name}", daemon=True)
        self.forwarder = forwarder
        self.ended = False
        self._restarts = restarts
        self._at_end = at_end
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self.pause = Pause()

    def drain(self) -> None:
        """Nothing new will come: go on while there is something to deliver and the sink takes it."""
        self._draining.set()
        self.pause.end()

    def stop(self) -> None:
        """End after the delivery that is under way."""
        self._stopped.set()
        self.drain()

    def run(self) -> None:
        """Keep going; called by `start`."""
        try:
            _keep_going(self._step, self.pause.wait, self._restarts)
        finally:
            self.forwarder.close()
            self.ended = True
            self._at_end()

    def _step(self) -> float | None:
        # Only a step that began after the streams had ended proves that nothing is left.
        drains = self._draining.is_set()
        if self._stopped.is_set():
            return None
        seconds = self.forwarder.step()
        return None if drains and not (self.forwarder.busy and self.forwarder.status.up) else seconds


class ProgressThread(threading.Thread):
    """Lets forwarders record what their deliveries have brought up to now. `wanted` is to be set when a delivery begins."""

    def __init__(self, sinks: Callable[[], Iterable[SinkThread]], restarts: Count) -> None:
        super().__init__(name="progress", daemon=True)
        self.wanted = threading.Event()
        self._stopped = threading.Event()
        self._sinks = sinks
        self._restarts = restarts

    def run(self) -> None:
        """Keep going; called by `start`."""
        _keep_going(self._step, self._stopped.wait, self._restarts)

    def stop(self) -> None:
        """End after what is being recorded."""
        self._stopped.set()
        self.wanted.set()

    def _step(self) -> float | None:
        self.wanted.clear()
        if not sum(sink.forwarder.record_progress() for sink in self._sinks()) and not self._stopped.is_set():
            self.wanted.wait()
        return None if self._stopped.is_set() else _PROGRESS_SECONDS


def _keep_going(step: Callable[[], float | None], wait: Callable[[float], object], restarts: Count) -> None:
    """Call `step`, and wait for as long as it says, until it returns None or the journal is closed."""
    delays = backoff(*_RESTART_SECONDS, random.uniform)
    seconds: float | None = 0.0
    while seconds is not None:
        try:
            seconds = step()
        except Closed:
            return
        except JournalError:
            # No bug: the journal has logged its error.
            seconds = _JOURNAL_RETRY_SECONDS
        except Exception:
            log.exception("a thread died of a bug and is started again", thread=threading.current_thread().name)
            restarts.inc()
            seconds = next(delays)
        if seconds:
            wait(seconds)
