"""The journal's owner: its locks, and the waits of those who use it."""

import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from bridge.journal import scan
from bridge.journal.appender import Appender
from bridge.journal.cursor import Cursor, add, forget_except
from bridge.journal.dedup import Remembered
from bridge.journal.file import JournalError
from bridge.journal.model import Appended, Batch, Closed, Counters, Limits, Settlement, StartAt, StreamCounters, Work
from bridge.journal.operations import OperableReader
from bridge.journal.pruning import Space
from bridge.journal.settings import JournalSettings
from bridge.journal.writer import Store

_RETRY_SECONDS: Final = 0.25
"""Seconds between attempts while the disk fails or the journal is full."""


class Journal(OperableReader):
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
        self._clock, self._monotonic = clock, monotonic
        super().__init__(store := Store(settings.path, settings.durability, settings.max_bytes))
        self._sinks: dict[str, Cursor] = {}
        self._space = Space(store, self._sinks, settings, clock=clock, monotonic=monotonic)
        end, clocks = scan.extent(store.db).next, {"clock": clock, "monotonic": monotonic}
        self._appender = Appender(store, self._space, next_seq=end, observe_commit=observe_commit, **clocks)
        self._remembered = Remembered(store, settings.dedup, self._appender, monotonic)

    # Streams

    def append(self, batch: Batch) -> Appended:
        """Commit a batch; return when it is durable. Waits while the disk fails or the journal is full.

        The first batch waits, too, until all uuids that the file holds are remembered.

        Raises:
            Closed: The journal was closed before the batch was committed.
        """
        self._remembered.done.wait()
        closing, ticket = self._store.closing, self._appender.enqueue(batch)
        while True:
            with self._store.lock:
                while ticket.outcome is None and not closing.is_set() and self._appender.commit():
                    pass
            if ticket.outcome is not None:
                return ticket.outcome
            if closing.wait(_RETRY_SECONDS):
                raise Closed

    @property
    def accepts(self) -> bool:
        """False for a moment after a start, while uuids are read and `append` waits."""
        return self._remembered.done.is_set()

    def position(self, stream: str) -> str | None:
        """Return the position that was committed last, from which a stream resumes."""
        with self._store.changed:
            return self._appender.streams.get(stream, StreamCounters()).position

    # Sinks

    def add_sink(self, name: str, start_at: StartAt, max_pending: int = 1000) -> None:
        """Give a sink its cursor: the one that it had, or for a new sink the end or the beginning of the stored events.

        A replay fills half of `max_pending`, the number of events in the retry queue at which nothing new is read.

        Raises:
            JournalError: It can't be recorded.
        """
        with self._store.lock:
            if name not in self._sinks:
                cursor = add(self._store, name, start_at, self._appender.next_seq)
                with self._store.changed:
                    self._sinks[name] = cursor
                self._space.share()
            self._sinks[name].max_pending = max_pending

    def forget_sinks_except(self, names: set[str]) -> None:
        """Delete the cursors and retry queues of all sinks that are not configured any more, and log how much was pending.

        Raises:
            JournalError: It can't be recorded.
        """
        with self._store.lock:
            for name in forget_except(self._store, names, self._appender.next_seq):
                with self._store.changed:
                    gone = self._sinks.pop(name, None)
                if gone is not None:
                    gone.close()
            self._space.share()

    def next_work(self, sink: str, now: float, limits: Limits, *, new_first: bool = False, timeout: float = 0.0) -> Work:
        """Return what the sink has to deliver next: due retries if there are any, or else what lies after the cursor.

        The cursor stays. `Work.paused` says why nothing new is read. With `new_first`, new events are read although retries are
        due. Waits for work at most `timeout` seconds, and until the next retry is due; `wake` ends that.

        Raises:
            Closed: The journal was closed.
            JournalError: It can't be read.
        """
        cursor = self._sinks[sink]
        work = self._work_now(sink, cursor, now, limits, new_first=new_first)
        if timeout and not (work.due or work.entries or work.paused):
            patience = timeout if work.next_due is None else min(timeout, work.next_due - now)
            if patience > 0 and (self.wait(cursor.row.cursor, patience) or self._store.closing.is_set()):
                work = self._work_now(sink, cursor, now, limits, new_first=new_first)
        return work

    def _work_now(self, sink: str, cursor: Cursor, now: float, limits: Limits, *, new_first: bool) -> Work:
        """Look for work, and step over damage."""
        operation = f"read {sink}"
        while True:
            end = self._appender.next_seq
            with cursor.reading:
                if self._store.closing.is_set():
                    raise Closed
                try:
                    work, damaged = cursor.next_work(now, limits, end, new_first=new_first)
                except sqlite3.Error as error:
                    raise self._store.failure(operation, error) from error
            if operation in self._store.errors:
                self._store.set_error(operation, None)
            if not damaged and (work.due or work.entries or work.paused or cursor.row.cursor >= end):
                return work
            with self._store.lock:
                if self._store.closing.is_set():
                    raise Closed
                if damaged:
                    self._space.drop_retries(sink, cursor, damaged)
                    continue
                if self._space.skip(sink, cursor, end):
                    continue
            self._store.closing.wait(_RETRY_SECONDS)
            return work

    def wait(self, seq: int, timeout: float) -> bool:
        """Wait until the event with a sequence number is there; return False if `wake` was called or the time was up before."""
        with self._store.changed:
            if self._appender.next_seq <= seq and not self._store.closing.is_set():
                self._store.changed.wait(timeout)
            return self._appender.next_seq > seq

    def wake(self) -> None:
        """End all waits of `next_work` and `wait`."""
        with self._store.changed:
            self._store.changed.notify_all()

    def settle(self, sink: str, outcome: Settlement) -> int:
        """Record the outcome of a delivery; return how many events are in the retry queue then.

        The record survives the death of the process at once, a power failure a moment later. Waits while the disk fails, or
        there is no room for new retries and dead letters.

        Raises:
            Closed: The journal was closed before it could be recorded.
        """
        store = self._store
        copies = outcome.next_seq > outcome.first_seq and (outcome.retries or outcome.dead)
        while True:
            with store.lock, suppress(JournalError):
                if not copies or self._space.takes_copies(sink, self._appender.window.oldest_seq):
                    retrying = self._sinks[sink].settle(store, outcome)
                    if outcome.dead:
                        self._space.trim(sink)
                    return retrying
            if store.closing.wait(_RETRY_SECONDS):
                raise Closed

    # Everybody

    def counters(self) -> Counters:
        """Return all counts at one instant; they add up."""
        with self._store.changed:
            streams = {
                name: msgspec.structs.replace(counters, malformed=dict(counters.malformed))
                for name, counters in self._appender.streams.items()
            }
            sinks = {name: cursor.counters(self._appender.next_seq) for name, cursor in self._sinks.items()}
            return Counters(streams, sinks, self._store.used, self._store.last_error)

    def oldest(self, sink: str) -> bytes | None:
        """Return the JSON of the oldest pending event of a sink; None if there is none.

        Raises:
            Closed: The journal was closed.
            JournalError: It can't be read.
        """
        cursor = self._sinks[sink]
        if self._store.closing.is_set():
            raise Closed
        if cursor.retrying:
            return self.oldest_retry(sink)
        seq = max(cursor.row.cursor, cursor.dropped_before)
        return self.event_at(seq) if seq < self._appender.next_seq else None

    def prune(self) -> bool:
        """Delete events behind all cursors and old uuids, and make settlements durable. Call it every second or so.

        Takes a quarter of a second at most, and lets others commit meanwhile. Returns whether there may be more to delete.
        """
        # Uuids can be pruned once the dedup window is read; what is read meanwhile is for the next call.
        store, all_read = self._store, self._remembered.done.is_set()
        until, more = self._monotonic() + 0.25, True
        while more and self._monotonic() < until:
            with store.lock:
                more = not store.closing.is_set() and self._space.prune_some(self._appender.window.oldest_seq)
            if more:
                # A lock is not fair: let go and taken again at once, it keeps the others waiting.
                store.closing.wait(0.001)
        with store.lock, suppress(Closed, JournalError):
            if "room" in store.errors:
                # Nobody may be waiting for it any more.
                self._space.make_room(self._appender.window.oldest_seq)
            self._appender.keep_clock()
            store.sync()
        return more or not all_read

    def prune_all(self) -> int:
        """Prune until nothing is left to delete; return how many bytes became free."""
        before = self._store.used
        while self.prune():
            self._store.closing.wait(0.02)
        return max(0, before - self._store.used)

    def announce(self, url: str, secret: str) -> None:
        """Tell commands of this user where the HTTP port is, and the secret that opens its operations; see `holder`."""
        self._store.announce(url, secret)

    def close(self) -> None:
        """End all waits, write the log into the file and unlock it. May be called twice."""
        self._store.closing.set()
        self.wake()
        self.interrupt()
        self._remembered.end()
        with self._store.lock, self._reading:
            for cursor in self._sinks.values():
                cursor.close()
            super().close()
            self._store.close()
