"""The kinds of text that settings are made of: names, addresses, URLs, secrets.

Each says in one line what is wrong and what would be right, and never repeats what it was given: a URL may hold credentials.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, SecretStr, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

OFF: Final = "off"
NAME_PATTERN: Final = r"^[a-z](?!.*__)[a-z0-9_-]*$"
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
    NAME_PATTERN, "is no name: names are a lower-case letter, then lower-case letters, digits, `-` or single `_`"
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


def _listen(value: Any) -> Any:
    """Accept `off`, an empty value (as an unset variable leaves it) and `false` for "do not listen"."""
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
