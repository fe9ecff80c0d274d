"""The supervisor starts the threads, replaces those whose settings changed, and stops all in order.

One thread per stream, one per forwarder (`bridge.pipeline.threads`); they share the journal and nothing else. The main thread
runs `Supervisor.run`, and it alone starts and ends them.

What has changed replaces what runs under the same name. Of a stream, the new session opens before the old one ends, since there
is no replay; it is read when the old one commits nothing any more, so that order holds, and the journal takes every event once.
Of a sink, the new forwarder begins when the delivery of the old one has returned, since a cursor has one owner. A delivery
that hangs delays only its own replacement.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple, TypeVar

import structlog

from bridge.journal import Journal, JournalError
from bridge.pipeline.forwarder import Forwarder
from bridge.pipeline.stream import Stream
from bridge.pipeline.threads import Count, Handover, Pause, ProgressThread, SinkThread, StreamThread

log = structlog.get_logger(__name__)

Value = TypeVar("Value")

_TICK_SECONDS: Final = 1.0

_LAST_SECONDS: Final = 1.0
"""Threads have so long to end after the grace; then the process ends without them."""

Request = Literal["stop", "reload", "retry", "wake"]
Requests = queue.SimpleQueue[Request]
"""Requests to the main thread. Of all that can wake a thread, only this may be used in a signal handler: an event's
lock may be held at that moment by the very thread that the signal interrupted."""


class Running(NamedTuple):
    """The streams and forwarders that run at one moment.

    Attributes:
        streams: The streams; for a changed one that is not connected yet, the old one.
        forwarders: The forwarders, with those that are stopping.
        stopping: Those by name, each with what happens to the sink then.
        pauses: The waits between attempts, of `stream-NAME` and `sink-NAME`.
    """

    streams: Sequence[Stream] = ()
    forwarders: Sequence[Forwarder] = ()
    stopping: Mapping[str, str] = {}
    pauses: Mapping[str, Pause] = {}


class Supervisor:
    """Runs streams and forwarders over one journal until `stop` is called.

    Args:
        journal: Shared by all; closed in the end.
        restarts: Counts threads that died of a bug.
        grace: Seconds that forwarders have, after the streams have stopped, to deliver what is left.
        requests: A queue that may hold requests from before the supervisor was made.

    Attributes:
        asked_to_stop: True if `run` returned because of `stop`, and not because the journal is damaged.
    """

    def __init__(
        self,
        journal: Journal,
        streams: Sequence[Stream],
        forwarders: Sequence[Forwarder],
        *,
        restarts: Count,
        grace: float,
        requests: Requests | None = None,
    ) -> None:
        self.last_tick = time.monotonic()
        self.grace = grace
        self.asked_to_stop = False
        self._tick_failed = False
        self._journal = journal
        self._restarts = restarts
        self.requests = requests or queue.SimpleQueue()
        self._wake = partial(self.requests.put, "wake")
        # Read by other threads meanwhile: replaced, and never changed.
        self._streams = {stream.name: StreamThread(stream, restarts, self._wake) for stream in streams}
        self._progress = ProgressThread(lambda: list(self._sinks.values()), restarts)
        self._sinks = {forwarder.name: self._sink_thread(forwarder) for forwarder in forwarders}
        self._handovers: dict[str, Handover] = {}
        self._ending: list[StreamThread] = []
        # The sinks whose threads are stopping, each with the forwarder that follows, or None.
        self._replacements: dict[str, Forwarder | None] = {}
        self._to_forget = False
        self._unstarted: list[threading.Thread] = []

    def running(self) -> Running:
        """Return the streams and forwarders that run now. Any thread may ask."""
        streams = {name: thread.stream for name, thread in self._streams.items()}
        for name, old in self._handovers.items():
            if name in streams and old.thread.stream.status.connected and not streams[name].status.connected:
                streams[name] = old.thread.stream
        return Running(
            list(streams.values()),
            [thread.forwarder for thread in self._sinks.values()],
            {name: "to be removed" if after is None else "to be replaced" for name, after in self._replacements.items()},
            {t.name: t.pause for t in self._streams.values()} | {t.name: t.pause for t in self._sinks.values()},
        )

    def stop(self) -> None:
        """Ask `run` to end. May be called from a signal handler and from any thread."""
        self.requests.put("stop")

    def run(self, seconds: float | None = None, reload: Callable[[], None] = lambda: None) -> bool:
        """Run until `stop` is called, for some seconds, or until the journal is found damaged; then stop in order.

        Args:
            seconds: For how long; for ever if None.
            reload: Called when that is requested; it may put and drop streams and sinks.

        Returns:
            True if every thread has ended; if not, one hangs in a call to the outside.
        """
        until = time.monotonic() + (float("inf") if seconds is None else seconds)
        self._start(*self._sinks.values(), *self._streams.values(), self._progress)
        while True:
            asked = self._asked_within(min(_TICK_SECONDS, max(0.0, until - time.monotonic())))
            self.asked_to_stop = "stop" in asked or time.monotonic() >= until
            if self.asked_to_stop or self._journal.damaged:
                return self._shut_down()
            if "reload" in asked:
                reload()
            for pause in self.running().pauses.values() if "retry" in asked else ():
                pause.end()
            self._tick()

    def asked_to_stop_within(self, seconds: float) -> bool:
        """Wait after the return of `run`; return whether `stop` was called."""
        return "stop" in self._asked_within(seconds)

    def put_stream(self, stream: Stream) -> None:
        """Start a stream; one of the same name ends when this one is connected, or after a while."""
        name = stream.name
        if (old := self._streams.get(name)) is not None:
            self._handovers = {**self._handovers, name: Handover(self._session_to_keep(name, old))}
        thread = StreamThread(stream, self._restarts, self._wake)
        self._streams = {**self._streams, name: thread}
        self._start(thread)

    def drop_stream(self, name: str) -> None:
        """End a stream."""
        self._end(self._streams[name])
        self._streams = _without(self._streams, name)

    def put_sink(self, forwarder: Forwarder) -> None:
        """Start a forwarder, whose sink has its cursor; one of the same name ends its delivery before that.

        A sink that was dropped and comes back before its delivery has returned goes on from its cursor.
        """
        old = self._sinks.get(forwarder.name)
        if old is None:
            self._begin(forwarder)
        else:
            self._replacements = {**self._replacements, forwarder.name: forwarder}
            self._finish(old)

    def drop_sink(self, name: str) -> None:
        """End a sink; its cursor is forgotten when its delivery has returned."""
        self._replacements = {**self._replacements, name: None}
        self._finish(self._sinks[name])

    def forget_sinks(self) -> None:
        """Let the journal forget, with the next tick, all sinks that do not run."""
        self._to_forget = True

    def _asked_within(self, seconds: float) -> set[Request]:
        """Wait for requests; return all that are there, so that many of a kind count as one."""
        try:
            asked = {self.requests.get(timeout=seconds)}
        except queue.Empty:
            return set()
        return asked | {self.requests.get() for _ in range(self.requests.qsize())}

    def _tick(self) -> None:
        self.last_tick = time.monotonic()
        for duty in (self._start, self._finish_handovers, self._apply_replacements, self._journal.prune):
            try:
                duty()
            except Exception:
                if not self._tick_failed:
                    log.exception("the main thread has a bug and goes on", duty=duty.__name__)
                self._tick_failed = True

    def _finish_handovers(self) -> None:
        """End the old sessions that are not needed any more."""
        for name, old in self._handovers.items():
            new = self._streams.get(name)
            if not old.ending and not old.is_needed(new):
                self._ending.append(old.thread)
                old.end()
            if old.is_over():
                self._handovers = _without(self._handovers, name)
                if new is not None:
                    new.stream.start_reading()
        self._ending = [thread for thread in self._ending if thread.is_alive()]

    def _session_to_keep(self, name: str, present: StreamThread) -> StreamThread:
        """Return the session to keep while a new one opens; if the last change is not over yet, end one of the two."""
        before = self._handovers.get(name)
        if before is None:
            return present
        if before.thread.stream.status.connected and not before.ending:
            self._end(present)
            return before.thread
        self._end(before.thread)
        present.stream.start_reading()
        return present

    def _apply_replacements(self) -> None:
        """Start the forwarders whose predecessor has ended, and forget the sinks that were removed."""
        for name, after in self._replacements.items():
            old = self._sinks[name]
            if not old.ended:
                continue
            self._replacements = _without(self._replacements, name)
            if after is not None:
                after.inherit_from(old.forwarder)
                self._begin(after)
            else:
                self._sinks = _without(self._sinks, name)
                self._to_forget = True
        if self._to_forget:
            try:
                self._journal.forget_sinks_except(set(self._sinks))
            except JournalError:
                # The journal logs its error; the next tick tries again.
                return
            self._to_forget = False

    def _begin(self, forwarder: Forwarder) -> None:
        thread = self._sink_thread(forwarder)
        self._sinks = {**self._sinks, forwarder.name: thread}
        self._start(thread)

    def _sink_thread(self, forwarder: Forwarder) -> SinkThread:
        forwarder.delivery_begins = self._progress.wanted.set
        return SinkThread(forwarder, self._restarts, self._wake)

    def _start(self, *threads: threading.Thread) -> None:
        """Start threads. If the system has no room for one, each tick tries again: a reload can't fail halfway."""
        before, self._unstarted = self._unstarted, [*self._unstarted, *threads]
        try:
            while self._unstarted:
                self._unstarted[0].start()
                del self._unstarted[0]
        except RuntimeError as error:
            if not before:
                log.warning("a thread can't be started, and is tried again", thread=self._unstarted[0].name, error=str(error))

    def _end(self, thread: StreamThread) -> None:
        thread.stop()
        self._ending.append(thread)

    def _finish(self, thread: SinkThread) -> None:
        thread.stop()
        self._journal.wake()

    def _shut_down(self) -> bool:
        deadline = time.monotonic() + self.grace
        log.info("stopping", grace_seconds=self.grace)
        for running in (*self._streams.values(), *(old.thread for old in self._handovers.values())):
            self._end(running)
        stream_threads, sink_threads = self._ending, list(self._sinks.values())
        self._join(stream_threads, min(deadline, time.monotonic() + self.grace / 2))
        for sink in sink_threads:
            sink.drain()
        self._join(sink_threads, deadline)
        for sink in sink_threads:
            sink.stop()
        self._join(sink_threads, time.monotonic() + _LAST_SECONDS)
        pending = {name: counters.pending for name, counters in self._journal.counters().sinks.items() if counters.pending}
        self._progress.stop()
        self._journal.close()
        self._join((*stream_threads, *sink_threads), time.monotonic() + _LAST_SECONDS)
        log.info("stopped; what is pending waits in the journal", pending_events=pending)
        return not any(thread.is_alive() for thread in (*stream_threads, *sink_threads))

    def _join(self, threads: Sequence[threading.Thread], deadline: float) -> None:
        """Wait for threads to end, until the deadline at most."""
        for thread in threads:
            while thread.is_alive() and (left := deadline - time.monotonic()) > 0:
                self._journal.wake()
                thread.join(min(left, 0.1))
                self.last_tick = time.monotonic()


def _without(mapping: Mapping[str, Value], name: str) -> dict[str, Value]:
    return {other: value for other, value in mapping.items() if other != name}
