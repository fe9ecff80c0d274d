"""The operations on the journal itself."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

import msgspec
import structlog

from bridge.admin.operations import (
    Checked,
    Events,
    Frame,
    Frames,
    Letter,
    LetterQuery,
    Letters,
    NotConfiguredError,
    OperationError,
    Replayed,
    Stored,
    StoredEvent,
    Waiting,
)
from bridge.event import fields_of
from bridge.journal import DeadLetterQuery, Journal, JournalError, JournalReader, SinkCounters, StoredDeadLetter

log = structlog.get_logger(__name__)

_EVENT_BYTES: Final = 4 << 20
"""About how many bytes of events are in one page at most."""


_PAUSE: Final = 0.02
"""Seconds between two parts of a long deletion."""


class SinkLimits(NamedTuple):
    """What a replay has to know of a sink: `retry.max_pending` and `start_at`."""

    max_pending: int
    start_at: Literal["latest", "earliest"]


class JournalInspection:
    """Looks into a journal, be it open for a bridge or only for reading.

    Args:
        journal: Which.
        running: Whether a bridge runs on it.
    """

    def __init__(self, journal: Journal | JournalReader, *, running: bool) -> None:
        self._inside = journal
        self.running = running

    def dead_letters(self, query: LetterQuery, after: int, limit: int) -> Letters:
        """See `Inspection`."""
        since = query.since.timestamp() if query.since else None
        with _told():
            page = self._inside.dead_letters(
                DeadLetterQuery(query.sink, query.reason, since, query.uuid, query.type), after, limit
            )
        return Letters([_letter(stored) for stored in page.found], None if page.upto == after else page.upto)

    def quarantine(self, after: int, limit: int) -> Frames:
        """See `Inspection`."""
        with _told():
            found = self._inside.quarantine(after, limit)
        frames = [Frame(kept.id, kept.stream, _time(kept.received), kept.reason, kept.frame) for kept in found]
        return Frames(frames, frames[-1].id if frames else None)

    def stored(self) -> Stored:
        """See `Inspection`."""
        with _told():
            extent = self._inside.extent()
        try:
            used = self._inside.counters().bytes
        except JournalError:
            used = None
        return Stored(extent.first, extent.next, used)

    def events(self, after: int, limit: int) -> Events:
        """See `Inspection`."""
        with _told():
            page = self._inside.events(after, limit, _EVENT_BYTES)
        events = [StoredEvent(entry.seq, _time(entry.received), msgspec.Raw(entry.json)) for entry in page.entries]
        return Events(events, page.upto, page.damaged)

    def verify(self, after: int, rows: int) -> Checked:
        """See `Inspection`."""
        with _told():
            page = self._inside.verify(after, rows)
        return Checked(page.upto, page.events, page.damaged)

    def damage(self) -> str | None:
        """See `Inspection`."""
        with _told():
            return self._inside.check()

    def backlog(self) -> Mapping[str, Waiting]:
        """See `Inspection`."""
        with _told():
            return {name: self._waiting(name, sink) for name, sink in self._inside.counters().sinks.items()}

    def _waiting(self, name: str, sink: SinkCounters) -> Waiting:
        oldest = self._oldest(name, sink) if sink.pending else None
        lag = (
            max(0.0, time.time() - datetime.fromisoformat(fields_of(oldest).datetime).timestamp())
            if oldest
            else None
            if sink.pending
            else 0.0
        )
        return Waiting(sink.accepted, sink.delivered, sink.pending, sink.retrying, sink.dead_letters, lag_seconds=lag)

    def _oldest(self, name: str, sink: SinkCounters) -> bytes | None:
        if isinstance(self._inside, Journal):
            return self._inside.oldest(name)
        if sink.retrying:
            return self._inside.oldest_retry(name)
        return self._inside.event_at(self._inside.extent().next - sink.pending)


class JournalOperations(JournalInspection):
    """Looks into a journal that this process owns, and changes it.

    A replay fills the retry queue no further than half of what the sink may have there: beyond all of it the sink would get
    no new events, and it would be the dead that keep the living waiting.

    Args:
        journal: Which.
        limits: Tells the sinks that are configured now, by name.
        running: Whether a bridge runs on it.
        clock: The time of day in seconds since the epoch.
    """

    def __init__(
        self,
        journal: Journal,
        limits: Callable[[], Mapping[str, SinkLimits]],
        *,
        running: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(journal, running=running)
        self._journal = journal
        self._limits = limits
        self._clock = clock

    def replay(self, sink: str, ids: Sequence[int]) -> Replayed:
        """See `Operations`."""
        limits = self._limits().get(sink)
        if limits is not None and not self.running:
            # In a running bridge the sinks have their cursors; one that was made here would be moved by nobody.
            with _told():
                self._journal.add_sink(sink, limits.start_at)
        if limits is None or sink not in self._journal.counters().sinks:
            raise NotConfiguredError(f"no sink {sink} is configured, so that nothing can be sent to it again")
        with _told():
            room = max(1, limits.max_pending // 2)
            taken = list(ids[: max(0, room - self._journal.retrying(sink))])
            replayed = self._journal.replay(sink, taken, self._clock()) if taken else 0
            return Replayed(len(taken), replayed, self._journal.retrying(sink), room)

    def drop(self, ids: Sequence[int]) -> int:
        """See `Operations`."""
        with _told():
            dropped = self._journal.discard(list(ids))
        if dropped and self.running:
            # Nothing else remembers that somebody did it.
            log.warning("dead letters were deleted by an operator", count=dropped)
        return dropped

    def prune(self) -> int:
        """See `Operations`."""
        with _told():
            before = self._journal.counters().bytes
            while self._journal.prune():
                time.sleep(_PAUSE)
            return max(0, before - self._journal.counters().bytes)


@contextmanager
def _told() -> Iterator[None]:
    """Let what is wrong with the journal be told like everything else that can't be done."""
    try:
        yield
    except JournalError as error:
        raise OperationError(str(error)) from None


def _letter(stored: StoredDeadLetter) -> Letter:
    if stored.damaged:
        return Letter(stored.id, stored.sink, damaged=True)
    letter = stored.letter
    return Letter(
        id=stored.id,
        sink=stored.sink,
        reason=letter.reason,
        error=letter.error,
        attempts=letter.attempts,
        received=_time(letter.received),
        first_failed=_time(letter.first_failed),
        died=_time(letter.died),
        seq=letter.seq,
        event=msgspec.Raw(letter.json),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
