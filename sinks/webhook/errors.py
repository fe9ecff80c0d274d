"""What the answer to a webhook request means, and what it means that there was none; pure.

The question is whose fault it is (`bridge.sink`). A status that says something about the place, the credentials or the load is
the receiver's: every event would fare the same. One that says something about the content is the event's, for ever; the
rest is this request's, and may be different later.
"""

import http
import socket
import ssl
from datetime import datetime
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from bridge.policy import parse_retry_after
from bridge.sink import Reason
from sinks.webhook.client import CLOSED, Answer, NoConnection

_Fault = Literal["rejected", "retry", "unavailable"]


class Verdict(NamedTuple):
    """What a request has come to.

    Attributes:
        fate: As for `Failure`; "unavailable" is the receiver's fault.
        reason: Why, as a label.
        error: Why, in words.
        retry_after: Seconds that the receiver asked us to wait.
        answered: Whether the receiver said anything.
    """

    fate: _Fault | Literal["delivered"]
    reason: Reason = "internal"
    error: str = ""
    retry_after: float | None = None
    answered: bool = True


_STATUSES: Final[dict[int, tuple[_Fault, Reason]]] = {
    401: ("unavailable", "unauthorized"),
    403: ("unavailable", "unauthorized"),
    404: ("unavailable", "not_found"),
    405: ("unavailable", "not_found"),
    407: ("unavailable", "unauthorized"),
    408: ("retry", "timeout"),
    409: ("retry", "server_error"),
    410: ("unavailable", "not_found"),
    413: ("rejected", "too_large"),
    425: ("retry", "server_error"),
    429: ("unavailable", "throttled"),
    502: ("unavailable", "server_error"),
    503: ("unavailable", "server_error"),
    504: ("unavailable", "server_error"),
}
_CLASSES: Final[dict[int, tuple[_Fault, Reason]]] = {
    1: ("unavailable", "server_error"),
    3: ("unavailable", "not_found"),
    4: ("rejected", "rejected"),
    5: ("retry", "server_error"),
}


def judge(answer: Answer, where: str, now: datetime) -> Verdict:
    """Say what an answer means: whose fault it is, if it is not 2xx.

    Args:
        answer: The answer.
        where: The receiver's host, for the words.
        now: For a `Retry-After` that is a date.
    """
    status = answer.status
    if status // 100 == 2:
        return Verdict("delivered")
    fate, reason = _STATUSES.get(status) or _CLASSES.get(status // 100, ("unavailable", "server_error"))
    try:
        error = f"{where} answered {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        error = f"{where} answered {status}"
    if status // 100 == 3:
        error += f" and points to {_target(answer)}; redirects are not followed, set `url` to the place itself"
    return Verdict(fate, reason, error, parse_retry_after(answer.headers.get("Retry-After"), now))


def _target(answer: Answer) -> str:
    try:
        return urlsplit(answer.headers.get("Location", "")).hostname or "another path"
    except ValueError:
        return "nowhere"


def diagnose(error: Exception, where: str, timeout: float) -> Verdict:
    """Say what it means that a request had no answer.

    Args:
        error: What happened.
        where: The receiver's host, for the words.
        timeout: Seconds that the request had.
    """
    if isinstance(error, TimeoutError):
        return Verdict("retry", "timeout", f"{where} did not answer within {timeout:g} s", answered=False)
    if isinstance(error, CLOSED):
        return Verdict("retry", "unreachable", f"{where} closed the connection instead of an answer", answered=False)
    cause = error.__cause__ if isinstance(error, NoConnection) else error
    reason: Reason = "unreachable"
    match cause:
        case TimeoutError():
            words = f"no connection within {timeout:g} s"
        case socket.gaierror():
            words = f"no address for the name: {cause.strerror}"
        case ssl.SSLCertVerificationError():
            reason, words = "tls", f"the certificate is not accepted: {cause.verify_message}"
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            words = "the connection was closed"
        case ssl.SSLError():
            # Only errors that OpenSSL reports have a reason; those of the ssl module itself have not even the attribute.
            reason, words = "tls", f"TLS failed: {getattr(cause, 'reason', None) or cause.strerror}"
        case OSError():
            words = cause.strerror or str(cause)
        case _:
            reason, words = "server_error", "what it answers is not HTTP"
    return Verdict("unavailable", reason, f"{where}: {words}", answered=False)
