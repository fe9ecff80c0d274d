"""Classifies the responses to webhook requests, and the errors of requests without one; pure.

A status about the place, the credentials, the form of the request or the load concerns the sink: every event would get it. A
status about the content rejects the event. All others concern this request, and may differ later.
"""

import html
import http
import os
import re
from collections.abc import Collection
from datetime import datetime
from typing import Final, Literal
from urllib.parse import urlsplit

import pycurl

from bridge.policy import parse_retry_after
from bridge.sink import Reason
from bridge.text import without, without_markup
from sinks.classification import Classification
from sinks.webhook.client import NoResponse, Response

_Meaning = tuple[Literal["sink", "event"], Literal["retry", "rejected"], Reason]
_MEANINGS: Final[dict[_Meaning, tuple[int, ...]]] = {
    ("sink", "retry", "unauthorized"): (401, 402, 407, 511),
    ("sink", "retry", "not_found"): (404, 405, 410, 421),
    # The form of each request: its length, type, version, headers; or the place.
    ("sink", "retry", "rejected"): (406, 411, 412, 415, 417, 426, 428, 431, 451),
    ("sink", "retry", "throttled"): (429,),
    ("sink", "retry", "server_error"): (502, 503, 504),
    # A firewall that looks into requests says so, too: the sink finds out which it is.
    ("event", "retry", "unauthorized"): (403,),
    ("event", "retry", "timeout"): (408,),
    ("event", "retry", "server_error"): (409, 423, 424, 425),
    ("event", "rejected", "too_large"): (413,),
}
_STATUSES: Final = {status: meaning for meaning, statuses in _MEANINGS.items() for status in statuses}
_CLASSES: Final[dict[int, _Meaning]] = {
    3: ("sink", "retry", "not_found"),
    4: ("event", "rejected", "rejected"),
    5: ("event", "retry", "server_error"),
}
# A slash, or an ASCII character, as encoders of JSON write them.
_ESCAPED: Final = re.compile(r"\\(?:/|u00([2-7][0-9a-fA-F]))")


def classify(response: Response, where: str, secrets: Collection[str], now: datetime) -> Classification | None:
    """Classify a response; None if it is 2xx, so that the events are delivered.

    Args:
        response: The response.
        where: The receiver's host, for the message.
        secrets: Texts that must not come into the message.
        now: For a `Retry-After` that is a date.
    """
    status = response.status
    if status // 100 == 2:
        return None
    scope, outcome, reason = _STATUSES.get(status) or _CLASSES.get(status // 100, ("sink", "retry", "server_error"))
    try:
        error = f"{where} answered {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        error = f"{where} answered {status}"
    if status // 100 == 3:
        location = (response.header("Location") or "").encode("latin-1").decode(errors="replace")
        place = _clean(_target(without(secrets, location)), secrets)
        error += f" and points to {place}; redirects are not followed, set `url` to the place itself"
    elif words := _clean(response.body.decode(errors="replace"), secrets):
        error += f": {words}"
    return Classification(scope, outcome, reason, error, parse_retry_after(response.header("Retry-After"), now))


def _target(location: str) -> str:
    """Return the place that a redirect points to, without credentials and query."""
    try:
        parts = urlsplit(location)
        host = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.hostname else ""
    except ValueError:
        return "nowhere"
    return host + parts.path or "nowhere"


def _clean(text: str, secrets: Collection[str]) -> str:
    """Return up to 200 printable characters of what a receiver says, as JSON or HTML perhaps, without secrets."""
    known = {*secrets, *map(_unescape, secrets)}
    shown = without_markup(without(known, _unescape(text)))
    return without(known, " ".join("".join(each if each.isprintable() else " " for each in shown).split()))[:200]


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda it: chr(int(it[1], 16)) if it[1] else "/", html.unescape(text))


def classify_error(error: NoResponse, where: str, timeout: float) -> Classification:
    """Classify the end of a request without a response.

    Args:
        error: The error.
        where: The receiver's host, for the message.
        timeout: The request's timeout in seconds.
    """
    if error.sent and error.number == pycurl.E_OPERATION_TIMEDOUT:
        return Classification("event", "retry", "timeout", f"{where} did not answer within {timeout:g} s")
    reason, message = _describe(error, timeout)
    if error.sent and message == _CLOSED:
        return Classification("event", "retry", "unreachable", f"{where} closed the connection instead of an answer")
    return Classification("sink", "retry", reason, f"{where}: {message}")


_CLOSED: Final = "the connection was closed"
_ERRORS: Final[dict[int, tuple[Reason, str]]] = {
    pycurl.E_COULDNT_RESOLVE_HOST: ("unreachable", "no address for the name"),
    pycurl.E_COULDNT_RESOLVE_PROXY: ("unreachable", "no address for the name of the proxy"),
    pycurl.E_UNSUPPORTED_PROTOCOL: ("server_error", "what it answers is not HTTP"),
    pycurl.E_FTP_WEIRD_SERVER_REPLY: ("server_error", "what it answers is not HTTP"),
    pycurl.E_GOT_NOTHING: ("unreachable", _CLOSED),
    pycurl.E_SEND_ERROR: ("unreachable", _CLOSED),
    pycurl.E_RECV_ERROR: ("unreachable", _CLOSED),
    pycurl.E_SSL_CONNECT_ERROR: ("unreachable", _CLOSED),
}


def _describe(error: NoResponse, timeout: float) -> tuple[Reason, str]:
    """Return the label of an error, and words that repeat neither the URL of a proxy nor what the receiver said."""
    number, message, os_error, _ = error
    tls = re.search(r"SSL routines::([^,]+)", message)
    if tls and "unexpected eof" not in tls[1]:
        return "tls", f"TLS failed: {tls[1]}"
    if number == pycurl.E_PEER_FAILED_VERIFICATION:
        words = re.sub(r"^SSL certificate OpenSSL verify result: |^SSL: | \(\d+\)$", "", message)
        return "tls", f"the certificate is not accepted: {words}"
    if number == pycurl.E_OPERATION_TIMEDOUT:
        return "unreachable", f"no connection within {timeout:g} s"
    if message.startswith("Unsupported proxy"):
        return "unreachable", "HTTPS_PROXY must look like http://host:port"
    if message.startswith("CONNECT tunnel failed"):
        return "unreachable", f"the proxy refuses: {message}"
    if os_error and number in {pycurl.E_COULDNT_CONNECT, pycurl.E_OUT_OF_MEMORY}:
        return "unreachable", ("the proxy: " if " over proxy " in message else "") + os.strerror(os_error)
    return _ERRORS.get(number) or ("unreachable", pycurl.easy_strerror(number))
