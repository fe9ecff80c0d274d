"""The contract between a stream and the kinds of places that events come from.

A source knows how to open a session; a session is one open connection. Neither knows the journal, retries or metrics: that is
the business of `bridge.stream`, the same for all kinds.
"""

from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol, get_args

EndReason = Literal[
    "closed",  # The peer ended it in an orderly way.
    "network",  # Refused, reset, unreachable, name not found.
    "dead",  # Nothing came, not even an answer to a ping.
    "idle",  # Alive, but without an event for longer than allowed.
    "refused",  # The server answered, but not with a stream.
    "throttled",  # The server asked for patience.
    "unauthorized",  # Credentials refused.
    "tls",  # A certificate was not accepted.
    "protocol",  # What came is not what it should be.
    "internal",  # A bug of ours.
]
"""Why a session ended or could not be opened: the values of the `reason` label, a small fixed set."""

END_REASONS: Final[tuple[EndReason, ...]] = get_args(EndReason)


class Ended(Exception):
    """A session ended, or could not be opened.

    Args:
        error: Why, in words, without secrets.
        reason: Why, as a label.
        retry_after: Seconds that the server asked us to wait.
    """

    def __init__(self, error: str, reason: EndReason, *, retry_after: float | None = None) -> None:
        super().__init__(error)
        self.reason: EndReason = reason
        self.retry_after = retry_after


class Read(NamedTuple):
    """What one read brought.

    Attributes:
        messages: Raw messages for `normalize`, maybe none.
        heard: Whether anything at all arrived, a pong for example.
        ignored: How many messages were left out because they have no counterpart among our events.
        position: From where to resume once these messages are committed; None if the source has no replay.
    """

    messages: Sequence[bytes] = ()
    heard: bool = False
    ignored: int = 0
    position: str | None = None


class Session(Protocol):
    """One open connection. It is read by one thread; `abort` may come from another."""

    def read(self) -> Read:
        """Wait a bounded time for what one read brings, keeping the connection alive meanwhile.

        Raises:
            Ended: The session is over. What came before was returned by earlier calls.
        """

    def abort(self) -> None:
        """Wake a blocked `read`, which then raises `Ended`. Never raises, may be called twice."""

    def close(self) -> None:
        """Release everything. Never raises, may be called twice."""


class Source(Protocol):
    """How one kind of stream opens a session; it lives as long as its stream."""

    def open(self, position: str | None) -> Session:
        """Open a session in a bounded time.

        Args:
            position: From where to resume: the position of the last read that was committed, also over restarts.

        Raises:
            Ended: It could not be opened.
        """
