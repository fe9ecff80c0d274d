"""A sink of a stranger, with a setting of every kind."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator

from bridge.field_types import Seconds, Strict
from bridge.sink import SinkSettings


class Tls(Strict):
    ca_file: Path | None = None
    pin: SecretStr | None = None


class QueueSettings(SinkSettings):
    type: Literal["queue"]
    url: str = Field(description="Where the queue is.")
    servers: list[str] = Field(default=[])
    table: dict[str, int] = Field(default={})
    headers: dict[str, SecretStr] = Field(default={})
    token: SecretStr | None = None
    tls: Tls | None = None
    template: str = "{type}"
    every: Seconds = 1.0

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: str) -> str:
        if not url.startswith("queue://"):
            raise ValueError(f"{url} must begin with queue://")
        return url


def plugin(model: type[SinkSettings]) -> Any:
    """Return a plug-in with these settings."""
    return type("Plugin", (), {"Settings": model, "__init__": lambda *_: None})
