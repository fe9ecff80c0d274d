"""The operations as paths of the HTTP port: parameters in, JSON out. Who may use them: `bridge.admin.auth`."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Final, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec

from bridge.admin.exchange import JSON, Answer, Request, words
from bridge.admin.operations import (
    EVENTS,
    FRAMES,
    LETTERS,
    ROWS,
    LetterQuery,
    NotConfiguredError,
    OperationError,
    Operations,
    Place,
    moment,
)
from bridge.journal import DeathReason

Limit = Annotated[int, msgspec.Meta(ge=1)]
Ids = Annotated[list[Place], msgspec.Meta(min_length=1, max_length=LETTERS)]
Parameters = TypeVar("Parameters", bound=msgspec.Struct)


class _WrongError(Exception):
    """The request makes no sense; the text says which part."""


class _None(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: Place = 0
    limit: Limit = LETTERS


class _Letters(_Page, frozen=True, forbid_unknown_fields=True):
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


class _Route(NamedTuple):
    method: str
    answer: Callable[[Operations, Request], object]


class Routes:
    """Answers for the paths of the operations.

    Args:
        operations: What they do.
        token: Tells the token that is asked for now; None if none is.
    """

    def __init__(self, operations: Operations, token: Callable[[], str | None]) -> None:
        self._operations = operations
        self.token = token

    @property
    def paths(self) -> list[str]:
        """All of them."""
        return list(_ROUTES)

    def method(self, path: str) -> str | None:
        """The method of a path; None if it is none of these."""
        route = _ROUTES.get(path)
        return route.method if route else None

    def answer(self, request: Request) -> Answer:
        """Do what is asked.

        Raises:
            Closed: The process is stopping.
        """
        try:
            found = _ROUTES[request.path].answer(self._operations, request)
        except _WrongError as error:
            return words(HTTPStatus.BAD_REQUEST, str(error))
        except NotConfiguredError as error:
            return words(HTTPStatus.CONFLICT, str(error))
        except OperationError as error:
            return words(HTTPStatus.SERVICE_UNAVAILABLE, str(error))
        return Answer(HTTPStatus.OK, JSON, msgspec.json.encode(found) + b"\n")


def _letters(operations: Operations, request: Request) -> object:
    asked = _parameters(request, _Letters)
    query = LetterQuery(asked.sink, asked.reason, _since(asked.since), _uuid(asked.uuid), asked.type)
    return operations.dead_letters(query, asked.after, min(asked.limit, LETTERS))


def _replay(operations: Operations, request: Request) -> object:
    asked = _body(request, _Replay)
    return operations.replay(asked.sink, asked.ids)


def _drop(operations: Operations, request: Request) -> object:
    return {"dropped": operations.drop(_body(request, _Drop).ids)}


def _quarantine(operations: Operations, request: Request) -> object:
    asked = _parameters(request, _Page)
    return operations.quarantine(asked.after, min(asked.limit, FRAMES))


def _stored(operations: Operations, request: Request) -> object:
    _parameters(request, _None)
    return operations.stored()


def _events(operations: Operations, request: Request) -> object:
    asked = _parameters(request, _Page)
    return operations.events(asked.after, min(asked.limit, EVENTS))


def _verify(operations: Operations, request: Request) -> object:
    asked = _parameters(request, _Page)
    return operations.verify(asked.after, min(asked.limit, ROWS))


def _check(operations: Operations, request: Request) -> object:
    _parameters(request, _None)
    return {"damage": operations.damage()}


def _prune(operations: Operations, request: Request) -> object:
    _body(request, _None)
    return {"freed": operations.prune()}


_ROUTES: Final = {
    "/dead-letters": _Route("GET", _letters),
    "/dead-letters/replay": _Route("POST", _replay),
    "/dead-letters/drop": _Route("POST", _drop),
    "/quarantine": _Route("GET", _quarantine),
    "/journal": _Route("GET", _stored),
    "/journal/events": _Route("GET", _events),
    "/journal/verify": _Route("GET", _verify),
    "/journal/check": _Route("GET", _check),
    "/journal/prune": _Route("POST", _prune),
}


def _parameters(request: Request, kind: type[Parameters]) -> Parameters:
    try:
        pairs = parse_qsl(request.query, keep_blank_values=True, strict_parsing=bool(request.query), errors="strict")
    except ValueError:
        raise _WrongError("what stands behind the ? is no list of name=value") from None
    if len(given := dict(pairs)) < len(pairs):
        raise _WrongError("a parameter is given twice")
    try:
        return msgspec.convert(given, kind, strict=False)
    except msgspec.ValidationError as error:
        raise _WrongError(_said(error)) from None


def _body(request: Request, kind: type[Parameters]) -> Parameters:
    try:
        return msgspec.json.decode(request.body, type=kind)
    except msgspec.ValidationError as error:
        raise _WrongError(_said(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _WrongError("the body is not JSON") from None


def _said(error: msgspec.ValidationError) -> str:
    """What is wrong, with the name of the parameter before it."""
    text, _, place = str(error).partition(" - at `$.")
    return f"{place.rstrip('`')}: {text}" if place else text


def _since(text: str | None) -> datetime | None:
    try:
        return None if text is None else moment(text, datetime.now(UTC))
    except ValueError as error:
        raise _WrongError(f"since: {error}") from None


def _uuid(text: str | None) -> str | None:
    try:
        return None if text is None else str(uuid.UUID(text))
    except ValueError:
        raise _WrongError("uuid: is none") from None
