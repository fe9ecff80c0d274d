"""Settings of a `kafka` sink, and the options of its connections.

kafka-python takes much that makes no sense and then never connects: an unknown protocol, `acks=2`, a mechanism without a
password. All of that is refused here.
"""

import importlib.util
import re
from typing import Annotated, Any, Final, Literal, Self

from kafka.net.sasl.oauth import AbstractTokenProvider  # type: ignore[import-untyped]
from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, WithJsonSchema, field_validator, model_validator

from bridge.field_types import Bytes, OptionalFile, Seconds
from bridge.sink import SinkSettings
from bridge.tls import tls_context
from sinks.kafka.records import KEY_FIELDS, Timestamp, topic_template
from sinks.template import Template

_SERVER: Final = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+)(?::(?P<port>\d{1,5}))?")
_CODECS: Final = {"lz4": "lz4", "snappy": "snappy", "zstd": "zstandard"}
"""The modules that kafka-python imports for a compression."""


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Servers = Annotated[
    list[str],
    BeforeValidator(_split),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
Acks = Annotated[Literal["all", 1], BeforeValidator(lambda value: 1 if value == "1" else value)]


class KafkaSettings(SinkSettings):
    """Settings of a `kafka` sink."""

    type: Literal["kafka"] = "kafka"
    bootstrap_servers: Servers = Field(
        min_length=1, description="Brokers to begin with, `host:port`, also as text with commas. The port is 9092 if left out."
    )
    topic: str = Field(
        description="Where events go. Fields in braces are replaced: type, action, state, namespace, resource_uuid; "
        "what can't stand in a topic's name becomes `_`."
    )
    key: str = Field(
        default="{resource_uri}",
        description="The records' key, by which they are ordered and compacted; fields as for `topic`, resource_uri and uuid. "
        "Empty: no key, and no order.",
    )
    timestamp: Timestamp = Field(
        default="received",
        description="The records' time: when the event was received, when the record is sent, or the event's own. By the "
        "event's own time, retention deletes late events early, and brokers may refuse them.",
    )
    acks: Acks = Field(default="all", description="Who has to have a record before it counts: all replicas in sync, or one.")
    compression: Literal["none", "gzip", "lz4", "snappy", "zstd"] = Field(
        default="none", description="How record batches are compressed."
    )
    record_batch_bytes: Bytes = Field(
        default=Bytes(1_000_000),
        ge=1,
        le=64 * 1024 * 1024,
        description="How large a record batch gets, before compression, unless one event alone is larger. "
        "Not more than `max.message.bytes` of the topics.",
    )
    client_id: str = Field(
        default="event-bridge",
        pattern=r"^[a-zA-Z0-9._-]{1,200}$",
        description="How we are called in the brokers' logs and quotas.",
    )
    tls: bool = Field(default=False, description="Whether to speak TLS. A certificate file implies it.")
    ca_file: OptionalFile = Field(default=None, description="Certificates to trust instead of the system's (PEM).")
    cert_file: OptionalFile = Field(default=None, description="Our certificate, if the brokers want one (PEM).")
    key_file: OptionalFile = Field(default=None, description="Its key, if that is in another file (PEM).")
    key_password: SecretStr | None = Field(default=None, description="The key's password.")
    sasl: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        default=None, description="How to log in: with `username` and `password`, or (OAUTHBEARER) with `token`."
    )
    username: str | None = Field(default=None, min_length=1, description="User name, for PLAIN and SCRAM.")
    password: SecretStr | None = Field(default=None, description="Its password.")
    token: SecretStr | None = Field(default=None, description="Bearer token, for OAUTHBEARER.")
    delivery_timeout: Seconds = Field(
        default=30.0,
        ge=1,
        le=3600,
        description="How long brokers may take to acknowledge a record batch, all retries included.",
    )
    connect_timeout: Seconds = Field(
        default=10.0, ge=0.5, le=600, description="How long connecting and looking up topics may take."
    )
    metadata_max_age: Seconds = Field(
        default=300.0, ge=1, le=86400, description="After this long the brokers are asked for new partitions."
    )
    allow_auto_create_topics: bool = Field(default=False, description="Whether a topic that is missing may be created by use.")

    @field_validator("bootstrap_servers")
    @classmethod
    def _are_servers(cls, servers: list[str]) -> list[str]:
        complete = []
        for server in servers:
            match = _SERVER.fullmatch(server)
            port = int((match and match["port"]) or 9092)
            if match is None or not 0 < port < 1 << 16:
                raise ValueError("a server is written `host:port`, without `kafka://` or the like")
            complete.append(f"{match['host']}:{port}")
        return complete

    @field_validator("topic", "key")
    @classmethod
    def _is_template(cls, text: str, field: ValidationInfo) -> str:
        topic_template(text) if field.field_name == "topic" else Template(text, KEY_FIELDS)
        return text

    @field_validator("compression")
    @classmethod
    def _is_installed(cls, compression: str) -> str:
        if importlib.util.find_spec(module := _CODECS.get(compression, "gzip")) is None:
            raise ValueError(
                f"{compression} needs the package {module.replace('snappy', 'python-snappy')}, which is not installed"
            )
        return compression

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        certificates = [name for name in ("ca_file", "cert_file", "key_file") if getattr(self, name) is not None]
        if certificates and not self.tls and "tls" in self.model_fields_set:
            raise ValueError(f"`{certificates[0]}` is of no use with `tls: false`")
        for name in ("key_file", "key_password"):
            if getattr(self, name) is not None and self.cert_file is None:
                raise ValueError(f"`{name}` is of no use without `cert_file`")
        wanted = {None: (), "OAUTHBEARER": ("token",)}.get(self.sasl, ("username", "password"))
        for name in ("username", "password", "token"):
            if (getattr(self, name) is not None) is not (name in wanted):
                if name in wanted:
                    raise ValueError(f"`sasl: {self.sasl}` needs `{name}`")
                raise ValueError(f"`{name}` is of no use " + ("without `sasl`" if self.sasl is None else f"with {self.sasl}"))
            if name in wanted and not len(getattr(self, name)):
                raise ValueError(f"`sasl: {self.sasl}` needs `{name}`, which is empty")
        return self

    @property
    def uses_tls(self) -> bool:
        """Return True if connections use TLS."""
        return self.tls or self.ca_file is not None or self.cert_file is not None

    @property
    def where(self) -> str:
        """The brokers, for messages."""
        first, *more = self.bootstrap_servers
        return f"{first} and {len(more)} more" if more else first

    @property
    def secrets(self) -> list[str]:
        """Values that must never be shown."""
        given = [self.password, self.token, self.key_password]
        return [secret.get_secret_value() for secret in given if secret is not None and secret.get_secret_value()]


class _Token(AbstractTokenProvider):  # type: ignore[misc]  # The library has no types.
    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def token(self) -> str:
        return self._token


def milliseconds(seconds: float) -> int:
    """Convert to what kafka-python counts in."""
    return int(seconds * 1000)


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """Make kafka-python's options for any connection.

    Raises:
        Unavailable: The certificates can't be read.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": settings.client_id,
        "security_protocol": ("SASL_" if settings.sasl else "") + ("SSL" if settings.uses_tls else "PLAINTEXT"),
        # A request that takes longer is repeated over another connection.
        "request_timeout_ms": milliseconds(min(15.0, settings.delivery_timeout / 2)),
        "bootstrap_timeout_ms": milliseconds(settings.connect_timeout),
        "metadata_max_age_ms": milliseconds(settings.metadata_max_age),
        "reconnect_backoff_ms": 200,
        "reconnect_backoff_max_ms": 2000,
    }
    if settings.uses_tls:
        options["ssl_context"] = tls_context(settings)
    if settings.sasl is not None:
        options["sasl_mechanism"] = settings.sasl
    if settings.token is not None:
        options["sasl_oauth_token_provider"] = _Token(settings.token.get_secret_value())
    if settings.password is not None:
        options["sasl_plain_username"] = settings.username
        options["sasl_plain_password"] = settings.password.get_secret_value()
    return options


def producer_options(settings: KafkaSettings) -> dict[str, Any]:
    """Make kafka-python's options for a producer, besides those for its connections."""
    return {
        "acks": settings.acks,
        "enable_idempotence": False,
        "max_in_flight_requests_per_connection": 1,
        "compression_type": None if settings.compression == "none" else settings.compression,
        "batch_size": 2 * settings.record_batch_bytes,
        "linger_ms": 500,  # Records of `send` wait for more for longer than handing over a batch takes.
        "delivery_timeout_ms": milliseconds(settings.delivery_timeout),
        "max_request_size": 90 << 20,  # Below the brokers' own limit, `socket.request.max.bytes`.
        "allow_auto_create_topics": settings.allow_auto_create_topics,
        "metrics_enabled": False,
        "max_block_ms": milliseconds(settings.connect_timeout),
    }
