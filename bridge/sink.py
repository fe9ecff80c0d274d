"""The contract between a forwarder and a sink.

A sink is a plug-in: a class with a `Settings` model, registered under its `type` in the entry point group `event_bridge.sinks`.
One thread uses it:

    sink = WebhookSink("alerts", settings)  # no I/O
    sink.open()                       # raises if the receiver is not available; called again after a delay
    failures = sink.deliver(entries)  # returns when the receiver has acknowledged all entries but the `failures`
    sink.check_connection()           # optional, about once a second without events: raises if the connection is lost
    sink.remarks(max_event_bytes)     # optional, for `check --connect`: what the receiver takes, one line each
    sink.delivered                    # optional: a set, the `seq` of the events acknowledged so far in this call of `deliver`
    sink.close()                      # never raises, may be called twice; open() may follow, until then deliver() raises

A failure concerns either the sink or an event:

- the sink, or the way to it: raise `Unavailable` (or anything else). The same events are offered again, without a limit; one at
  which the receiver is `unreachable` again and again, also alone, goes to the retry queue if others wait behind it.
- this event, for now: return `Failure.retry`. The event goes to the retry queue.
- this event, for good: return `Failure.rejected`. The event becomes a dead letter.

Another thread reads `delivered` every 20 ms and records it, so that a killed process repeats little. Each call makes a new set.

`entries` are in order. After an event that was not acknowledged, a sink must not deliver later events of the same resource in
that call. It returns them as `Failure.held`, and they wait behind the first.
"""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, Final, Literal, Protocol, get_args

import msgspec

from bridge.event import Fields, fields_of
from bridge.field_types import Backoff, Strict
from bridge.sink_settings import BatchSettings, FieldPatterns, RetrySettings, Rules, SinkSettings
from bridge.text import plain

__all__ = ["REASONS", "Entry", "Failure", "Reason", "Sink", "SinkPlugin", "Unavailable"]
__all__ += ["Backoff", "BatchSettings", "FieldPatterns", "RetrySettings", "Rules", "SinkSettings", "Strict"]

Reason = Literal[
    "unreachable",  # No connection: refused, reset, closed, name not found.
    "tls",  # One side does not accept the other's certificate.
    "unauthorized",  # Wrong, expired or insufficient credentials.
    "not_found",  # The path, topic or server does not exist.
    "throttled",  # The receiver asks for a delay: quota, overload.
    "timeout",  # No answer in time.
    "server_error",  # The receiver failed.
    "rejected",  # The receiver refuses this event.
    "too_large",  # The event is larger than the receiver allows.
    "held",  # Not tried, because an earlier event of the same resource failed.
    "internal",  # A bug in the sink.
]
"""Why a delivery failed: the values of the `reason` label."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)


class Entry(msgspec.Struct, gc=False):
    """One event of the journal: its sequence number, time of receipt (seconds since the epoch) and one line of JSON."""

    seq: int
    received: float
    json: bytes
    _fields: Fields | None = None

    @property
    def fields(self) -> Fields:
        """The event's fields, decoded on first use."""
        if self._fields is None:
            self._fields = fields_of(self.json)
        return self._fields


class Failure(msgspec.Struct, frozen=True):
    """One event that was not delivered. `error` holds no secrets; `retry_after` is a delay that the receiver asked for."""

    seq: int
    outcome: Literal["retry", "rejected", "held"]
    reason: Reason
    error: str
    retry_after: float | None = None

    @classmethod
    def retry(cls, entry: Entry, reason: Reason, error: str, retry_after: float | None = None) -> "Failure":
        """The event may succeed later."""
        return cls(entry.seq, "retry", reason, plain(error), retry_after)

    @classmethod
    def rejected(cls, entry: Entry, reason: Reason, error: str) -> "Failure":
        """The event will never succeed."""
        return cls(entry.seq, "rejected", reason, plain(error))

    @classmethod
    def held(cls, entry: Entry) -> "Failure":
        """The event was not tried, because an earlier one of its resource failed."""
        return cls(entry.seq, "held", "held", "waits for an earlier event of the same resource")


class Unavailable(Exception):
    """The sink can't deliver now. Entries whose `seq` is in `delivered` were acknowledged and are not offered again."""

    def __init__(
        self, error: str, reason: Reason = "unreachable", *, retry_after: float | None = None, delivered: Collection[int] = ()
    ) -> None:
        super().__init__(plain(error))
        self.reason: Reason = reason
        self.retry_after = retry_after
        self.delivered = delivered


class Sink(Protocol):
    """A destination of events; the module's docstring is the contract."""

    def open(self) -> None:
        """Connect; raise if that is not possible now."""

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        """Deliver, and return when the receiver has acknowledged everything but the failures."""

    def close(self) -> None:
        """Release everything. Never raises."""


class SinkPlugin(Protocol):
    """A class of sinks, registered as an entry point of `event_bridge.sinks`."""

    Settings: ClassVar[type[SinkSettings]]

    def __call__(self, name: str, settings: Any) -> Sink:
        """Make a sink, without I/O."""
