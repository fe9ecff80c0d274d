"""The contract of sources, and the settings that all of them share.

A source opens sessions; a session is one open connection. Neither knows the journal, retries or metrics: those are the business
of `bridge.pipeline.stream`, the same for all kinds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol, get_args

from pydantic import Field

from bridge.field_types import Backoff, Namespace, OptionalFile, Seconds, Strict
from bridge.text import plain

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
"""Reasons for which a session ended or could not be opened: the values of the `reason` label, a small fixed set."""

END_REASONS: Final[tuple[EndReason, ...]] = get_args(EndReason)


class AuthBackoff(Backoff):
    """Delays between attempts after refused credentials: long ones, since accounts get locked otherwise."""

    first: Seconds = Field(default=30.0, gt=0, description="Longest first delay; doubles from there.")
    max: Seconds = Field(default=600.0, gt=0, description="Longest delay.")


class SourceSettings(Strict):
    """Settings of every kind of stream; each kind's own model adds its `type` and the rest.

    The configuration fills in the namespace where none is given, since only it knows a stream's name.
    """

    namespace: Namespace = Field(
        default="", description="Namespace of the events. Default: the stream's name. Empty: the account's own."
    )
    connect_timeout: Seconds = Field(default=10.0, gt=0, le=600, description="How long connecting may take.")
    backoff: Backoff = Backoff()
    auth_backoff: AuthBackoff = AuthBackoff()
    stable_after: Seconds = Field(
        default=60.0,
        ge=0,
        description="A session that lasted so long sets the backoff back to its start; events do not.",
    )
    ca_file: OptionalFile = Field(default=None, description="CA certificates (PEM) to trust instead of the system's.")


@dataclass(eq=False)
class Ended(Exception):
    """A session ended, or could not be opened.

    Attributes:
        error: Cause as text, without secrets.
        reason: Cause as a label.
        retry_after: Seconds to wait, as the server asked.
    """

    error: str
    reason: EndReason
    retry_after: float | None = None

    def __post_init__(self) -> None:
        self.error = plain(self.error)

    def __str__(self) -> str:
        return self.error


class Read(NamedTuple):
    """Result of one read.

    Attributes:
        messages: Raw messages for `normalize`, maybe none.
        heard: Anything at all arrived, a pong for example.
        ignored: Number of messages left out because they have no counterpart among our events.
        position: Position to resume from once these messages are committed; None if the source has no replay.
        secrets: Our credentials, which no text of these messages may show in a log.
    """

    messages: Sequence[bytes] = ()
    heard: bool = False
    ignored: int = 0
    position: str | None = None
    secrets: Sequence[str] = ()


class Session(Protocol):
    """One open connection. It is read by one thread; `abort` may come from another."""

    def read(self) -> Read:
        """Wait a bounded time for messages, keeping the connection alive meanwhile.

        Raises:
            Ended: The session is over. What came before was returned by earlier calls.
        """

    def abort(self) -> None:
        """Wake a blocked `read`, which then raises `Ended`. Never raises, may be called twice."""

    def close(self) -> None:
        """Release everything. Never raises, may be called twice."""


class Source(Protocol):
    """Opens the sessions of one stream, and lives as long as the stream."""

    def open(self, position: str | None) -> Session:
        """Open a session in a bounded time.

        Args:
            position: Position of the last committed read, also over restarts; the session resumes there.

        Raises:
            Ended: It could not be opened.
        """
