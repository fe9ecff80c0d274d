"""Settings of the journal."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from bridge.field_types import MEBIBYTE, Bytes, Seconds, Strict


class DedupSettings(Strict):
    """By what an event is known as a duplicate: the uuids of the newest events."""

    window: Seconds = Field(default=24 * 3600.0, gt=0, description="How long a uuid is remembered.")
    max_events: int = Field(
        default=1_000_000,
        ge=1,
        le=100_000_000,
        description="How many uuids are remembered at most; the oldest are forgotten first.",
    )


class DeadLetterSettings(Strict):
    """How many dead letters are kept. At the limit a sink gets no new events (block) or loses its oldest (drop_oldest)."""

    max_bytes: Bytes | None = Field(
        default=None,
        ge=65536,
        description="Size of all dead letters at most; each sink has an equal share. If not set, a quarter of the journal.",
    )
    max_age: Seconds | None = Field(default=None, gt=0, description="Older ones are discarded. If not set, none is.")


class JournalSettings(Strict):
    """The durable log that everything heard is committed to before it is handed on."""

    path: Path = Field(default=Path("data/journal.db"), description="The journal's file. Its directory is made if missing.")
    durability: Literal["full", "normal"] = Field(
        default="full",
        description="full: what is committed survives a power failure. normal: it survives only a crash of the process.",
    )
    max_bytes: Bytes = Field(
        default=Bytes(1024 * MEBIBYTE), ge=16 * MEBIBYTE, description="Size of the journal's files at most."
    )
    when_full: Literal["block", "drop_oldest"] = Field(
        default="block",
        description="block: stop reading the streams until there is room. drop_oldest: the slowest sink loses its oldest.",
    )
    retention: Seconds = Field(
        default=0.0,
        ge=0,
        description="How long events are kept that all sinks have passed, so that a sink can be turned back. Space that new"
        " events need is taken from them first.",
    )
    dedup: DedupSettings = DedupSettings()
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    max_event_bytes: Bytes = Field(
        default=Bytes(1_000_000),
        ge=1024,
        le=16 * MEBIBYTE,
        description="A larger event is not let in: it is counted as malformed and its beginning kept in quarantine.",
    )
