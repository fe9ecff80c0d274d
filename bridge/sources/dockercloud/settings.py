"""Settings of a Docker Cloud stream."""

from typing import Final, Literal

from pydantic import Field, ValidationInfo, field_validator

from bridge.field_types import (
    MEBIBYTE,
    Bytes,
    EventType,
    HeaderValue,
    ProxyUrl,
    ResourceUri,
    Seconds,
    Secret,
    StreamUrl,
    UrlPath,
)
from bridge.source import SourceSettings

ORIGINAL_URL: Final = "wss://ws.cloud.docker.com"


class DockerCloudSettings(SourceSettings):
    """A stream of events over a websocket, as Docker Cloud served it."""

    type: Literal["docker-cloud"] = Field(default="docker-cloud", description="The kind of stream.")
    url: StreamUrl = Field(default=ORIGINAL_URL, description="Where the service is: scheme, host, port if need be.")
    auth: HeaderValue | None = Field(
        default=None, description="Value of the Authorization header as it is; goes before all others."
    )
    api_key: Secret | None = Field(default=None, description="API key of the user; goes before the password.")
    password: Secret | None = Field(default=None, description="Password of the user.")
    # Last, so that its check sees the others and its error names this key.
    username: str | None = Field(default=None, description="Docker ID, for api_key or password.", validate_default=True)
    path: UrlPath | None = Field(
        default=None, description="Path of the events, if not /api/audit/v1/events with the namespace before `events`."
    )
    types: list[EventType] = Field(default=[], description="Only events of these types; all if empty.")
    objects: list[ResourceUri] = Field(default=[], description="Only events of these resources (URIs); all if empty.")
    parents: list[ResourceUri] = Field(default=[], description="Only events of what belongs to these resources (URIs).")
    ping_interval: Seconds = Field(
        default=10.0, gt=0, description="After so much silence the service is asked for a sign of life."
    )
    ping_timeout: Seconds = Field(
        default=5.0, gt=0, description="How long the sign of life may take before the session is dead."
    )
    idle_timeout: Seconds | None = Field(
        default=None, gt=0, description="A session without an event for so long is ended. Off if not set."
    )
    max_frame_bytes: Bytes = Field(
        default=Bytes(16 * MEBIBYTE), ge=1024, le=256 * MEBIBYTE, description="A larger frame ends the session."
    )
    proxy: ProxyUrl | None = Field(
        default=None,
        description="HTTP proxy, http://[user:password@]host[:port]. Default: https_proxy or http_proxy, see no_proxy.",
    )

    @field_validator("username")
    @classmethod
    def _credentials_are_whole(cls, username: str | None, info: ValidationInfo) -> str | None:
        others = info.data
        if not {"auth", "api_key", "password"} <= others.keys() or others["auth"] is not None:
            return username
        if username is None and (others["api_key"] or others["password"]):
            raise ValueError("is missing: api_key and password need it beside them")
        if username is not None and not (others["api_key"] or others["password"]):
            raise ValueError("needs api_key or password beside it")
        if username is not None and (not username or ":" in username or not username.isprintable()):
            raise ValueError("must be a Docker ID, without a colon")
        return username
