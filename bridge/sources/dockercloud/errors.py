"""Failures of a websocket connection, as reason and text for an operator."""

import base64
import ssl
import struct
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import msgspec
import websocket

from bridge.policy import parse_retry_after
from bridge.source import Ended, EndReason


class _ErrorBody(msgspec.Struct):
    """Body of a refusal: the documented field, and the one that a lockout was seen to use."""

    error: str = ""
    detail: str = ""


def refusal(error: websocket.WebSocketBadStatusException, authorization: str) -> Ended:
    """Describe an answer other than the upgrade; its text is cut, and our credentials in it are masked."""
    status, headers = error.status_code, error.resp_headers or {}
    try:
        body = msgspec.json.decode(error.resp_body or b"", type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = _ErrorBody()
    detail = body.error or body.detail
    for secret in _secrets(authorization):
        detail = detail.replace(secret, "***")
    if not status:
        return Ended("the answer is not HTTP", "protocol")
    phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
    text = _one_line(f"the server answered {status} {phrase}") + (f": {_one_line(detail)}" if detail else "")
    retry_after = parse_retry_after(headers.get("retry-after"), datetime.now(UTC))
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return Ended(text, "unauthorized", retry_after=retry_after)
    patience = status == HTTPStatus.TOO_MANY_REQUESTS or (status == HTTPStatus.SERVICE_UNAVAILABLE and retry_after is not None)
    return Ended(text, "throttled" if patience else "refused", retry_after=retry_after)


def _secrets(authorization: str) -> list[str]:
    """List the secrets in a header's value: the part after the scheme, and the password that it may encode."""
    token = authorization.rpartition(" ")[2]
    try:
        password = base64.b64decode(token, validate=True).decode(errors="replace").partition(":")[2]
    except ValueError:
        password = token.partition(":")[2]
    return [secret for secret in (token, password) if secret]


def redirection(web: websocket.WebSocket) -> Ended | None:
    """Describe a redirect, which is not followed; its target is shown without credentials and query."""
    response = web.handshake_response
    if response is None or response.status not in {301, 302, 303, 307, 308}:
        return None
    try:
        target = urlsplit(response.headers.get("location", ""))
        address = target._replace(netloc=target.netloc.rpartition("@")[2], query="", fragment="").geturl()
    except ValueError:
        address = "?"
    return Ended(
        f"the server redirects ({response.status}) to {_one_line(address)}: if that is right, set it as url", "refused"
    )


_FAILURES: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], EndReason, str], ...]] = (
    (websocket.WebSocketAddressException, "network", "the host name was not resolved: {}"),
    ((websocket.WebSocketTimeoutException, TimeoutError), "network", "no answer in time"),
    (websocket.WebSocketConnectionClosedException, "network", "the connection was closed during the handshake"),
    (websocket.WebSocketProxyException, "network", "the proxy: {}"),
    (websocket.WebSocketException, "protocol", "the answer is not that of a websocket: {}"),
    (ssl.SSLCertVerificationError, "tls", "the server's certificate is not accepted: {}"),
    ((ssl.SSLEOFError, ssl.SSLZeroReturnError), "network", "the connection was closed in the middle of TLS"),
    (ssl.SSLError, "tls", "TLS failed: {}"),
    (OSError, "network", "{}"),
    # The text names a setting, and may quote a part of the proxy's password.
    (ValueError, "refused", "host or proxy are not usable: check url, proxy and the environment's http_proxy, https_proxy"),
)
"""Reason and text of an exception: the first row that fits counts; `{}` is the exception's own text."""


def failure(error: Exception) -> Ended:
    """Describe why there is no connection, or no longer."""
    detail = _one_line(getattr(error, "strerror", None) or str(error))
    if isinstance(error, websocket.WebSocketProxyException) and detail.endswith("status: 407"):
        return Ended(f"the proxy refuses our credentials: {detail}", "unauthorized")
    reason, text = next((reason, text) for kinds, reason, text in _FAILURES if isinstance(error, kinds))
    return Ended(text.format(detail), reason)


def close_text(payload: bytes) -> str:
    """Read code and text of a close frame."""
    if len(payload) < struct.calcsize("!H"):
        return "no code"
    (code,) = struct.unpack_from("!H", payload)
    return _one_line(f"{code} {payload[2:].decode(errors='replace')}")


def _one_line(text: str) -> str:
    """Make a peer's text fit for a log: short, and without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
