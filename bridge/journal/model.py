"""The records that go into the journal and come out of it."""

from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

import msgspec

from bridge.event import Event, Malformed
from bridge.sink import Entry, Reason

DeathReason = Literal["rejected", "too_large", "too_old", "too_many_attempts", "skipped"]
"""Why an event became a dead letter, a small fixed set."""


Paused = Literal["retry_queue_full", "dead_letters_full"]
"""Why a sink gets no new events."""


StartAt = Literal["latest", "earliest"] | float
"""Where a new sink begins: with the next event, the oldest stored one, or the first one received at a time (epoch seconds)."""


class Closed(Exception):
    """The journal was closed while somebody waited for it."""


class Appended(NamedTuple):
    """The outcome of an append: the number of new events, and of duplicates."""

    accepted: int
    duplicate: int


class Batch(msgspec.Struct, frozen=True):
    """The normalized messages of one read of a stream.

    Attributes:
        stream: The stream's name.
        namespace: Where its uuids are unique.
        received: When, in seconds since the epoch.
        position: From where the stream resumes once this is committed; None leaves it as it was.
    """

    stream: str
    received: float
    events: list[Event]
    malformed: list[Malformed]
    position: str | None = None
    namespace: str = ""


class Retry(msgspec.Struct, frozen=True):
    """An event of one sink that failed by itself, or waits behind one that did.

    Attributes:
        seq: Its sequence number.
        received: When it was received, in seconds since the epoch.
        json: The event.
        ordering_key: Events with the same key keep their order: the resource URI, or the uuid if the sink's ordering is `none`.
        attempts: How often it was tried.
        due: When it is due again, in seconds since the epoch; 0 while it waits behind another.
        since: When it entered the queue.
        reason: Why it failed last, as a label.
        error: Why, in words.
    """

    seq: int
    received: float
    json: bytes
    ordering_key: str
    attempts: int
    due: float
    since: float
    reason: Reason
    error: str


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that a sink will not be offered again unless somebody replays it.

    Attributes:
        ordering_key: Keeps its order if it is replayed, as for a `Retry`.
        attempts: How often it was tried.
        first_failed: When it failed first, in seconds since the epoch.
        died: When it was given up.
        reason: Why it was given up, as a label.
        error: The last error, in words.
    """

    seq: int
    received: float
    json: bytes
    ordering_key: str
    attempts: int
    first_failed: float
    died: float
    reason: DeathReason
    error: str


class Settlement(msgspec.Struct, frozen=True):
    """The outcome of one delivery, recorded in one transaction.

    Every event of `[first_seq, next_seq)` and every one in `resolved` must be accounted for exactly once: as delivered,
    filtered, in `retries` or in `dead`. An event in `retries` that was in the queue before stays there, not in `resolved`.

    Attributes:
        first_seq: The first new event; equal to `next_seq` if none of them is new.
        next_seq: Where the cursor moves to.
        delivered: How many were acknowledged.
        filtered: How many the sink does not want.
        retries: What enters the retry queue, or stays there with a new due time.
        resolved: The sequence numbers of events that leave the retry queue.
        dead: What becomes a dead letter.
    """

    first_seq: int = 0
    next_seq: int = 0
    delivered: int = 0
    filtered: int = 0
    retries: list[Retry] = []
    resolved: list[int] = []
    dead: list[DeadLetter] = []


class Limits(NamedTuple):
    """Limits of the work that a sink gets at once.

    Attributes:
        max_events: How many events at most.
        max_bytes: How many bytes of events, about, but at least one event.
        max_pending: With so many events in the retry queue, no new ones are read. The journal bounds their bytes, too.
        horizon: A due time beyond this can't be meant (the clock was set back) and counts as due.
    """

    max_events: int
    max_bytes: int
    max_pending: int
    horizon: float


class Work(NamedTuple):
    """The events that a sink has to deliver next.

    Attributes:
        due: Events of the retry queue that are due, in order, each with those that wait behind it under its ordering key.
        entries: New events, in order.
        waiting_keys: The ordering keys of all events in the retry queue; new events of these keys have to wait, too.
        next_due: When the next event of the retry queue is due, in seconds since the epoch; None if the queue is empty.
        retrying: How many events the retry queue has.
        paused: Why the sink gets no new events; None if it does.
    """

    due: list[Retry]
    entries: list[Entry]
    waiting_keys: AbstractSet[str]
    next_due: float | None
    retrying: int
    paused: Paused | None = None


class StreamCounters(msgspec.Struct):
    """The counters of one stream: `received = accepted + duplicate + sum(malformed)`."""

    received: int = 0
    accepted: int = 0
    duplicate: int = 0
    malformed: dict[str, int] = {}
    position: str | None = None


class SinkCounters(msgspec.Struct):
    """The counters of one sink.

    `accepted + replayed + rewound = delivered + filtered + dead + dropped + pending`, and
    `dead = dead_letters + replayed + discarded`.

    Attributes:
        accepted: How many events the journal took since the sink exists, and those whose dead letters it found then.
        pending: How many lie after the cursor or wait in the retry queue.
        retrying: How many of them wait in the retry queue.
        dead: How often an event became a dead letter.
        dead_letters: How many dead letters lie there now.
        replayed: How many dead letters were sent back to the retry queue.
        discarded: How many dead letters were deleted, by an operator or for room.
        rewound: How many events were given to the sink again, since its cursor was set back.
    """

    accepted: int
    delivered: int
    filtered: int
    dead: int
    dropped: int
    pending: int
    retrying: int
    dead_letters: int
    replayed: int = 0
    discarded: int = 0
    rewound: int = 0


class Counters(msgspec.Struct):
    """All counts at one instant, and the journal's own state."""

    streams: dict[str, StreamCounters]
    sinks: dict[str, SinkCounters]
    bytes: int
    last_error: str | None
