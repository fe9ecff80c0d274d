"""What an operator can look at and change: dead letters, quarantine, stored events, what waits.

There are two ways to the same operations: on the journal itself (`bridge.admin.operations_journal`; the bridge uses it for
its HTTP port, a command for the file that a stopped bridge left), and over HTTP (`bridge.admin.client`). Whoever uses them
knows only `Inspection`, which looks, and `Operations`, which changes things as well. The values here also go over HTTP.

Everything goes page by page, so that nobody has to hold all that is stored: a page tells where the next one begins.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Protocol

import msgspec

from bridge.field_types import duration
from bridge.journal import DeathReason

LETTERS: Final = 500
"""Dead letters in one page, and in one replay or drop, at most."""

EVENTS: Final = 5_000
"""Events in one page at most."""

FRAMES: Final = 50
"""Malformed messages in one page at most."""

ROWS: Final = 500
"""Rows of the journal that are verified at a time at most."""

Place = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A place in the journal, or the number of something in it."""

_UNITS: Final = ("s", "m", "h", "d")
"""What an age ends with."""


class OperationError(Exception):
    """It can't be done, or nobody can be asked to do it; the text says why, and what would help."""


class NotConfiguredError(OperationError):
    """The sink whose dead letters are to be replayed is not configured."""


class LetterQuery(msgspec.Struct, frozen=True):
    """Which dead letters; None lets all pass.

    Attributes:
        since: Those that died then or later.
        uuid: The event's uuid, in lower case.
        type: The event's type.
    """

    sink: str | None = None
    reason: DeathReason | None = None
    since: datetime | None = None
    uuid: str | None = None
    type: str | None = None


class Letter(msgspec.Struct, frozen=True):
    """A dead letter.

    Attributes:
        seq: Its event's place in the journal.
        attempts: How often it was tried.
        event: The event as JSON; null if it is damaged.
        damaged: Whether its bytes changed on the disk. Nothing else is said of it then, and it can only be dropped.
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


class Letters(msgspec.Struct, frozen=True):
    """A page of dead letters, oldest first; `next` is to be given as `after` for the following page, None at the end."""

    dead_letters: list[Letter]
    next: int | None


class Replayed(msgspec.Struct, frozen=True):
    """How far a replay got.

    Attributes:
        taken: How many of the given dead letters, from the first on, are done with; there was no room for the rest.
        replayed: How many of those wait for delivery now; the others were not there any more.
        retrying: How many events of the sink wait for a retry.
        room: Up to how many that may be by replaying.
    """

    taken: int
    replayed: int
    retrying: int
    room: int


class Frame(msgspec.Struct, frozen=True):
    """A malformed message: its bytes, of which only the first are kept if it is long."""

    id: int
    stream: str
    received: datetime
    reason: str
    frame: bytes


class Frames(msgspec.Struct, frozen=True):
    """A page of malformed messages, oldest first; `next` as with `Letters`."""

    quarantine: list[Frame]
    next: int | None


class Stored(msgspec.Struct, frozen=True):
    """The journal's extent: the place of the first event that it holds, that of the one that comes next, and its size.

    The size is None if it is too damaged to be told; events may be readable all the same.
    """

    first: int
    next: int
    bytes: int | None


class StoredEvent(msgspec.Struct, frozen=True):
    """An event and its place."""

    seq: int
    received: datetime
    event: msgspec.Raw


class Events(msgspec.Struct, frozen=True):
    """A page of stored events.

    Attributes:
        upto: The last place that was looked at, to be given as `after` for the next page.
        damaged: How many places of them could not be read.
    """

    events: list[StoredEvent]
    upto: int
    damaged: int


class Checked(msgspec.Struct, frozen=True):
    """A page of verified rows.

    Attributes:
        upto: The last place that was looked at, to be given as `after` for the next page.
        events: How many events are sound.
        damaged: What is not: a place, and how many events from there on.
    """

    upto: int
    events: int
    damaged: list[tuple[int, int]]


class Waiting(msgspec.Struct, frozen=True):
    """What waits at one sink.

    Attributes:
        up: Whether the sink can deliver now; None if no bridge runs that could tell.
        error: Why not.
        accepted: Events that the journal took since the sink exists.
        pending: Those of them that the sink has neither got nor given up, and `retrying` the part of them that failed.
        lag_seconds: The age of the oldest pending event; 0 if none is, None if nobody knows.
    """

    accepted: int
    delivered: int
    pending: int
    retrying: int
    dead_letters: int
    up: bool | None = None
    error: str | None = None
    lag_seconds: float | None = None


class Inspection(Protocol):
    """Looking. Every method raises `OperationError` if it can't."""

    @property
    def running(self) -> bool:
        """Whether a bridge runs there, which delivers what waits."""

    def dead_letters(self, query: LetterQuery, after: int, limit: int) -> Letters:
        """Dead letters whose number is larger than `after`."""

    def quarantine(self, after: int, limit: int) -> Frames:
        """Malformed messages whose number is larger than `after`."""

    def stored(self) -> Stored:
        """What the journal holds."""

    def events(self, after: int, limit: int) -> Events:
        """Stored events after a place."""

    def verify(self, after: int, rows: int) -> Checked:
        """Compare stored rows after a place with their checksums."""

    def damage(self) -> str | None:
        """What SQLite finds wrong with the whole file; takes a while. None if nothing."""

    def backlog(self) -> Mapping[str, Waiting]:
        """What waits, by sink."""


class Operations(Inspection, Protocol):
    """Looking, and changing things."""

    def replay(self, sink: str, ids: Sequence[int]) -> Replayed:
        """Let a sink have dead letters of its own once more, in the order of the journal, as far as there is room."""

    def drop(self, ids: Sequence[int]) -> int:
        """Delete dead letters for ever; return how many were there."""

    def prune(self) -> int:
        """Delete what nobody needs now; return how many bytes became free."""


def moment(text: str, now: datetime) -> datetime:
    """Read a point in time: RFC 3339 (without an offset it is UTC), or an age, like 90s, 15m, 2h or 3d.

    Raises:
        ValueError: It is neither.
    """
    try:
        if text.strip().endswith(_UNITS):
            return now - timedelta(seconds=duration(text))
        found = datetime.fromisoformat(text.strip())
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be a time, like 2026-11-23T10:00:00Z, or an age, like 90s, 15m, 2h or 3d") from None
