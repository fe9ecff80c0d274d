"""The journal's owner: its locks, and the waits of those who use it."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from bridge.journal import file, scan
from bridge.journal.cursor import Sinks
from bridge.journal.dead_letters import DeadLetters
from bridge.journal.dedup import Appender, Remembered
from bridge.journal.model import Appended, Batch, Closed, Counters, Limits, Settlement, Work
from bridge.journal.pages import Replayed
from bridge.journal.pruning import Space
from bridge.journal.reader import ConcurrentReader
from bridge.journal.settings import JournalSettings
from bridge.journal.writer import Store

_RETRY_SECONDS: Final = 0.25
"""Seconds between attempts while the disk fails or the journal is full."""


class Journal(ConcurrentReader):
    """The durable log. Every method may be called from any thread; `next_work` from one thread per sink.

    Args:
        settings: Where it is, and its limits.
        observe_commit: Called with the seconds that a commit of events took.
        clock: The time of day in seconds since the epoch.
        monotonic: Monotonic clock.

    Raises:
        JournalError: It can't be opened; the text says why and what to do.
    """

    def __init__(
        self,
        settings: JournalSettings,
        observe_commit: Callable[[float], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._monotonic = monotonic
        super().__init__(Store(settings.path, settings.durability, settings.max_bytes))
        self._write = threading.Lock()
        self._changed = threading.Condition()
        self._sinks = Sinks(self._store, self._changed)
        self._letters = DeadLetters(self._store, self._sinks, self._changed)
        self._space = Space(self._store, self._sinks, self._changed, self._letters, settings.when_full)
        next_seq = scan.extent(self._store.db).next
        self._remembered = Remembered(self._store, settings.dedup, next_seq, self._closing, clock=clock, monotonic=monotonic)
        self._appender = Appender(
            self._store, self._space, self._remembered, self._changed, next_seq=next_seq, observe_commit=observe_commit
        )

    # Streams

    def append(self, batch: Batch) -> Appended:
        """Commit a batch; return when it is durable. Waits while the disk fails or the journal is full.

        The first batch waits, too, until all uuids that the file holds are remembered.

        Raises:
            Closed: The journal was closed before the batch was committed.
        """
        self._remembered.done.wait()
        ticket = self._appender.enqueue(batch)
        while True:
            with self._write:
                while ticket.outcome is None and not self._closing.is_set() and self._appender.commit():
                    pass
            if ticket.outcome is not None:
                return ticket.outcome
            if self._closing.wait(_RETRY_SECONDS):
                raise Closed

    @property
    def accepts(self) -> bool:
        """False for a moment after a start, while uuids are read and `append` waits."""
        return self._remembered.done.is_set()

    def position(self, stream: str) -> str | None:
        """Return the position that was committed last, from which a stream resumes."""
        with self._changed:
            counters = self._appender.streams.get(stream)
            return counters.position if counters else None

    # Sinks

    def add_sink(self, name: str, start_at: Literal["latest", "earliest"], max_pending: int = 1000) -> None:
        """Give a sink its cursor: the one that it had, or for a new sink the end or the beginning of the stored events.

        A replay fills half of `max_pending`, the number of events in the retry queue at which nothing new is read.

        Raises:
            JournalError: It can't be recorded.
        """
        with self._write, self._store.report_errors("sinks"):
            if name not in self._sinks:
                self._sinks.add(name, start_at, self._appender.next_seq)
            self._sinks[name].max_pending = max_pending

    def forget_sinks_except(self, names: set[str]) -> None:
        """Delete the cursors and retry queues of all sinks that are not configured any more, and log how much was pending.

        Raises:
            JournalError: It can't be recorded.
        """
        with self._write, self._store.report_errors("sinks"):
            self._sinks.forget_except(names, self._appender.next_seq)

    def next_work(self, sink: str, now: float, limits: Limits, *, new_first: bool = False, timeout: float = 0.0) -> Work:
        """Return what the sink has to deliver next: due retries if there are any, or else what lies after the cursor.

        The cursor stays. Nothing new is read while the retry queue holds `limits.max_pending` events.

        Args:
            sink: Whose.
            now: The time of day in seconds since the epoch.
            limits: How much.
            new_first: Read new events although retries are due.
            timeout: Seconds to wait for work, at most until the next retry is due. Ends early at `wake`.

        Raises:
            Closed: The journal was closed.
            JournalError: It can't be read.
        """
        work = self._work_now(sink, now, limits, new_first=new_first)
        if timeout and not (work.due or work.entries or work.retrying >= limits.max_pending):
            patience = timeout if work.next_due is None else min(timeout, work.next_due - now)
            if patience > 0 and (self.wait(self._sinks[sink].row.cursor, patience) or self._closing.is_set()):
                work = self._work_now(sink, now, limits, new_first=new_first)
        return work

    def wait(self, seq: int, timeout: float) -> bool:
        """Wait until the event with a sequence number is there; return False if `wake` was called or the time was up before."""
        with self._changed:
            if self._appender.next_seq <= seq and not self._closing.is_set():
                self._changed.wait(timeout)
            return self._appender.next_seq > seq

    def wake(self) -> None:
        """End all waits of `next_work` and `wait`."""
        with self._changed:
            self._changed.notify_all()

    def settle(self, sink: str, outcome: Settlement) -> int:
        """Record the outcome of a delivery; return how many events are in the retry queue then.

        The record survives the death of the process at once, a power failure a moment later. Events that
        `drop_oldest` dropped while they were being delivered stay counted as dropped.

        Raises:
            Closed: The journal was closed before it could be recorded.
        """
        while True:
            with self._write:
                if self._closing.is_set():
                    raise Closed
                if self._sinks.settle(sink, outcome):
                    return self._sinks[sink].retrying
            self._closing.wait(_RETRY_SECONDS)

    def replay(self, sink: str, ids: Sequence[int]) -> Replayed:
        """Send a sink's dead letters back to its retry queue, due at once, as far as there is room.

        All are moved in one transaction, so that a thousand `ids` or so are enough.

        Raises:
            Closed: The journal was closed.
            JournalError: It can't be recorded; `UnknownSinkError` if the sink is not configured.
        """
        with self._rearranging(sink):
            return self._letters.replay(sink, ids, self._clock())

    def discard(self, ids: Sequence[int]) -> int:
        """Delete dead letters for ever, in one transaction; return how many were there. Raises as `replay` does."""
        with self._rearranging():
            return sum(self._letters.discard(ids).values())

    # Everybody

    def counters(self) -> Counters:
        """Return all counts at one instant; they add up."""
        with self._changed:
            return Counters(
                {
                    name: msgspec.structs.replace(counters, malformed=dict(counters.malformed))
                    for name, counters in self._appender.streams.items()
                },
                {name: cursor.counters(self._appender.next_seq) for name, cursor in self._sinks.items()},
                self._store.used,
                self._store.last_error(),
            )

    @property
    def damaged(self) -> bool:
        """True if damage was found since the file was opened: close it and open it again, which sets it aside."""
        return self._store.damaged

    def damaged_files(self) -> list[Path]:
        """Return the damaged journals that were set aside, now or before, and are still there."""
        return file.damaged_files(self._settings.path)

    def oldest(self, sink: str) -> bytes | None:
        """Return the JSON of the oldest pending event of a sink; None if there is none.

        Raises:
            Closed: The journal was closed.
            JournalError: It can't be read.
        """
        if self._closing.is_set():
            raise Closed
        if self._sinks[sink].retrying:
            return self.oldest_retry(sink)
        seq = self._sinks[sink].row.cursor
        return self.event_at(seq) if seq < self._appender.next_seq else None

    def prune(self) -> bool:
        """Delete events behind all cursors and old uuids, and make settlements durable. Call it every second or so.

        Takes a quarter of a second at most, and lets others commit meanwhile. Returns whether there may be more to delete.
        """
        # Uuids can be pruned once the dedup window is read; what is read meanwhile is for the next call.
        all_read = self._remembered.done.is_set()
        until, more = self._monotonic() + 0.25, True
        while more and self._monotonic() < until:
            with self._write:
                more = not self._closing.is_set() and self._space.prune_some(self._remembered.window.oldest_seq)
            if more:
                # A lock is not fair: let go and taken again at once, it keeps the others waiting.
                self._closing.wait(0.001)
        with self._write:
            if not self._closing.is_set():
                self._store.sync()
        return more or not all_read

    def prune_all(self) -> int:
        """Prune until nothing is left to delete; return how many bytes became free."""
        before = self._store.used
        while self.prune():
            self._closing.wait(0.02)
        return max(0, before - self._store.used)

    def announce(self, url: str, secret: str) -> None:
        """Tell commands of this user where the HTTP port is, and the secret that opens its operations; see `holder`."""
        self._store.announce(url, secret)

    def close(self) -> None:
        """End all waits, write the log into the file and unlock it. May be called twice."""
        self._closing.set()
        self.wake()
        self.interrupt()
        self._remembered.end()
        with self._write, self._reading:
            if self._store.closed:
                return
            for cursor in self._sinks.values():
                cursor.close()
            super().close()
            self._store.close()

    # Inside: everything below is called with the write lock held, unless it says otherwise.

    def _work_now(self, sink: str, now: float, limits: Limits, *, new_first: bool) -> Work:
        """Look for work; called by the sink's thread, without the write lock."""
        cursor = self._sinks[sink]
        while True:
            end = self._appender.next_seq
            with cursor.reading, self._store.report_errors(f"read {sink}"):
                if self._closing.is_set():
                    raise Closed
                work, damaged = cursor.next_work(sink, now, limits, end, new_first=new_first)
            blocked = work.due or work.entries or work.retrying >= limits.max_pending
            if not damaged and (blocked or cursor.row.cursor >= end):
                return work
            with self._write:
                if self._closing.is_set():
                    raise Closed
                if damaged:
                    self._space.drop_retries(sink, cursor, damaged)
                    continue
                skipped = self._space.skip(sink, cursor, end)
            if not skipped:
                self._closing.wait(_RETRY_SECONDS)
            return work

    @contextmanager
    def _rearranging(self, sink: str | None = None) -> Iterator[None]:
        """Take the write lock to change dead letters; a failure is raised, for the operator to see."""
        with self._write:
            if self._closing.is_set():
                raise Closed
            if sink is not None and sink not in self._sinks:
                raise file.UnknownSinkError(f"no sink {sink} is configured, so that nothing can be sent to it again")
            with self._store.report_errors("dead letters"):
                yield
