"""The whole configuration, put together from the settings of its parts.

Each part declares its own settings; each sink adds its own to those that all sinks have (`SinkSettings`). The models are
pure: making one reads no environment and no file. `config.load` reads the sources.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator

from bridge.admin.settings import HealthSettings, HttpSettings
from bridge.field_types import Name, Seconds, Strict
from bridge.journal import JournalSettings
from bridge.sink import SinkSettings
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.engine.settings import EngineSettings


def _level(value: Any) -> Any:
    """Accept capital letters, and the short name that other programs have."""
    level = value.lower() if isinstance(value, str) else value
    return "warning" if level == "warn" else level


class LogSettings(Strict):
    """Log lines, which go to stderr."""

    level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_level)] = Field(
        default="info", description="The least severe lines that are written."
    )
    format: Literal["auto", "human", "json", "flat"] = Field(
        default="auto",
        description="auto: for people on a terminal, JSON elsewhere. flat: JSON with time, level, msg and the rest beside.",
    )


class ShutdownSettings(Strict):
    """How the bridge stops."""

    grace: Seconds = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="How long deliveries may finish; the rest is in the journal and goes on next time.",
    )


StreamSettings = Annotated[DockerCloudSettings | EngineSettings, Field(discriminator="type")]


class Settings(Strict):
    """The whole configuration of event-bridge."""

    journal: JournalSettings = JournalSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    health: HealthSettings = HealthSettings()
    streams: dict[Name, StreamSettings] = Field(default={}, description="Where events come from, by name.")
    sinks: dict[Name, SerializeAsAny[SinkSettings]] = Field(default={}, description="Where events go to, by name.")

    @field_validator("streams", mode="before")
    @classmethod
    def _fill_in(cls, streams: Any) -> Any:
        """Set the defaults of a stream: type `docker-cloud`, and its name as the namespace."""
        if not isinstance(streams, dict):
            return streams
        return {
            name: {"type": "docker-cloud", "namespace": name, **stream} if isinstance(stream, dict) else stream
            for name, stream in streams.items()
        }
