"""The paths of the operations: one table, and a function for each row."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import Message
from functools import partial
from http import HTTPStatus
from typing import Annotated, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec

from bridge.admin.auth import refusal
from bridge.admin.listener import JSON, Request, Response, Route, text_response
from bridge.admin.operations import (
    EVENT_PAGE,
    LETTER_PAGE,
    MESSAGE_PAGE,
    VERIFY_PAGE,
    NotConfiguredError,
    OperationError,
    Operations,
    parse_time,
)
from bridge.journal import DeadLetterQuery, DeathReason, JournalError, SeqOrId

Limit = Annotated[int, msgspec.Meta(ge=1)]
Ids = Annotated[list[SeqOrId], msgspec.Meta(min_length=1, max_length=LETTER_PAGE)]
Parameters = TypeVar("Parameters", bound=msgspec.Struct)


class _BadRequestError(Exception):
    """The request makes no sense; the text says which part."""


class _None(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: SeqOrId = 0
    limit: Limit = LETTER_PAGE


class _Filter(_Page, frozen=True, forbid_unknown_fields=True):
    sink: str | None = None
    reason: DeathReason | None = None
    since: str | None = None
    uuid: str | None = None
    type: str | None = None


class _Replay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sink: str
    ids: Ids


class _Drop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ids: Ids


def operation_routes(operations: Operations, token: Callable[[], str | None]) -> dict[str, Route]:
    """Return the routes by path.

    Args:
        operations: The operations on the bridge's journal.
        token: Returns the token that is asked for now; None if none is.
    """

    def refuse(client: str, headers: Message) -> Response | None:
        return refusal(client, headers, token())

    return {
        path: Route(method, partial(_respond, operation, operations), refuse)
        for path, (method, operation) in _OPERATIONS.items()
    }


def _dead_letters(operations: Operations, request: Request) -> object:
    asked = _parameters(request, _Filter)
    query = DeadLetterQuery(asked.sink, asked.reason, _since(asked.since), _uuid(asked.uuid), asked.type)
    return operations.journal.dead_letters(query, asked.after, min(asked.limit, LETTER_PAGE))


def _replay(operations: Operations, request: Request) -> object:
    asked = _body(request, _Replay)
    return operations.replay(asked.sink, asked.ids)


def _drop(operations: Operations, request: Request) -> object:
    return {"dropped": operations.drop(_body(request, _Drop).ids)}


def _quarantine(operations: Operations, request: Request) -> object:
    asked = _parameters(request, _Page)
    return operations.journal.quarantine(asked.after, min(asked.limit, MESSAGE_PAGE))


def _extent(operations: Operations, request: Request) -> object:
    _parameters(request, _None)
    return operations.journal.extent()


def _events(operations: Operations, request: Request) -> object:
    asked = _parameters(request, _Page)
    return operations.journal.events(asked.after, min(asked.limit, EVENT_PAGE))


def _verify(operations: Operations, request: Request) -> object:
    asked = _parameters(request, _Page)
    return operations.journal.verify(asked.after, min(asked.limit, VERIFY_PAGE))


def _check(operations: Operations, request: Request) -> object:
    _parameters(request, _None)
    return {"damage": operations.journal.check()}


def _prune(operations: Operations, request: Request) -> object:
    _body(request, _None)
    return {"freed": operations.prune()}


_OPERATIONS: Final[dict[str, tuple[str, Callable[[Operations, Request], object]]]] = {
    "/dead-letters": ("GET", _dead_letters),
    "/dead-letters/replay": ("POST", _replay),
    "/dead-letters/drop": ("POST", _drop),
    "/quarantine": ("GET", _quarantine),
    "/journal": ("GET", _extent),
    "/journal/events": ("GET", _events),
    "/journal/verify": ("GET", _verify),
    "/journal/check": ("GET", _check),
    "/journal/prune": ("POST", _prune),
}


def _respond(operation: Callable[[Operations, Request], object], operations: Operations, request: Request) -> Response:
    try:
        return Response(HTTPStatus.OK, JSON, msgspec.json.encode(operation(operations, request)) + b"\n")
    except _BadRequestError as error:
        return text_response(HTTPStatus.BAD_REQUEST, str(error))
    except NotConfiguredError as error:
        return text_response(HTTPStatus.CONFLICT, str(error))
    except (OperationError, JournalError) as error:
        return text_response(HTTPStatus.SERVICE_UNAVAILABLE, str(error))


def _parameters(request: Request, kind: type[Parameters]) -> Parameters:
    try:
        pairs = parse_qsl(request.query, keep_blank_values=True, strict_parsing=bool(request.query), errors="strict")
    except ValueError:
        raise _BadRequestError("what stands behind the ? is no list of name=value") from None
    if len(given := dict(pairs)) < len(pairs):
        raise _BadRequestError("a parameter is given twice")
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _BadRequestError(_explain(error)) from None


def _body(request: Request, kind: type[Parameters]) -> Parameters:
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.ValidationError as error:
        raise _BadRequestError(_explain(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _BadRequestError("the body is not JSON") from None


def _explain(error: msgspec.ValidationError) -> str:
    """Return the fault with the name of the parameter before it."""
    text, _, place = str(error).partition(" - at `$.")
    return f"{place.rstrip('`')}: {text}" if place else text


def _since(text: str | None) -> datetime | None:
    try:
        return None if text is None else parse_time(text, datetime.now(UTC))
    except ValueError as error:
        raise _BadRequestError(f"since: {error}") from None


def _uuid(text: str | None) -> str | None:
    try:
        return None if text is None else str(uuid.UUID(text))
    except ValueError:
        raise _BadRequestError("uuid: is none") from None
