"""Client of a running bridge's HTTP port: reads its journal and asks for its operations."""

import http.client
import json
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec
import urllib3
from urllib3.exceptions import InsecureRequestWarning

from bridge.journal import (
    DeadLetterPage,
    DeadLetterQuery,
    EventPage,
    JournalExtent,
    QuarantinePage,
    Replayed,
    RetryPage,
    Rewound,
    SinkBacklog,
    UnknownSinkError,
    VerifyPage,
)

Value = TypeVar("Value")


class _Dropped(msgspec.Struct):
    dropped: int


class _Freed(msgspec.Struct):
    freed: int


class _Skipped(msgspec.Struct):
    skipped: int | None


class _Damage(msgspec.Struct):
    damage: str | None


class _Woken(msgspec.Struct):
    woken: list[str]


class _Status(msgspec.Struct):
    sinks: dict[str, SinkBacklog]


class OperationError(Exception):
    """An operation failed, or no bridge can be asked for it; the text says why, and what would help."""


class Client:
    """Asks a bridge; every method is a request with a connection of its own.

    Args:
        url: The HTTP port: http://host:port, or https:// for a TLS proxy in front of it.
        token: The bridge's `http.token`, or the secret of its start; None sends none.
        verify: Check the certificate of an https:// address. Needless for the address that a bridge wrote beside its journal.

    Raises:
        OperationError: The URL is malformed. By every method: the bridge can't be asked, or refuses.
    """

    running = True

    def __init__(self, url: str, token: str | None, *, verify: bool = True) -> None:
        self._verify = verify
        self._url = url.rstrip("/")
        self._token = token
        try:
            parts = urlsplit(self._url)
            valid = bool(parts.hostname) and parts.port != 0 and parts.scheme in {"http", "https"}
        except ValueError:
            valid = False
        if not valid or "@" in parts.netloc or parts.query or parts.fragment:
            raise OperationError("must look like http://127.0.0.1:9477")

    def dead_letters(self, query: DeadLetterQuery, after: int, limit: int) -> DeadLetterPage:
        """See `JournalReader`."""
        asked = {key: value for key, value in msgspec.to_builtins(query).items() if value is not None}
        return self._get("/dead-letters", DeadLetterPage, **asked, after=after, limit=limit)

    def retries(self, sink: str, after: int, limit: int) -> RetryPage:
        """See `JournalReader`."""
        return self._get("/retries", RetryPage, sink=sink, after=after, limit=limit)

    def quarantine(self, after: int, limit: int) -> QuarantinePage:
        """See `JournalReader`."""
        return self._get("/quarantine", QuarantinePage, after=after, limit=limit)

    def extent(self) -> JournalExtent:
        """See `JournalReader`."""
        return self._get("/journal", JournalExtent)

    def events(self, after: int, limit: int) -> EventPage:
        """See `JournalReader`."""
        return self._get("/journal/events", EventPage, after=after, limit=limit)

    def verify(self, after: int, rows: int) -> VerifyPage:
        """See `JournalReader`."""
        return self._get("/journal/verify", VerifyPage, after=after, limit=rows)

    def check(self) -> str | None:
        """See `JournalReader`."""
        return self._ask("GET", "/journal/check", _Damage, timeout=600.0).damage

    def backlog(self) -> Mapping[str, SinkBacklog]:
        """See `JournalReader`."""
        return self._ask("GET", "/status", _Status, with_token=not self._verify).sinks

    def replay(self, sink: str, ids: Sequence[int]) -> Replayed:
        """See `Journal`."""
        return self._post("/dead-letters/replay", Replayed, sink=sink, ids=ids)

    def discard(self, ids: Sequence[int]) -> int:
        """See `Journal`."""
        return self._post("/dead-letters/drop", _Dropped, ids=ids).dropped

    def rewind(self, sink: str, to: int | datetime, *, dry_run: bool = False) -> Rewound:
        """See `Journal`."""
        return self._post(
            "/sinks/rewind", Rewound, sink=sink, to=to if isinstance(to, int) else to.isoformat(), dry_run=dry_run
        )

    def skip(self, sink: str) -> int | None:
        """See `Journal`."""
        return self._post("/sinks/skip", _Skipped, sink=sink).skipped

    def prune_all(self) -> int:
        """See `Journal`."""
        return self._post("/journal/prune", _Freed).freed

    def retry_now(self, streams: Sequence[str], sinks: Sequence[str]) -> Sequence[str]:
        """Let streams and sinks try again now, all if none is named; return those that were waiting."""
        return self._post("/-/retry", _Woken, streams=streams, sinks=sinks).woken

    def _get(self, path: str, kind: type[Value], **parameters: object) -> Value:
        return self._ask("GET", f"{path}?{urlencode(parameters)}" if parameters else path, kind)

    def _post(self, path: str, kind: type[Value], **body: object) -> Value:
        return self._ask("POST", path, kind, json.dumps(body).encode())

    def _ask(
        self,
        method: str,
        path: str,
        kind: type[Value],
        body: bytes | None = None,
        timeout: float = 60.0,
        *,
        with_token: bool = True,
    ) -> Value:
        headers = {"Connection": "close", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token is not None and with_token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            checks: dict[str, Any] = {} if self._verify else {"cert_reqs": "CERT_NONE", "assert_hostname": False}
            with (
                warnings.catch_warnings(category=InsecureRequestWarning, action="ignore"),
                urllib3.PoolManager(retries=False, **checks) as pool,
            ):
                response = pool.request(method, self._url + path, body=body, headers=headers, timeout=timeout, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise OperationError(f"{self._url}: {_explain(error, timeout)}") from None
        if response.status != HTTPStatus.OK:
            kind_of_error = UnknownSinkError if response.status == HTTPStatus.CONFLICT else OperationError
            raise kind_of_error(self._refused(response))
        try:
            return msgspec.json.decode(response.data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise OperationError(f"{self._url}: what answers there is no event-bridge, or one of another version") from None

    def _refused(self, response: urllib3.BaseHTTPResponse) -> str:
        text = response.data.decode(errors="replace").strip()
        is_text = response.headers.get("Content-Type", "").partition(";")[0].strip().lower() == "text/plain"
        if not is_text or not text or response.status == HTTPStatus.NOT_FOUND:
            return f"{self._url}: HTTP {response.status}; what answers there is no event-bridge, or one of another version"
        if response.status == HTTPStatus.UNAUTHORIZED:
            text += "; give it by the configuration (http.token, http.token_file) or by BRIDGE_HTTP__TOKEN"
        # Any server may have sent this.
        shown = "".join(c if c.isprintable() else " " for c in text[:300])
        return f"{self._url}: {shown}"


def probe(url: str, timeout: float = 2.0) -> tuple[bool, str]:
    """Ask a probe of a bridge on this machine, without a proxy of the environment; return whether it says yes, and its text.

    A certificate is not checked: it names the bridge as other machines know it.
    """
    with warnings.catch_warnings(category=InsecureRequestWarning, action="ignore"):
        try:
            with urllib3.PoolManager(retries=False, cert_reqs="CERT_NONE") as pool:
                response = pool.request("GET", url, timeout=timeout, redirect=False)
        except urllib3.exceptions.HTTPError as error:
            return False, f"{url}: {_explain(error, timeout)}"
    return response.status == HTTPStatus.OK, response.data.decode(errors="replace").strip()


def _explain(error: urllib3.exceptions.HTTPError, timeout: float) -> str:
    cause = error.__cause__ or error
    if isinstance(error, urllib3.exceptions.ProtocolError) and isinstance(error.args[-1], Exception):
        cause = error.args[-1]
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return "no such host"
    if isinstance(error, urllib3.exceptions.TimeoutError) and not isinstance(error, urllib3.exceptions.NewConnectionError):
        return f"no answer within {timeout:g} s"
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused; does the bridge run, and is http.listen this address?"
    if isinstance(error, urllib3.exceptions.SSLError):
        reason = error.args[0] if error.args else error
        return f"TLS: {getattr(reason, 'reason', None) or reason}"
    if isinstance(cause, http.client.HTTPException):
        return "what answers there does not speak HTTP"
    return (cause.strerror if isinstance(cause, OSError) else None) or str(cause) or type(cause).__name__
