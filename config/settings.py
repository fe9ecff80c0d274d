"""What can be set: the models of the configuration, their defaults, and what each key means.

The models are pure: making one reads no environment and no file. Where values come from is the matter of `config.load`.
What one sink can be told stands in that sink's own file; here a sink has only what all sinks have (`SinkSettings`).
"""

from base64 import b64encode
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo
from pydantic import field_validator as check
from pydantic import model_validator as check_all

from bridge.field_types import Bytes, Seconds
from bridge.sink import Backoff, SinkSettings, Strict
from config.values import (
    OFF,
    EngineUrl,
    EventType,
    HeaderValue,
    Listen,
    Name,
    Namespace,
    ProxyUrl,
    ResourceUri,
    Secret,
    StreamUrl,
    UrlPath,
)

MEBIBYTE: Final = 1024 * 1024


class DedupSettings(Strict):
    """By what an event is known as a duplicate: the uuids of the newest events."""

    window: Seconds = Field(default=24 * 3600.0, gt=0, description="How long a uuid is remembered.")
    max_events: int = Field(
        default=1_000_000,
        ge=1,
        le=100_000_000,
        description="How many uuids are remembered at most; the oldest are forgotten first.",
    )


class JournalSettings(Strict):
    """The durable log that everything heard is committed to before it is handed on."""

    path: Path = Field(default=Path("data/journal.db"), description="The journal's file. Its directory is made if missing.")
    durability: Literal["full", "normal"] = Field(
        default="full",
        description="full: what is committed survives a power failure. normal: it survives only a crash of the process.",
    )
    max_bytes: Bytes = Field(default=Bytes(1024 * MEBIBYTE), ge=16 * MEBIBYTE, description="Size of the journal at most.")
    when_full: Literal["block", "drop_oldest"] = Field(
        default="block",
        description="block: stop reading the streams until there is room. drop_oldest: the slowest sink loses its oldest.",
    )
    dedup: DedupSettings = DedupSettings()
    max_event_bytes: Bytes = Field(
        default=Bytes(1_000_000),
        ge=1024,
        le=16 * MEBIBYTE,
        description="A larger event is not let in: it is counted as malformed and its beginning kept in quarantine.",
    )


class HttpSettings(Strict):
    """Metrics, health and status over HTTP; and for who may, dead letters and stored events."""

    listen: Listen = Field(default="127.0.0.1:9477", description='Address as host:port; "off" or empty: do not listen.')
    token: HeaderValue | None = Field(
        default=None,
        description="Who shows it may look at events, replay and drop dead letters. Without one, who is on this machine may.",
    )

    @property
    def address(self) -> tuple[str, int] | None:
        """Host (an IPv6 address without its brackets) and port; None if not to listen. Port 0 means any free one."""
        if self.listen == OFF:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class LogSettings(Strict):
    """Log lines, which go to stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe lines that are written."
    )
    format: Literal["auto", "human", "json"] = Field(
        default="auto", description="auto: for people on a terminal, JSON elsewhere."
    )


class ShutdownSettings(Strict):
    """How the bridge stops."""

    grace: Seconds = Field(
        default=10.0,
        ge=0,
        le=3600,
        description="How long deliveries may finish; the rest is in the journal and goes on next time.",
    )


class HealthSettings(Strict):
    """When `/readyz` says no."""

    stream_grace: Seconds = Field(default=60.0, ge=0, description="A stream may be disconnected for so long.")
    sink_grace: Seconds = Field(default=300.0, ge=0, description="A sink may be unavailable for so long.")


class AuthBackoff(Backoff):
    """Delays between attempts after refused credentials: long ones, since accounts get locked otherwise."""

    first: Seconds = Field(default=30.0, gt=0, description="Longest first delay; doubles from there.")
    max: Seconds = Field(default=600.0, gt=0, description="Longest delay.")


class StreamBase(Strict):
    """What every kind of stream has; the loop that keeps it alive needs nothing else.

    Only `Settings` knows a stream's name, so it fills in the namespace where none is given.
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
        description="A session that lasted so long, or brought an event, sets the backoff back to its start.",
    )
    ca_file: Path | None = Field(default=None, description="CA certificates (PEM) to trust instead of the system's.")


class DockerCloudSettings(StreamBase):
    """A stream of events over a websocket, as Docker Cloud served it."""

    type: Literal["docker-cloud"] = Field(default="docker-cloud", description="The kind of stream.")
    url: StreamUrl = Field(
        default="wss://ws.cloud.docker.com", description="Where the service is: scheme, host, port if need be."
    )
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
        default=None, description="HTTP proxy, http://[user:password@]host[:port]. Default: the usual proxy variables."
    )

    @check("username")
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

    def authorization(self) -> str | None:
        """The value of the Authorization header, in the original clients' order; None without credentials.

        The order is that of python-dockercloud 1.0.12, `dockercloud/api/auth.py`: the whole value as given, else the user
        with the API key, else the user with the password. The result is a secret.
        """
        if self.auth is not None:
            return self.auth.get_secret_value()
        secret = self.api_key or self.password
        if self.username is None or secret is None:
            return None
        return "Basic " + b64encode(f"{self.username}:{secret.get_secret_value()}".encode()).decode()


class EngineSettings(StreamBase):
    """The events of one Docker Engine, or of a swarm if it is a manager."""

    type: Literal["engine"] = Field(description="The kind of stream.")
    url: EngineUrl = Field(
        default="unix:///var/run/docker.sock", description="The Engine's socket: unix:///path or tcp://host[:port]."
    )
    cert_file: Path | None = Field(default=None, description="Our certificate (PEM), maybe with its key; only with tcp.")
    key_file: Path | None = Field(default=None, description="Its key (PEM), if that is in another file.")

    @check_all(mode="after")
    def _tls_is_whole(self) -> "EngineSettings":
        if self.key_file and not self.cert_file:
            raise ValueError("key_file needs cert_file beside it")
        if self.url.startswith("unix:") and (self.ca_file or self.cert_file):
            raise ValueError("TLS files need a url that begins with tcp://")
        return self


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

    @check("streams", mode="before")
    @classmethod
    def _fill_in(cls, streams: Any) -> Any:
        """A stream is of the original kind, and of the namespace it is called by, unless it says otherwise."""
        if not isinstance(streams, dict):
            return streams
        return {
            name: {"type": "docker-cloud", "namespace": name, **stream} if isinstance(stream, dict) else stream
            for name, stream in streams.items()
        }
