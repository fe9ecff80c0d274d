"""The contract between a forwarder and a sink, and what every sink's settings have in common.

A sink is a plug-in: a class with a `Settings` model, registered under its `type` in the entry point group
`event_bridge.sinks`. It is made with its name and its settings, and then used by one thread only:

    sink = WebhookSink("alerts", settings)
    sink.open()                       # raises: not available now, will be called again after a while
    failures = sink.deliver(entries)  # returns when the far side has acknowledged all that is not in `failures`
    sink.deliver([])                  # raises: the far side is known to be gone; about once a second while there are no events
    sink.close()                      # never raises, may be called twice; open() may follow, and until then deliver() raises

What happens to an event depends on whose fault a failure is:

- of the sink or the way to it: raise `Unavailable` (or anything else). The same events are offered again, for ever.
- of this event, perhaps not for ever: return `Failure.retry`. The event goes to the retry queue.
- of this event, for ever: return `Failure.rejected`. The event becomes a dead letter.

Order per resource is a joint duty: `entries` come in order, and once an event was not acknowledged, a sink must not deliver
later events of the same resource in that call; it returns them as `Failure.held`, and they wait behind the first.

Nothing to deliver is no delivery: an empty call sends nothing and waits for nothing. A sink that keeps a connection looks
whether it still stands, and raises `Unavailable` if it does not: it is then closed and opened again at once, not when the next
event is in a hurry, and the status tells the truth meanwhile. A sink that has nothing to look at returns.

A sink may have one more method, `remarks`: what an operator should know of the far side before events go there (`Remarking`).
"""

from collections.abc import Collection, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Protocol, Self, get_args, runtime_checkable

import msgspec
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from bridge.event import Fields, fields_of
from bridge.field_types import Bytes, Seconds
from bridge.policy import FILTER_FIELDS

Reason = Literal[
    "unreachable",  # No connection: refused, reset, closed, name not found.
    "tls",  # The far side's certificate or ours is not accepted.
    "unauthorized",  # Wrong, expired or insufficient credentials.
    "not_found",  # The place to deliver to does not exist.
    "throttled",  # The far side asks for patience: quota, overload.
    "timeout",  # No answer in time.
    "server_error",  # The far side failed.
    "rejected",  # The far side does not want this event.
    "too_large",  # The event is larger than the far side takes.
    "held",  # Not tried, because an earlier event of the same resource failed.
    "internal",  # A bug in the sink.
]
"""Why a delivery failed: the values of the `reason` label, a small fixed set."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)


class Entry(msgspec.Struct, gc=False):
    """One event as a sink gets it.

    Attributes:
        seq: Its place in the journal.
        received: When it was received, in seconds since the epoch.
        json: The event as one line of JSON, without the newline.
    """

    seq: int
    received: float
    json: bytes
    _fields: Fields | None = None

    @property
    def fields(self) -> Fields:
        """The event's fields, decoded when first asked for."""
        if self._fields is None:
            self._fields = fields_of(self.json)
        return self._fields


class Failure(msgspec.Struct, frozen=True):
    """One event that was not delivered, while others of the same call were.

    Attributes:
        seq: The entry's place in the journal.
        fate: "retry": perhaps later. "rejected": never. "held": not tried, it waits for an earlier one.
        reason: Why, as a label.
        error: Why, in words, without secrets.
        retry_after: Seconds that the far side asked us to wait.
    """

    seq: int
    fate: Literal["retry", "rejected", "held"]
    reason: Reason
    error: str
    retry_after: float | None = None

    @classmethod
    def retry(cls, entry: Entry, reason: Reason, error: str, retry_after: float | None = None) -> "Failure":
        """The event may succeed later."""
        return cls(entry.seq, "retry", reason, error, retry_after)

    @classmethod
    def rejected(cls, entry: Entry, reason: Reason, error: str) -> "Failure":
        """The event will never succeed."""
        return cls(entry.seq, "rejected", reason, error)

    @classmethod
    def held(cls, entry: Entry) -> "Failure":
        """The event was not tried, because an earlier one of its resource failed."""
        return cls(entry.seq, "held", "held", "waits for an earlier event of the same resource")


class Unavailable(Exception):
    """The sink can't deliver now, whatever the event.

    Args:
        error: Why, in words, without secrets.
        reason: Why, as a label.
        retry_after: Seconds that the far side asked us to wait.
        delivered: The `seq` of entries of this call that were acknowledged before things broke; they are not offered again.
    """

    def __init__(
        self,
        error: str,
        reason: Reason = "unreachable",
        *,
        retry_after: float | None = None,
        delivered: Collection[int] = (),
    ) -> None:
        super().__init__(error)
        self.reason: Reason = reason
        self.retry_after = retry_after
        self.delivered = delivered


class Strict(BaseModel):
    """Settings that know all their keys, never change, and never show their input in an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Backoff(Strict):
    """Delays between attempts: exponential with full jitter."""

    first: Seconds = Field(default=0.5, gt=0, description="Longest first delay; doubles from there.")
    max: Seconds = Field(default=60.0, gt=0, description="Longest delay.")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.first > self.max:
            raise ValueError("first must not be longer than max")
        return self


class BatchSettings(Strict):
    """How many events one delivery takes at most."""

    max_events: int = Field(default=1000, ge=1, le=100_000, description="Events per delivery at most.")
    max_bytes: Bytes = Field(default=Bytes(1024 * 1024), ge=1, description="Bytes of events per delivery at most.")
    max_wait: Seconds = Field(default=0.0, ge=0, le=60, description="How long a delivery waits to become full.")


class RetrySettings(Strict):
    """What becomes of an event that failed by itself."""

    first_delay: Seconds = Field(default=1.0, gt=0, description="Delay before the second attempt; doubles from there.")
    max_delay: Seconds = Field(default=600.0, gt=0, description="Longest delay, also for a `Retry-After`.")
    max_age: Seconds = Field(default=72 * 3600.0, gt=0, description="After this long it becomes a dead letter.")
    max_attempts: int | None = Field(default=None, ge=1, description="After so many attempts, too. Unlimited if not set.")
    max_pending: int = Field(
        default=1000, ge=1, le=100_000, description="Events waiting for a retry beyond which no new ones are tried."
    )


FieldPatterns = dict[str, list[str]]

_PATTERNS: Final = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
_RULE: Final = {
    "type": "object",
    "properties": dict.fromkeys(FILTER_FIELDS, _PATTERNS),
    "additionalProperties": False,
    "minProperties": 1,
}
Rules = Annotated[list[FieldPatterns], WithJsonSchema({"anyOf": [_RULE, {"type": "array", "items": _RULE}], "default": []})]
"""Rules of a filter; one pattern may stand for a list of one, and one rule, too."""


class SinkSettings(Strict):
    """What can be set for every sink; each sink's own model adds its `type` and the rest."""

    type: str
    match: Rules = Field(default=[], description="Only events that fit one of these; all if empty.")
    drop: Rules = Field(default=[], description="Not the events that fit one of these.")
    backoff: Backoff = Field(default=Backoff(), description="When a sink that is not available is tried again.")
    batch: BatchSettings = BatchSettings()
    retry: RetrySettings = RetrySettings()
    ordering: Literal["resource", "none"] = Field(
        default="resource", description="Whether events of one resource wait for an earlier one that failed."
    )
    start_at: Literal["latest", "earliest"] = Field(
        default="latest",
        description="Where a sink that is new begins: with what comes next, or with all that is there.",
    )

    def for_a_check(self) -> Self:
        """What a sink is made with that is only opened and closed, beside one of the same name that delivers.

        Settings by which the far side knows the sink, and lets one only of a name be there, are to be others.
        """
        return self

    @field_validator("match", "drop", mode="before")
    @classmethod
    def _one_pattern_is_a_list(cls, rules: Any) -> Any:
        """Allow `state: Running` for `state: [Running]`, and one rule for a list of one."""
        if isinstance(rules, dict):
            rules = [rules]
        if not isinstance(rules, list):
            return rules
        return [
            {field: [patterns] if isinstance(patterns, str) else patterns for field, patterns in rule.items()}
            if isinstance(rule, dict)
            else rule
            for rule in rules
        ]

    @field_validator("match", "drop")
    @classmethod
    def _known_fields(cls, rules: list[FieldPatterns]) -> list[FieldPatterns]:
        for rule in rules:
            unknown = ", ".join(sorted(set(rule) - set(FILTER_FIELDS)))
            if unknown or not rule:
                raise ValueError(f"no such field: {unknown or '(empty rule)'}; fields are {', '.join(FILTER_FIELDS)}")
            empty = ", ".join(sorted(field for field, patterns in rule.items() if not patterns))
            if empty:
                raise ValueError(
                    f"no pattern for {empty}, so that no event would fit; write at least one, or leave the field out"
                )
        return rules


class Sink(Protocol):
    """A destination. The module's docstring is the contract."""

    def open(self) -> None:
        """Become able to deliver; raise if that is not possible now."""

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        """Deliver, and return when the far side has acknowledged everything but the failures.

        Without entries: only look whether the far side is still there, as far as that takes no time.
        """

    def close(self) -> None:
        """Release everything. Never raises."""


@runtime_checkable
class Remarking(Protocol):
    """What a sink may be besides, to tell more than that it can be opened."""

    def remarks(self, max_event_bytes: int) -> Sequence[str]:
        """Say of an open sink what `check --connect` should show: each one line, and what to do if something is wrong.

        Nothing is written, nor created. Raises like `open`.

        Args:
            max_event_bytes: So large an event gets, by the bridge's configuration.
        """


def remarks_of(sink: Sink, max_event_bytes: int) -> Sequence[str]:
    """What an open sink has to say; nothing, if it is none of those that do."""
    return sink.remarks(max_event_bytes) if isinstance(sink, Remarking) else ()


class SinkPlugin(Protocol):
    """What an entry point of `event_bridge.sinks` is: a class of sinks."""

    Settings: ClassVar[type[SinkSettings]]

    def __call__(self, name: str, settings: Any) -> Sink:
        """Make a sink; no I/O happens before `open`."""
