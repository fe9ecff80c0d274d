"""Failures of a websocket connection, as reason and text for an operator."""

import base64
import socket
import ssl
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from email.message import Message
from http import HTTPStatus
from http.client import responses
from typing import Final
from urllib.parse import urlsplit

import msgspec

from bridge.policy import parse_retry_after
from bridge.source import Ended, EndReason
from bridge.text import without


class _ErrorBody(msgspec.Struct):
    """Body of a refusal: the documented field, and the one that a lockout was seen to use."""

    error: str = ""
    detail: str = ""


class BadAnswerError(ValueError):
    """The answer is not HTTP, or not that of a websocket."""


def refusal(status: int, fields: Message, content: bytes, secrets: Sequence[str]) -> Ended:
    """Describe an answer other than the upgrade; its text is cut, and these secrets in it are masked.

    A redirect is not followed, since it would get the credentials; its target is shown without credentials and query.
    """
    if status in {301, 302, 303, 307, 308}:
        try:
            target = urlsplit(without(secrets, fields.get("Location", "")))
            address = target._replace(netloc=target.netloc.rpartition("@")[2], query="", fragment="").geturl()
        except ValueError:
            address = "?"
        return Ended(f"the server redirects ({status}) to {_one_line(address)}: if that is right, set it as url", "refused")
    try:
        body = msgspec.json.decode(content, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = _ErrorBody()
    detail = without(secrets, body.error or body.detail)
    text = f"the server answered {status} {responses.get(status, '')}".rstrip() + (f": {_one_line(detail)}" if detail else "")
    retry_after = parse_retry_after(fields.get("Retry-After"), datetime.now(UTC))
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return Ended(text, "unauthorized", retry_after=retry_after)
    patience = status == HTTPStatus.TOO_MANY_REQUESTS or (status == HTTPStatus.SERVICE_UNAVAILABLE and retry_after is not None)
    return Ended(text, "throttled" if patience else "refused", retry_after=retry_after)


def secrets_in(authorization: str) -> Sequence[str]:
    """List the secrets in a header's value: the part after the scheme, and the password that it may encode."""
    token = authorization.rpartition(" ")[2]
    try:
        password = base64.b64decode(token, validate=True).decode(errors="replace").partition(":")[2]
    except ValueError:
        password = token.partition(":")[2]
    return [secret for secret in (token, password) if secret]


_FAILURES: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], EndReason, str], ...]] = (
    (socket.gaierror, "network", "the host name was not resolved: {}"),
    (TimeoutError, "network", "no answer in time"),
    (BadAnswerError, "protocol", "{}"),
    (ssl.SSLCertVerificationError, "tls", "the server's certificate is not accepted: {}"),
    ((ssl.SSLEOFError, ssl.SSLZeroReturnError), "network", "the connection was closed in the middle of TLS"),
    (ssl.SSLError, "tls", "TLS failed: {}"),
    (OSError, "network", "{}"),
    (UnicodeError, "refused", "the host's name is not valid"),
    (ValueError, "refused", "{}"),
)
"""Reason and text of an exception: the first row that fits counts; `{}` is the exception's own text."""


def failure(error: Exception) -> Ended:
    """Describe why there is no connection, or no longer."""
    detail = _one_line(getattr(error, "strerror", None) or str(error))
    reason, text = next((reason, text) for kinds, reason, text in _FAILURES if isinstance(error, kinds))
    return Ended(text.format(detail), reason)


def close_text(payload: bytes, secrets: Sequence[str]) -> str:
    """Read code and text of a close frame; these secrets in it are masked."""
    if len(payload) < struct.calcsize("!H"):
        return "no code"
    (code,) = struct.unpack_from("!H", payload)
    return _one_line(f"{code} {without(secrets, payload[2:].decode(errors='replace'))}")


def _one_line(text: str) -> str:
    """Make a peer's text fit for a log: short, and without control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
