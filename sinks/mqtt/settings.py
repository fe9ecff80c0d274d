"""Settings of an `mqtt` sink."""

import re
import secrets
import socket
from collections.abc import Sequence
from typing import Annotated, Final, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from bridge.field_types import Bytes, OptionalFile, Seconds
from bridge.sink import SinkSettings
from sinks.mqtt.topic import MAX_TEXT_BYTES, Topic

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}


class Address(NamedTuple):
    """The address of a broker."""

    host: str
    port: int
    tls: bool
    websocket_path: str | None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(url: str) -> Address:
    """Parse the URL of a broker.

    Raises:
        ValueError: It is not valid. The error does not repeat it, since it may hold a password.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError:
        raise ValueError("not a URL") from None
    if parts.scheme not in _PORTS or not re.fullmatch(r"[^\s/?#@%\\\x00-\x20\x7f]+", host) or port == 0:
        raise ValueError("must look like mqtt://host:port, mqtts://host, ws://host/path or wss://host/path")
    if "@" in parts.netloc:
        raise ValueError("has credentials in it: set `username` and `password` instead")
    if parts.query or parts.fragment:
        raise ValueError("can't have ? or # in it")
    websocket = parts.scheme in {"ws", "wss"}
    if not websocket and parts.path not in {"", "/"}:
        raise ValueError("has a path, which only ws:// and wss:// have; topics go into `topic`")
    path = (parts.path or "/mqtt") if websocket else None
    return Address(host, port or _PORTS[parts.scheme], parts.scheme in {"mqtts", "wss"}, path)


_PROCESS: Final = secrets.token_hex(3)


class MqttSettings(SinkSettings):
    """Settings of an `mqtt` sink."""

    type: Literal["mqtt"] = "mqtt"
    url: str = Field(
        description="The broker: mqtt, mqtts (TLS), ws or wss (websocket). Its port is the usual one if not given."
    )
    protocol: Literal["5", "3.1.1"] | None = Field(
        default=None,
        description="Version of MQTT. If not set: 5, or 3.1.1 if the broker does not know 5 and `expiry` is not set. "
        "With 3.1.1 a broker can't say that it refused an event, nor what its limits are.",
    )
    topic: str = Field(
        default="docker/{namespace}/{type}/{action}",
        description="Where an event goes, made of namespace, type, action, state, resource_uuid and uuid.",
    )
    replace: dict[Annotated[str, Field(min_length=1, max_length=1)], str] = Field(
        default={},
        description="Replacements for characters of an event's values in topics: `{' ': _}` for a broker that refuses spaces.",
    )
    max_event_bytes: Bytes | None = Field(
        default=None,
        ge=1,
        description="Larger events become dead letters. For a broker that closes the connection over them: "
        "with MQTT 3.1.1, it can't announce its limit.",
    )
    qos: Literal[0, 1, 2] = Field(
        default=1,
        description="Delivered means read by the broker, which may refuse it (0), acknowledged (1), acknowledged twice (2).",
    )
    retain: bool = Field(default=False, description="Whether the broker keeps the last event of each topic.")
    expiry: Seconds | None = Field(
        default=None,
        ge=1,
        lt=1 << 32,
        description="After this long a broker discards an event that still waits for a subscriber.",
    )
    state_topic: str | None = Field(
        default=None,
        description="Where to retain the last event of each resource, too: "
        "`docker/{namespace}/state/{type}/{resource_uuid}` for example.",
    )
    availability_topic: str | None = Field(
        default="docker/bridge/{name}",
        description="Where `online` or `offline` is retained, made of the sink's name; also the last will. Not at all if null.",
    )
    client_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Our name at the broker, used by nobody else. Made of the host, the sink and chance if not set.",
    )
    username: str | None = Field(default=None, max_length=MAX_TEXT_BYTES, description="User name.")
    password: SecretStr | None = Field(default=None, description="Password.")
    max_in_flight: int | None = Field(
        default=None,
        ge=1,
        le=60_000,
        description="Publications without an acknowledgement at most. If not set: what the broker wants, but 1000 at most; "
        "with MQTT 3.1.1, where it can't say, 20.",
    )
    timeout: Seconds = Field(
        default=10.0,
        gt=0,
        le=3600,
        description="How long each step of connecting (TCP, TLS, websocket, MQTT) takes at most, "
        "and how long nothing may be acknowledged.",
    )
    keepalive: Seconds = Field(
        default=30.0,
        ge=2,
        le=65535,
        description="After so long without a sign of us, and half of it, the broker tells the will.",
    )
    ca_file: OptionalFile = Field(default=None, description="Certificates to trust instead of the system's (PEM).")
    cert_file: OptionalFile = Field(default=None, description="Our certificate, if the broker wants one (PEM).")
    key_file: OptionalFile = Field(default=None, description="Its key, if that is in another file (PEM).")
    key_password: SecretStr | None = Field(default=None, description="The key's password.")

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        read_address(url)
        return url

    @field_validator("topic", "state_topic", "availability_topic")
    @classmethod
    def _is_a_template(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is not None:
            names = (Topic(text, ("name",)) if info.field_name == "availability_topic" else Topic(text)).template.names
            if info.field_name == "state_topic" and "resource_uuid" not in names:
                raise ValueError("needs {resource_uuid} in it, so that each resource has its own topic")
        return text

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = [name for name in ("ca_file", "cert_file", "key_file", "key_password") if getattr(self, name) is not None]
        if given and not self.address.tls:
            raise ValueError(f"`{given[0]}` is of no use without TLS: write mqtts:// or wss:// in `url`")
        for name in ("key_file", "key_password"):
            if getattr(self, name) is not None and self.cert_file is None:
                raise ValueError(f"`{name}` is of no use without `cert_file`")
        if self.password is not None and self.username is None:
            raise ValueError("`password` is of no use without `username`")
        if self.expiry is not None and self.protocol == "3.1.1":
            raise ValueError("`expiry` needs `protocol: '5'`")
        for name in ("client_id", "username"):
            if any(not character.isprintable() for character in getattr(self, name) or ""):
                raise ValueError(f"`{name}` has characters that can't stand in it, a line break perhaps")
        if self.password is not None and len(self.password.get_secret_value().encode()) > MAX_TEXT_BYTES:
            raise ValueError("`password` is longer than MQTT allows")
        return self

    def for_preflight(self) -> Self:
        """Return settings with another client id and no last will: the broker would end the session of the delivering sink."""
        return self.model_copy(update={"client_id": f"event-bridge-check-{secrets.token_hex(4)}", "availability_topic": None})

    @property
    def deprecations(self) -> list[str]:
        """The old names of fields in topics."""
        return [
            f"{setting}: {{{old}}} is called {{{new}}} now"
            for setting in ("topic", "state_topic")
            for old, new in Topic(getattr(self, setting) or "x").template.renamed.items()
        ]

    @property
    def address(self) -> Address:
        """The address of the broker."""
        return read_address(self.url)

    @property
    def protocols(self) -> Sequence[Literal["5", "3.1.1"]]:
        """The versions of MQTT to try, one after another."""
        return (self.protocol,) if self.protocol else ("5",) if self.expiry is not None else ("5", "3.1.1")

    def window(self, protocol: Literal["5", "3.1.1"]) -> int:
        """Return the largest number of publications in flight on our side.

        Mosquitto 2.0 acknowledges QoS 2 beyond its `max_inflight_messages` of 20, and loses what it has acknowledged.
        """
        return self.max_in_flight or (1000 if protocol == "5" else 20)

    def client_id_of(self, name: str) -> str:
        """Return the client id of the sink `name`.

        It is another one in each process: two bridges with a sink of one name would end each other's connection for ever. No
        session is kept, so that nothing is lost by it.
        """
        return self.client_id or f"event-bridge-{socket.gethostname()}-{name}-{_PROCESS}"
