"""The route that lets streams and sinks try again now, instead of after their backoff."""

from collections.abc import Callable
from http import HTTPStatus

import msgspec
import structlog

from bridge.admin.route import JSON, Request, Response, Route, text_response
from bridge.pipeline.supervisor import Running
from bridge.text import plain

log = structlog.get_logger(__name__)


class _Retry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The names; without any, all streams and sinks."""

    streams: list[str] = []
    sinks: list[str] = []


def retry_route(running: Callable[[], Running]) -> Route:
    """Return the route that ends the backoff of streams and sinks, and answers with those that were waiting."""

    def retry(request: Request) -> Response:
        try:
            asked = msgspec.json.decode(request.body or b"{}", type=_Retry)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return text_response(HTTPStatus.BAD_REQUEST, f"the body: {error}")
        pauses = running().pauses
        names = [f"stream-{name}" for name in asked.streams] + [f"sink-{name}" for name in asked.sinks] or list(pauses)
        if unknown := [name for name in names if name not in pauses]:
            there = ", ".join(pauses)
            return text_response(HTTPStatus.BAD_REQUEST, f"there is no {plain(', no '.join(unknown))}; there are {there}")
        woken = [name for name in names if pauses[name].until is not None]
        for name in woken:
            pauses[name].end()
        log.warning("an operator asked for attempts now", operation=request.path, client=request.client, woken=woken)
        return Response(HTTPStatus.OK, JSON, msgspec.json.encode({"woken": woken}) + b"\n")

    return Route("POST", retry, is_operation=True)
