"""What goes into the journal and what comes out of it."""

from typing import Literal

import msgspec

from bridge.event import Event, Malformed
from bridge.sink import Reason

DeathReason = Literal["rejected", "too_large", "too_old", "too_many_attempts"]
"""Why an event became a dead letter, a small fixed set."""


class Batch(msgspec.Struct, frozen=True):
    """What one read of a stream brought, normalized.

    Attributes:
        stream: The stream's name.
        received: When, in seconds since the epoch.
        position: From where the stream resumes once this is committed; None leaves it as it was.
    """

    stream: str
    received: float
    events: list[Event]
    malformed: list[Malformed]
    position: str | None = None


class Retry(msgspec.Struct, frozen=True):
    """An event of one sink that failed by itself, or waits behind one that did.

    Attributes:
        seq: Its place in the journal.
        received: When it was received, in seconds since the epoch.
        json: The event.
        lane: What keeps its order: the resource URI, or something of its own if the sink's ordering is `none`.
        attempts: How often it was tried.
        due: When it is due again, in seconds since the epoch; 0 while it waits behind another.
        since: When it entered the queue.
        reason: Why it failed last, as a label.
        error: Why, in words.
    """

    seq: int
    received: float
    json: bytes
    lane: str
    attempts: int
    due: float
    since: float
    reason: Reason
    error: str


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that a sink will not be offered again unless somebody replays it.

    Attributes:
        attempts: How often it was tried.
        first_failed: When it failed first, in seconds since the epoch.
        died: When it was given up.
        reason: Why it was given up, as a label.
        error: The last error, in words.
    """

    seq: int
    received: float
    json: bytes
    attempts: int
    first_failed: float
    died: float
    reason: DeathReason
    error: str


class Settlement(msgspec.Struct, frozen=True):
    """The outcome of one delivery, recorded in one transaction.

    Every event of `[first, upto)` and every one in `resolved` must be accounted for exactly once: as delivered, filtered, in
    `retries` or in `dead`. An event in `retries` that was in the queue before just stays there, and is not in `resolved`.

    Attributes:
        first: The first new event; `first == upto` if none of them is new.
        upto: Where the cursor moves to.
        delivered: How many were acknowledged.
        filtered: How many the sink does not want.
        retries: What enters the retry queue, or stays there with a new due time.
        resolved: The places of events that leave the retry queue.
        dead: What becomes a dead letter.
    """

    first: int = 0
    upto: int = 0
    delivered: int = 0
    filtered: int = 0
    retries: list[Retry] = []
    resolved: list[int] = []
    dead: list[DeadLetter] = []


class StreamBooks(msgspec.Struct):
    """What came in through one stream: `received = accepted + duplicate + sum(malformed)`."""

    received: int = 0
    accepted: int = 0
    duplicate: int = 0
    malformed: dict[str, int] = {}
    position: str | None = None


class SinkBooks(msgspec.Struct):
    """What became of it at one sink: `accepted = delivered + filtered + dead + dropped + pending`.

    Attributes:
        accepted: How many events the journal took since the sink exists.
        pending: How many lie after the cursor or wait in the retry queue.
        retrying: How many of them wait in the retry queue.
        dead: How many ever became dead letters.
        dead_letters: How many dead letters lie there now.
    """

    accepted: int
    delivered: int
    filtered: int
    dead: int
    dropped: int
    pending: int
    retrying: int
    dead_letters: int


class Books(msgspec.Struct):
    """All counts at one instant, and the journal's own state."""

    streams: dict[str, StreamBooks]
    sinks: dict[str, SinkBooks]
    bytes: int
    trouble: str | None
