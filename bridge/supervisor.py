"""Threads: who runs, what happens when one dies, and in which order everything stops.

One thread per stream, one per forwarder; they share the journal and nothing else. Everything that runs is a `step` that
returns how long to wait. The main thread ticks once a second.
"""

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

from bridge.forwarder import Forwarder
from bridge.journal import Closed, Journal
from bridge.policy import backoff
from bridge.stream import Stream

log = structlog.get_logger(__name__)

_TICK: Final = 1.0
_RESTART: Final = (0.5, 30.0)
"""First and longest delay, in seconds, before a thread that died of a bug goes on."""

_NUDGE: Final = 0.1
"""Seconds between two attempts to wake those who wait for events while everything stops."""

_LAST_SECONDS: Final = 1.0
"""How long threads get to end after the grace is over, before the process goes without them."""


class Count(Protocol):
    """What counts, one at a time."""

    def inc(self) -> None:
        """Count one more."""


class Supervisor:
    """Runs streams and forwarders over one journal until it is told to stop.

    Args:
        journal: What they share; it is closed in the end.
        streams: What listens.
        forwarders: What delivers.
        restarts: Counts threads that died of a bug.
        grace: Seconds that forwarders have, after the streams have stopped, to deliver what is left.
    """

    def __init__(
        self, journal: Journal, streams: Sequence[Stream], forwarders: Sequence[Forwarder], *, restarts: Count, grace: float
    ) -> None:
        self.last_tick = time.monotonic()
        self._tick_failed = False
        self._journal = journal
        self._streams = streams
        self._forwarders = forwarders
        self._restarts = restarts
        self._grace = grace
        # Of all that can wake a thread, only this may be used in a signal handler: an event's lock may be held at that moment
        # by the very thread that the signal interrupted.
        self._asked: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._wanted = threading.Event()
        self._draining = threading.Event()
        self._stopped = threading.Event()
        self._stream_threads = [self._thread(f"stream-{s.name}", self._follow, s) for s in streams]
        self._sink_threads = [self._thread(f"sink-{f.name}", self._forward, f) for f in forwarders]

    def stop(self) -> None:
        """Ask `run` to end. May be called from a signal handler and from any thread."""
        self._asked.put(None)

    def run(self, seconds: float | None = None) -> bool:
        """Run until `stop` is called, or for some seconds; then stop in order.

        Returns:
            Whether every thread has ended; if not, one hangs in a call to the outside.
        """
        until = None if seconds is None else time.monotonic() + seconds
        for thread in (*self._sink_threads, *self._stream_threads):
            thread.start()
        while not self._asked_within(_TICK if until is None else min(_TICK, max(0.0, until - time.monotonic()))):
            self._tick()
            if until is not None and time.monotonic() >= until:
                break
        return self._shut_down()

    def _asked_within(self, seconds: float) -> bool:
        try:
            self._asked.get(timeout=seconds)
        except queue.Empty:
            return False
        return True

    def _tick(self) -> None:
        self.last_tick = time.monotonic()
        try:
            self._journal.prune()
        except Exception:
            # Nothing ends the process but a signal; threads that still work go on.
            if not self._tick_failed:
                log.exception("the journal can't be pruned because of a bug")
            self._tick_failed = True

    def _shut_down(self) -> bool:
        deadline = time.monotonic() + self._grace
        log.info("stopping", grace_seconds=self._grace)
        self._wanted.set()
        for stream in self._streams:
            stream.stop()
        self._join(self._stream_threads, min(deadline, time.monotonic() + self._grace / 2))
        self._draining.set()
        self._join(self._sink_threads, deadline)
        self._stopped.set()
        self._join(self._sink_threads, time.monotonic() + _LAST_SECONDS)
        pending = {name: sink.pending for name, sink in self._journal.books().sinks.items() if sink.pending}
        self._journal.close()
        self._join((*self._stream_threads, *self._sink_threads), time.monotonic() + _LAST_SECONDS)
        log.info("stopped; what is pending waits in the journal", pending_events=pending)
        return not any(thread.is_alive() for thread in (*self._stream_threads, *self._sink_threads))

    def _follow(self, stream: Stream) -> None:
        """A stream's thread."""
        self._keep_going(stream.step, self._wanted.is_set, self._wanted.wait)

    def _forward(self, forwarder: Forwarder) -> None:
        """A sink's thread: when the process stops it goes on while there is something to deliver and the sink takes it."""
        # Whether the last step began after the streams had ended: only such a one can tell that nothing is left.
        draining = False

        def drained() -> bool:
            return draining and not (forwarder.busy and forwarder.status.up)

        def done() -> bool:
            nonlocal draining
            ends = drained() or self._stopped.is_set()
            draining = self._draining.is_set()
            return ends

        def wait(seconds: float) -> None:
            if not draining:
                self._draining.wait(seconds)
            elif not drained():
                self._stopped.wait(seconds)

        try:
            self._keep_going(forwarder.step, done, wait)
        finally:
            forwarder.close()

    def _keep_going(self, step: Callable[[], float], done: Callable[[], bool], wait: Callable[[float], object]) -> None:
        delays = backoff(*_RESTART, random.uniform)
        while not done():
            try:
                seconds = step()
            except Closed:
                return
            except Exception:
                log.exception("a thread died of a bug and is started again", thread=threading.current_thread().name)
                self._restarts.inc()
                seconds = next(delays)
            if seconds:
                wait(seconds)

    def _join(self, threads: Sequence[threading.Thread], deadline: float) -> None:
        """Wait for threads to end, until the deadline at most."""
        for thread in threads:
            while thread.is_alive() and (left := deadline - time.monotonic()) > 0:
                self._journal.wake()
                thread.join(min(left, _NUDGE))
                self.last_tick = time.monotonic()

    @staticmethod
    def _thread(name: str, target: Callable[..., None], argument: object) -> threading.Thread:
        # Daemons: a thread that hangs in a call to the outside must not keep the process from ending.
        return threading.Thread(target=target, args=(argument,), name=name, daemon=True)
