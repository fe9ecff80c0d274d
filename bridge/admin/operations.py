"""Operations that change a journal for an operator: replay and drop dead letters, prune.

A bridge offers them on its HTTP port (`bridge.admin.routes`, asked by `bridge.admin.client`). A command uses them directly on
the file of a stopped bridge.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

import msgspec
import structlog

from bridge.field_types import duration
from bridge.journal import Journal

log = structlog.get_logger(__name__)

LETTER_PAGE: Final = 500
"""Most dead letters in one page, and in one replay or drop."""

EVENT_PAGE: Final = 5_000
MESSAGE_PAGE: Final = 50
VERIFY_PAGE: Final = 500
"""Most events, malformed messages and verified rows in one page."""


class OperationError(Exception):
    """An operation failed, or no bridge can be asked for it; the text says why, and what would help."""


class NotConfiguredError(OperationError):
    """The sink whose dead letters are to be replayed is not configured."""


class Replayed(msgspec.Struct, frozen=True):
    """Result of a replay.

    Attributes:
        taken: How many of the given dead letters, from the first on, were handled; there was no room for the rest.
        replayed: How many of those wait for delivery now; the others did not exist any more.
        retrying: Events in the sink's retry queue.
        room: The number of events up to which a replay fills the retry queue.
    """

    taken: int
    replayed: int
    retrying: int
    room: int


class SinkLimits(NamedTuple):
    """Settings of a sink that a replay needs: `retry.max_pending` and `start_at`."""

    max_pending: int
    start_at: Literal["latest", "earliest"]


class Operations:
    """Changes a journal that this process owns.

    A replay fills at most half of `retry.max_pending`. At `max_pending` the forwarder offers no new events, so an unlimited
    replay would block live traffic.

    Args:
        journal: The journal.
        limits: Returns the sinks that are configured now, by name.
        running: A bridge runs on it.
        clock: The time of day in seconds since the epoch.

    Raises:
        JournalError: By every method: the journal can't be read or written.
        Closed: By every method: the journal was closed.
    """

    def __init__(
        self,
        journal: Journal,
        limits: Callable[[], Mapping[str, SinkLimits]],
        *,
        running: bool,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.journal = journal
        self.running = running
        self._limits = limits
        self._clock = clock

    def replay(self, sink: str, ids: Sequence[int]) -> Replayed:
        """Send dead letters of a sink to its retry queue, in the order of the journal, as far as there is room.

        Raises:
            NotConfiguredError: There is no such sink.
        """
        try:
            limits = self._limits()[sink]
            if not self.running:
                # In a running bridge the sinks have their cursors; one that was made here would be moved by nobody.
                self.journal.add_sink(sink, limits.start_at)
            retrying = self.journal.retrying(sink)
        except KeyError:
            raise NotConfiguredError(f"no sink {sink} is configured, so that nothing can be sent to it again") from None
        room = max(1, limits.max_pending // 2)
        taken = list(ids[: max(0, room - retrying)])
        replayed = self.journal.replay(sink, taken, self._clock()) if taken else 0
        return Replayed(len(taken), replayed, self.journal.retrying(sink), room)

    def drop(self, ids: Sequence[int]) -> int:
        """Delete dead letters for ever; return how many there were."""
        dropped = self.journal.discard(list(ids))
        if dropped and self.running:
            # Nothing else remembers that somebody did it.
            log.warning("dead letters were deleted by an operator", count=dropped)
        return dropped

    def prune(self) -> int:
        """Delete events that no sink needs; return how many bytes became free."""
        before = self.journal.counters().bytes
        while self.journal.prune():
            time.sleep(0.02)  # Others want to commit meanwhile.
        return max(0, before - self.journal.counters().bytes)


def parse_time(text: str, now: datetime) -> datetime:
    """Read a point in time: RFC 3339 (UTC without an offset), or an age, like 90s, 15m, 2h or 3d.

    Raises:
        ValueError: It is neither.
    """
    try:
        if text.strip().endswith(("s", "m", "h", "d")):
            return now - timedelta(seconds=duration(text))
        found = datetime.fromisoformat(text.strip())
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be a time, like 2026-11-23T10:00:00Z, or an age, like 90s, 15m, 2h or 3d") from None
