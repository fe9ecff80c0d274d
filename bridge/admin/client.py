"""The operations of a running bridge, over its HTTP port."""

import http.client
import json
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import closing
from http import HTTPStatus
from typing import Final, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from bridge.admin.operations import (
    Checked,
    Events,
    Frames,
    LetterQuery,
    Letters,
    NotConfiguredError,
    OperationError,
    Replayed,
    Stored,
    Waiting,
)

_TIMEOUT: Final = 60.0
"""Seconds for which the bridge may be silent."""

_CHECK_TIMEOUT: Final = 600.0
"""The same while SQLite looks at the whole file."""

_LONGEST_WORDS: Final = 300
"""Characters of an error that are shown: who answers may be anybody."""

Value = TypeVar("Value")


class _Dropped(msgspec.Struct):
    dropped: int


class _Freed(msgspec.Struct):
    freed: int


class _Damage(msgspec.Struct):
    damage: str | None


class _Status(msgspec.Struct):
    sinks: dict[str, Waiting]


class Client:
    """Asks a bridge; every method is a request with a connection of its own.

    Args:
        url: Where its HTTP port is: http://host:port, or https:// if something in front of it speaks TLS.
        token: What it may ask for; None sends none.

    Raises:
        OperationError: The URL is none.
    """

    running = True

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url.rstrip("/")
        self._token = token
        try:
            parts = urlsplit(self._url)
            self._host, self._port, self._tls = parts.hostname or "", parts.port, parts.scheme == "https"
        except ValueError:
            parts, self._host = urlsplit(""), ""
        if parts.scheme not in {"http", "https"} or not self._host or "@" in parts.netloc or parts.query or parts.fragment:
            raise OperationError("must look like http://127.0.0.1:9477")
        self._prefix = parts.path

    def dead_letters(self, query: LetterQuery, after: int, limit: int) -> Letters:
        """See `Inspection`."""
        asked = {key: value for key, value in msgspec.to_builtins(query).items() if value is not None}
        return self._get("/dead-letters", Letters, **asked, after=after, limit=limit)

    def quarantine(self, after: int, limit: int) -> Frames:
        """See `Inspection`."""
        return self._get("/quarantine", Frames, after=after, limit=limit)

    def stored(self) -> Stored:
        """See `Inspection`."""
        return self._get("/journal", Stored)

    def events(self, after: int, limit: int) -> Events:
        """See `Inspection`."""
        return self._get("/journal/events", Events, after=after, limit=limit)

    def verify(self, after: int, rows: int) -> Checked:
        """See `Inspection`."""
        return self._get("/journal/verify", Checked, after=after, limit=rows)

    def damage(self) -> str | None:
        """See `Inspection`."""
        return self._ask("GET", "/journal/check", _Damage, timeout=_CHECK_TIMEOUT).damage

    def backlog(self) -> Mapping[str, Waiting]:
        """See `Inspection`."""
        return self._get("/status", _Status).sinks

    def replay(self, sink: str, ids: Sequence[int]) -> Replayed:
        """See `Operations`."""
        return self._post("/dead-letters/replay", Replayed, sink=sink, ids=ids)

    def drop(self, ids: Sequence[int]) -> int:
        """See `Operations`."""
        return self._post("/dead-letters/drop", _Dropped, ids=ids).dropped

    def prune(self) -> int:
        """See `Operations`."""
        return self._post("/journal/prune", _Freed).freed

    def _get(self, path: str, kind: type[Value], **parameters: object) -> Value:
        return self._ask("GET", f"{path}?{urlencode(parameters)}" if parameters else path, kind)

    def _post(self, path: str, kind: type[Value], **body: object) -> Value:
        return self._ask("POST", path, kind, json.dumps(body).encode())

    def _ask(self, method: str, path: str, kind: type[Value], body: bytes | None = None, timeout: float = _TIMEOUT) -> Value:
        try:
            with closing(self._connection(timeout)) as connection:
                connection.request(method, self._prefix + path, body, self._headers(body))
                response = connection.getresponse()
                text = response.read()
        except ConnectionRefusedError:
            raise OperationError(
                f"{self._url}: connection refused; does the bridge run, and is http.listen this address?"
            ) from None
        except TimeoutError:
            raise OperationError(f"{self._url}: no answer within {timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise OperationError(f"{self._url}: {_reason(error)}") from None
        if response.status != HTTPStatus.OK:
            kind_of_error = NotConfiguredError if response.status == HTTPStatus.CONFLICT else OperationError
            raise kind_of_error(self._refused(response, text))
        try:
            return msgspec.json.decode(text, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise OperationError(f"{self._url}: what answers there is no event-bridge, or one of another version") from None

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self._tls:
            return http.client.HTTPSConnection(self._host, self._port, timeout=timeout, context=ssl.create_default_context())
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)

    def _headers(self, body: bytes | None) -> dict[str, str]:
        headers = {"Connection": "close", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers

    def _refused(self, response: http.client.HTTPResponse, text: bytes) -> str:
        said = text.decode(errors="replace").strip()
        if response.headers.get_content_type() != "text/plain" or not said or response.status == HTTPStatus.NOT_FOUND:
            return f"{self._url}: HTTP {response.status}; what answers there is no event-bridge, or one of another version"
        if response.status == HTTPStatus.UNAUTHORIZED:
            said += "; give it by the configuration (http.token, http.token_file) or by BRIDGE_HTTP__TOKEN"
        shown = "".join(c if c.isprintable() else " " for c in said[:_LONGEST_WORDS])
        return f"{self._url}: {shown}"


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "no such host"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, http.client.HTTPException):
        return "what answers there does not speak HTTP"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
