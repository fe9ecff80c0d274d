"""Pages of the journal's content, as readers, the HTTP port and the commands have them; encoded to JSON as they are.

A page says from where to go on. So no reader holds everything that is stored, and none keeps the file busy for long.
"""

from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Final

import msgspec

from bridge.journal.model import DeathReason

DEAD_LETTERS_PER_PAGE: Final = 500
"""Most dead letters in one page, and in one replay or drop."""

EVENTS_PER_PAGE: Final = 5_000
RETRIES_PER_PAGE: Final = 50_000
MESSAGES_PER_PAGE: Final = 50
ROWS_PER_VERIFY: Final = 500

SeqOrId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""The sequence number of an event, or the id of a row."""


time_of: Final = partial(datetime.fromtimestamp, tz=UTC)
"""Convert seconds since the epoch."""


class DeadLetterQuery(msgspec.Struct, frozen=True):
    """Filter of dead letters; None lets all pass.

    Attributes:
        since: Given up at this time or later.
        uuid: The event's uuid, in lower case.
        type: The event's type. A damaged dead letter has neither a type nor a uuid.
    """

    sink: str | None = None
    reason: DeathReason | None = None
    since: datetime | None = None
    uuid: str | None = None
    type: str | None = None


class StoredDeadLetter(msgspec.Struct, frozen=True):
    """A dead letter.

    Attributes:
        id: Its number. Numbers grow, over all sinks, and are never used twice.
        reason: A `DeathReason`, or `damaged`.
        error: The last error.
        attempts: How often it was tried.
        seq: The event's sequence number.
        event: The event as JSON; null if it is damaged.
        damaged: Its bytes changed on the disk. Only the id and the sink are known then; it can be dropped, and not replayed.
    """

    id: int
    sink: str
    reason: str = "damaged"
    error: str = "its bytes changed on the disk"
    attempts: int = 0
    received: datetime | None = None
    first_failed: datetime | None = None
    died: datetime | None = None
    seq: int | None = None
    event: msgspec.Raw = msgspec.Raw(b"null")
    damaged: bool = False


class DeadLetterPage(msgspec.Struct, frozen=True):
    """Dead letters, oldest first; perhaps none, although later pages have some.

    Attributes:
        next: The `after` of the following page; None at the end.
    """

    dead_letters: list[StoredDeadLetter]
    next: int | None


class RetryPage(msgspec.Struct, frozen=True):
    """Sequence numbers of events that wait in a sink's retry queue, in order; `next` as in `DeadLetterPage`."""

    retries: list[int]
    next: int | None


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


class Rewound(msgspec.Struct, frozen=True):
    """Result of setting a sink's cursor back.

    Attributes:
        first: The sequence number from which the sink gets events again.
        events: How many there are up to where it was; 0 if it was not past that.
    """

    first: int
    events: int


class QuarantinedMessage(msgspec.Struct, frozen=True):
    """A malformed message: its bytes, of which only the first are kept if it is long."""

    id: int
    stream: str
    received: datetime
    reason: str
    frame: bytes


class QuarantinePage(msgspec.Struct, frozen=True):
    """Malformed messages, oldest first; `next` as in `DeadLetterPage`."""

    quarantine: list[QuarantinedMessage]
    next: int | None


class JournalExtent(msgspec.Struct, frozen=True):
    """The sequence numbers of the first stored event and of the one that comes next (equal if nothing is stored), and the size.

    The size is None if the file is too damaged to tell; events may be readable all the same.
    """

    first: int
    next: int
    bytes: int | None = None


class StoredEvent(msgspec.Struct, frozen=True):
    """An event with its sequence number."""

    seq: int
    received: datetime
    event: msgspec.Raw


class EventPage(msgspec.Struct, frozen=True):
    """Stored events in order.

    Attributes:
        upto: The last sequence number that was looked at: the `after` of the following page, or that of the question at the
            end.
        damaged: How many events up to there can't be read.
    """

    events: list[StoredEvent]
    upto: int
    damaged: int


class VerifyPage(msgspec.Struct, frozen=True):
    """The result of comparing stored rows with their checksums.

    Attributes:
        upto: As in `EventPage`.
        events: How many events up to there are sound.
        damaged: Stretches that are not: a sequence number, and how many events from there on.
    """

    upto: int
    events: int
    damaged: list[tuple[int, int]]


class SinkBacklog(msgspec.Struct):
    """Events that wait at one sink.

    Attributes:
        accepted: Events that the journal took since the sink exists.
        pending: Those that the sink has neither acknowledged nor given up; `retrying` is the part of them that failed.
        up: The sink can deliver now; None if no bridge runs that could tell.
        error: Why it can't.
        lag_seconds: Age of the oldest pending event; 0 if none is pending, None if it can't be read.
        next_attempt: When a sink that is not up is tried again; None if that is not known.
    """

    accepted: int
    delivered: int
    pending: int
    retrying: int
    dead_letters: int
    up: bool | None = None
    error: str | None = None
    lag_seconds: float | None = None
    next_attempt: datetime | None = None
