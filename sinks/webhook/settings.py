"""Settings of a `webhook` sink, and the headers of its requests."""

import base64
import importlib.metadata
import re
from typing import Final, Literal, Self
from urllib.parse import unquote

from pydantic import Field, SecretStr, field_validator, model_validator
from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from bridge.field_types import OptionalFile, Seconds
from bridge.sink import SinkSettings

USER_AGENT: Final = f"event-bridge/{importlib.metadata.version('event-bridge')}"

_OUR_HEADERS: Final = frozenset({"connection", "content-length", "expect", "host", "transfer-encoding", "webhook-id"})


def read_url(text: str) -> Url:
    """Parse the URL of a receiver.

    Raises:
        ValueError: It is not valid. The error does not repeat it, since it may hold a token.
    """
    try:
        url = parse_url(text)
        (url.host or "").encode("idna")
    except (LocationParseError, UnicodeError):
        raise ValueError("not a URL") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError("must look like https://host/path or http://host/path")
    if url.auth is not None:
        raise ValueError("has credentials in it: set `username` and `password`, or `token`, instead")
    return url


class WebhookSettings(SinkSettings):
    """Settings of a `webhook` sink."""

    type: Literal["webhook"] = "webhook"
    url: str = Field(
        description="Where to send events: http or https. Credentials go into `token`, or `username` and `password`."
    )
    method: Literal["POST", "PUT"] = Field(default="POST", description="The method of each request.")
    format: Literal["event", "batch", "lines"] = Field(
        default="event",
        description="A request is one event; or up to `batch.max_events`, as a JSON array (batch) or as JSON lines (lines).",
    )
    headers: dict[str, SecretStr] = Field(default={}, description="Further headers of each request.")
    token: SecretStr | None = Field(default=None, description="Bearer token.")
    username: str | None = Field(default=None, description="User name for basic authentication.")
    password: SecretStr | None = Field(default=None, description="Password for basic authentication.")
    timeout: Seconds = Field(default=10.0, gt=0, le=3600, description="How long one request takes at most, all in all.")
    connections: int = Field(default=4, ge=1, le=64, description="How many requests are under way at the same time at most.")
    ca_file: OptionalFile = Field(default=None, description="Certificates to trust instead of the system's (PEM).")
    cert_file: OptionalFile = Field(default=None, description="Our certificate, if the receiver wants one (PEM).")
    key_file: OptionalFile = Field(default=None, description="Its key, if that is in another file (PEM).")
    key_password: SecretStr | None = Field(default=None, description="The key's password.")

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        read_url(url)
        return url

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, value in self.headers.items():
            if not re.fullmatch(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+", name) or name.lower() in _OUR_HEADERS:
                raise ValueError(f"headers: {name!r} can't be set")
            _require_printable(f"headers: {name}", value)
        _require_printable("token", self.token)
        given = [self.token, self.username, "authorization" in (name.lower() for name in self.headers) or None]
        if sum(value is not None for value in given) > 1:
            raise ValueError("set only one of `token`, `username` and an Authorization header")
        if (self.username is None) is not (self.password is None):
            raise ValueError("set `username` and `password` together")
        if ":" in (self.username or ""):
            raise ValueError("`username` can't have a colon in it (RFC 7617)")
        if self.key_file is not None and self.cert_file is None:
            raise ValueError("`key_file` is of no use without `cert_file`")
        return self


def _require_printable(name: str, value: SecretStr | None) -> None:
    """Refuse a value that can't be a header, before a library repeats it in an error."""
    if value is not None and not (value.get_secret_value().isascii() and value.get_secret_value().isprintable()):
        raise ValueError(f"{name}: has characters that can't stand in a header, a line break perhaps")


def request_headers(settings: WebhookSettings) -> dict[str, str]:
    """Return the headers of every request, secrets included."""
    headers = {
        "user-agent": USER_AGENT,
        "content-type": "application/x-ndjson" if settings.format == "lines" else "application/json",
    }
    headers |= {name.lower(): value.get_secret_value() for name, value in settings.headers.items()}
    if settings.token is not None:
        headers["authorization"] = f"Bearer {settings.token.get_secret_value()}"
    if settings.username is not None and settings.password is not None:
        pair = f"{settings.username}:{settings.password.get_secret_value()}".encode()
        headers["authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    return headers


def secrets_of(settings: WebhookSettings) -> frozenset[str]:
    """Return the texts that no message may repeat: credentials, and what may be one in the URL."""
    url = read_url(settings.url)
    headers = [value for name, value in request_headers(settings).items() if name not in {"user-agent", "content-type"}]
    password = [settings.password.get_secret_value()] if settings.password is not None else []
    in_url = [part.rpartition("=")[2] for part in (url.query or "").split("&")] + re.findall(r"[^/]{16,}", url.path or "")
    words = [value.rpartition(" ")[2] for value in headers]
    return frozenset([*headers, *words, *password, *in_url, *map(unquote, in_url)]) - {""}
