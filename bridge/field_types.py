"""Types of settings: durations, sizes, names, addresses, URLs and secrets; and the base of every settings model.

A validator's message says in one line what is wrong and what would be right. It never repeats the value: a URL may hold
credentials.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SecretStr,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

MEBIBYTE: Final = 1024 * 1024
OFF: Final = "off"
_LISTEN: Final = r"^(off|(\[[0-9a-fA-F:.]+\]|[^\[\]:/\s]+):[0-9]{1,5})?$"
_MAX_PORT: Final = 65535


@dataclass(frozen=True)
class Fits:
    """Text that fits a pattern (written so that JSON Schema understands it, too), and what to say if it does not."""

    pattern: str
    wrong: str

    def check(self, value: str) -> str:
        """Return the value as it is.

        Raises:
            ValueError: It does not fit.
        """
        if re.search(self.pattern, value) is None or value.endswith("\n"):
            raise ValueError(self.wrong)
        return value

    def __get_pydantic_core_schema__(self, source: Any, inner: GetCoreSchemaHandler) -> CoreSchema:
        schema = core_schema.no_info_after_validator_function(self.check, inner(source))
        schema["metadata"] = {"pydantic_js_updates": {"pattern": self.pattern}}
        return schema


NAME: Final = Fits(
    r"^[a-z](?!.*__)[a-z0-9_-]*$",
    "is no name: names are a lower-case letter, then lower-case letters, digits, `-` or single `_`",
)
Name = Annotated[str, NAME]
"""The name of a stream or a sink. Two underscores separate the levels in environment variables, so no name has them."""

Namespace = Annotated[
    str, Fits(r"^([A-Za-z0-9_][A-Za-z0-9_.-]*)?$", "must be a namespace as in a URL, or empty for the account's own")
]
EventType = Annotated[
    str, Fits(r"^[a-z][a-z0-9_-]*$", "must be a type in lower case: stack, service, container, nodecluster, node, action")
]
ResourceUri = Annotated[str, Fits(r"^/[^\s,]*$", "must be a resource URI, like /api/app/v1/acme/service/<uuid>/")]
UrlPath = Annotated[
    str, Fits(r'^/[!"$-~]*$', "must be a path that begins with /, in printable ASCII, with the rest percent-encoded")
]


def _one_line(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().isprintable():
        raise ValueError("must be one line of printable text")
    return value


def _ascii(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().isascii():
        raise ValueError("must be ASCII text")
    return value


Secret = Annotated[SecretStr, Field(min_length=1), AfterValidator(_one_line)]
"""A secret that is not empty and has one line."""

HeaderValue = Annotated[Secret, AfterValidator(_ascii)]


OptionalFile = Annotated[Path | None, BeforeValidator(lambda value: None if value == "" else value)]
"""Path of a file; an empty one, as an unset variable leaves it, is none."""


def _listen(value: Any) -> Any:
    """Accept `off`, an empty value (as an unset variable leaves it) and `false` for "do not listen", and `:9477`."""
    if isinstance(value, str) and re.fullmatch(r":\d{1,5}", value, re.ASCII):
        return f"0.0.0.0{value}"  # noqa: S104 - that is what it means
    return OFF if value is False or value == "" else value


def _listen_address(value: str) -> str:
    match = re.fullmatch(_LISTEN, value)
    if match is None or (value != OFF and int(value.rpartition(":")[2]) > _MAX_PORT):
        raise ValueError("must be host:port, like 127.0.0.1:9477, 0.0.0.0:9477 or [::1]:9477, or off")
    return value


Listen = Annotated[
    str,
    BeforeValidator(_listen),
    AfterValidator(_listen_address),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": _LISTEN}, {"const": False}]}),
]
"""An address to listen on; `OFF` for none."""


def _split(url: str, form: str) -> SplitResult:
    """Take a URL apart; `form` is what a right one looks like."""
    with suppress(ValueError):
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        if re.fullmatch("[!-~]+", url) and parts.port != 0 and (parts.hostname or not parts.netloc):
            return parts
    raise ValueError(f"is no URL: it looks like {form}")


def _stream_url(url: str) -> str:
    parts = _split(url, form := "wss://ws.cloud.docker.com")
    if parts.scheme in {"unix", "tcp"}:
        raise ValueError("is that of a Docker Engine: it needs `type: engine` beside it")
    if parts.scheme not in {"ws", "wss"} or not parts.netloc:
        raise ValueError(f"must begin with wss:// (or ws://, without TLS), like {form}")
    if "@" in parts.netloc:
        raise ValueError("must not hold credentials: they go into username and api_key")
    if parts.query or parts.fragment:
        raise ValueError("must not have a query: filters go into types, objects and parents")
    return url.rstrip("/")


def _engine_url(url: str) -> str:
    parts = _split(url, form := "unix:///var/run/docker.sock or tcp://127.0.0.1:2375")
    unix = url.startswith("unix:///") and len(parts.path) > 1
    tcp = parts.scheme == "tcp" and parts.netloc and "@" not in parts.netloc and parts.path in {"", "/"}
    if not (unix or tcp) or parts.query or parts.fragment:
        raise ValueError(f"must look like {form}")
    return url.rstrip("/")


def _proxy_url(url: SecretStr) -> SecretStr:
    parts = _split(url.get_secret_value(), form := "http://proxy.example.com:3128")
    if parts.scheme != "http" or not parts.netloc or parts.path not in {"", "/"} or parts.query or parts.fragment:
        raise ValueError(f"must look like {form} (TLS goes through it, not to it)")
    return url


StreamUrl = Annotated[str, AfterValidator(_stream_url), WithJsonSchema({"type": "string", "pattern": "^wss?://"})]
EngineUrl = Annotated[str, AfterValidator(_engine_url), WithJsonSchema({"type": "string", "pattern": "^(unix:///|tcp://)"})]
ProxyUrl = Annotated[Secret, AfterValidator(_proxy_url)]
"""A proxy's URL is a secret, because it may hold a password."""


def is_loopback(host: str) -> bool:
    """Return True for `localhost` and loopback addresses."""
    try:
        ip = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host.lower() == "localhost"
    return (ip.ipv4_mapped if isinstance(ip, IPv6Address) and ip.ipv4_mapped else ip).is_loopback


_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d{1,400}(?:\.\d{1,20})?)\s*(ms|s|m|h|d)?", re.ASCII)
_DURATIONS = re.compile(r"(?:\d{1,20}(?:\.\d{1,20})?(?:ms|s|m|h|d)){2,5}", re.ASCII)


def duration(text: str) -> float:
    """Read seconds as people write them: a number, or one with a unit, or several of those (`1h30m`).

    Raises:
        ValueError: It is none.
    """
    text = text.strip()
    if not (_DURATION.fullmatch(text) or _DURATIONS.fullmatch(text)):
        raise ValueError("not a duration: write seconds (2.5) or numbers with ms, s, m, h or d (500ms, 24h, 1h30m)")
    return sum(float(number) * _UNITS[unit or "s"] for number, unit in _DURATION.findall(text))


def parse_time(text: str, now: datetime) -> datetime:
    """Read a point in time: RFC 3339 (UTC without an offset), or an age, like 90s, 15m, 2h or 3d.

    Raises:
        ValueError: It is neither.
    """
    try:
        if text.strip().endswith(("s", "m", "h", "d")):
            return now - timedelta(seconds=duration(text))
        found = datetime.fromisoformat(text.strip())
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("must be a time, like 2026-11-23T10:00:00Z, or an age, like 90s, 15m, 2h or 3d") from None


def _parse_duration(value: Any) -> Any:
    return duration(str(value)) if isinstance(value, str | bool) else value


Seconds = Annotated[
    float,
    # A delay without an end is a thread that sleeps for ever.
    Field(allow_inf_nan=False),
    BeforeValidator(_parse_duration),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0},
                {"type": "string", "pattern": r"^(\d+(\.\d+)? ?(ms|s|m|h|d)?|(\d+(\.\d+)?(ms|s|m|h|d))+)$"},
            ]
        }
    ),
]
"""A duration in seconds: a number, or text like `500ms`, `10s`, `5m`, `24h`, `3d`."""

Bytes = Annotated[
    ByteSize, BeforeValidator(lambda value: f"{value}B" if str(value).endswith(("Ki", "Mi", "Gi", "Ti")) else value)
]
"""A number of bytes: a number, or text like `64KiB`, `1GiB`, `1Gi`."""


class Strict(BaseModel):
    """Settings that are frozen, refuse unknown keys and never show their input in an error."""

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
