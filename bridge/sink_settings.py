"""Settings that all sinks share. Plug-ins import them from `bridge.sink`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator

from bridge.field_types import Backoff, Bytes, Seconds, Strict, parse_time
from bridge.policy import FILTER_FIELDS


def _start_at(value: Any) -> Any:
    if value not in {"latest", "earliest"} and isinstance(value, str):
        try:
            parse_time(value, datetime.now(UTC))
        except ValueError as error:
            raise ValueError(f"must be latest or earliest, or {str(error).removeprefix('must be ')}") from None
    return value


StartAt = Annotated[
    str,
    BeforeValidator(_start_at),
    WithJsonSchema(
        {"type": "string", "pattern": r"^(latest|earliest|\d{4}-\d{2}-\d{2}.*|[\d.]+ *(ms|s|m|h|d)|(\d+(ms|s|m|h|d))+)$"}
    ),
]


class BatchSettings(Strict):
    """Limits of one delivery."""

    max_events: int = Field(default=1000, ge=1, le=100_000, description="Events per delivery at most.")
    max_bytes: Bytes = Field(default=Bytes(1024 * 1024), ge=1, description="Bytes of events per delivery at most.")
    max_wait: Seconds = Field(default=0.0, ge=0, le=60, description="How long a delivery waits to become full.")


class RetrySettings(Strict):
    """Retries of an event that failed by itself."""

    first_delay: Seconds = Field(default=1.0, gt=0, description="Delay before the second attempt; doubles from there.")
    max_delay: Seconds = Field(default=600.0, gt=0, description="Longest delay, also for a `Retry-After`.")
    max_age: Seconds = Field(default=72 * 3600.0, gt=0, description="Retried for so long, it becomes a dead letter.")
    max_attempts: int | None = Field(default=None, ge=1, description="After so many attempts, too. Unlimited if not set.")
    max_pending: int = Field(
        default=1000,
        ge=1,
        le=100_000,
        description="So many waiting for a retry, a sink that takes nothing gets no new ones; ten times that if it takes some.",
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
"""Rules of a filter. A list of one pattern or of one rule may be written without the list."""


class SinkSettings(Strict):
    """Settings of every sink; each sink's own model adds its `type` and the rest."""

    type: str
    match: Rules = Field(default=[], description="Only events that fit one of these; all if empty.")
    drop: Rules = Field(default=[], description="Not the events that fit one of these.")
    backoff: Backoff = Field(default=Backoff(), description="When a sink that is not available is tried again.")
    batch: BatchSettings = BatchSettings()
    retry: RetrySettings = RetrySettings()
    ordering: Literal["resource", "none"] = Field(
        default="resource", description="Whether events of one resource wait for an earlier one that failed."
    )
    start_at: StartAt = Field(
        default="latest",
        description="Where a new sink begins: latest (what comes next), earliest (all that is there), or a time or age.",
    )

    @property
    def start(self) -> Literal["latest", "earliest"] | float:
        """The same as the journal has it: a time is in seconds since the epoch, an age counts from now."""
        if self.start_at in {"latest", "earliest"}:
            return self.start_at  # type: ignore[return-value]
        return parse_time(self.start_at, datetime.now(UTC)).timestamp()

    def for_preflight(self) -> Self:
        """Return the settings of the temporary sink that `check --connect` opens and closes.

        Override if the receiver allows one client per name (an MQTT client id): return settings with another name.
        """
        return self.for_a_check()

    def for_a_check(self) -> Self:
        """Old name of `for_preflight`, which a plug-in may override or call."""
        return self

    @property
    def deprecations(self) -> Sequence[str]:
        """Old names in these settings, each with the new one; logged at the start and printed by `check`."""
        if type(self).for_a_check is SinkSettings.for_a_check:
            return ()
        return [f"the plug-in for type {self.type}: for_a_check is called for_preflight now"]

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
