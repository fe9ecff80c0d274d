"""Classifies the answers to webhook requests, and exceptions instead of an answer; pure.

A status about the path, the credentials or the load concerns the sink: every event would get it. A status about the content
rejects the event. All others concern this request, and may differ later.
"""

import http
from datetime import datetime
from typing import Final, Literal
from urllib.parse import urlsplit

from bridge.policy import parse_retry_after
from bridge.sink import Reason
from sinks.classification import Classification, connection_error
from sinks.webhook.client import CLOSED, Response
from sinks.webhook.url import NoConnection

_Classified = tuple[Literal["sink", "event"], Literal["retry", "rejected"], Reason]
_STATUSES: Final[dict[int, _Classified]] = {
    401: ("sink", "retry", "unauthorized"),
    403: ("sink", "retry", "unauthorized"),
    404: ("sink", "retry", "not_found"),
    405: ("sink", "retry", "not_found"),
    407: ("sink", "retry", "unauthorized"),
    408: ("event", "retry", "timeout"),
    409: ("event", "retry", "server_error"),
    410: ("sink", "retry", "not_found"),
    413: ("event", "rejected", "too_large"),
    425: ("event", "retry", "server_error"),
    429: ("sink", "retry", "throttled"),
    502: ("sink", "retry", "server_error"),
    503: ("sink", "retry", "server_error"),
    504: ("sink", "retry", "server_error"),
}
_CLASSES: Final[dict[int, _Classified]] = {
    1: ("sink", "retry", "server_error"),
    3: ("sink", "retry", "not_found"),
    4: ("event", "rejected", "rejected"),
    5: ("event", "retry", "server_error"),
}


def classify(response: Response, where: str, now: datetime) -> Classification | None:
    """Classify a response; None if it is 2xx, so that the events are delivered.

    Args:
        response: The response.
        where: The receiver's host, for the message.
        now: For a `Retry-After` that is a date.
    """
    status = response.status
    if status // 100 == 2:
        return None
    scope, outcome, reason = _STATUSES.get(status) or _CLASSES.get(status // 100, _CLASSES[1])
    try:
        error = f"{where} answered {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        error = f"{where} answered {status}"
    if status // 100 == 3:
        error += f" and points to {_target(response)}; redirects are not followed, set `url` to the place itself"
    return Classification(scope, outcome, reason, error, parse_retry_after(response.headers.get("Retry-After"), now))


def _target(response: Response) -> str:
    try:
        return urlsplit(response.headers.get("Location", "")).hostname or "another path"
    except ValueError:
        return "nowhere"


def classify_exception(error: Exception, where: str, timeout: float) -> Classification:
    """Classify the exception of a request without an response.

    Args:
        error: The exception.
        where: The receiver's host, for the message.
        timeout: The request's timeout in seconds.
    """
    if isinstance(error, TimeoutError):
        return Classification("event", "retry", "timeout", f"{where} did not answer within {timeout:g} s")
    if isinstance(error, CLOSED):
        return Classification("event", "retry", "unreachable", f"{where} closed the connection instead of an answer")
    reason: Reason
    cause = error.__cause__ if isinstance(error, NoConnection) else error
    if isinstance(cause, TimeoutError):
        reason, message = "unreachable", f"no connection within {timeout:g} s"
    elif isinstance(cause, OSError):
        reason, message = connection_error(cause)
    else:
        reason, message = "server_error", "what it answers is not HTTP"
    return Classification("sink", "retry", reason, f"{where}: {message}")
