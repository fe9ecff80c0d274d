"""The operations over HTTP: one table of paths, and a function for each row.

Who may: a client that sends a token, from any address. The tokens are `http.token`, and the secret of this
start of the bridge, which commands of the same user read from the journal's lock.
"""

import hmac
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import Message
from functools import partial
from http import HTTPStatus
from typing import Annotated, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec
import structlog

from bridge.admin.health import Health
from bridge.admin.route import JSON, Request, Response, Route, text_response
from bridge.field_types import parse_time
from bridge.journal import (
    DEAD_LETTERS_PER_PAGE,
    EVENTS_PER_PAGE,
    MESSAGES_PER_PAGE,
    RETRIES_PER_PAGE,
    ROWS_PER_VERIFY,
    DeadLetterQuery,
    DeathReason,
    Journal,
    JournalError,
    SeqOrId,
    UnknownSinkError,
)
from bridge.pipeline.supervisor import Requests
from bridge.text import plain

log = structlog.get_logger(__name__)

_RELOAD_SECONDS: Final = 10.0
"""How long a client waits for the outcome of a reload."""

Limit = Annotated[int, msgspec.Meta(ge=1)]
Ids = Annotated[list[SeqOrId], msgspec.Meta(min_length=1, max_length=DEAD_LETTERS_PER_PAGE)]
Parameters = TypeVar("Parameters", bound=msgspec.Struct)


class _BadRequestError(Exception):
    """The request makes no sense; the text says which part."""


class _None(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after: SeqOrId = 0
    limit: Limit = DEAD_LETTERS_PER_PAGE


class _Filter(_Page, frozen=True, forbid_unknown_fields=True):
    sink: str | None = None
    reason: DeathReason | None = None
    since: str | None = None
    uuid: str | None = None
    type: str | None = None


class _OfSink(_Page, frozen=True, forbid_unknown_fields=True, kw_only=True):
    sink: str


class _Replay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sink: str
    ids: Ids


class _Drop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    ids: Ids


class _Rewind(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sink: str
    to: SeqOrId | str
    dry_run: bool = False


class _Skip(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sink: str


def operation_routes(journal: Journal) -> dict[str, Route]:
    """Return the routes by path."""
    return {
        path: Route(method, partial(_respond, operation, journal), is_operation=True)
        for path, (method, operation) in _OPERATIONS.items()
    }


def reload_route(health: Health, requests: Requests) -> Route:
    """Return the route that reads the configuration again, as SIGHUP does, and tells how it went. Its path is Prometheus's."""

    def reload(request: Request) -> Response:
        before, until = health.reloaded, time.monotonic() + _RELOAD_SECONDS
        log.warning("an operator asked for the configuration to be read again", operation=request.path, client=request.client)
        requests.put("reload")
        while health.reloaded is before and time.monotonic() < until:
            time.sleep(0.05)
        if health.reloaded is before or health.reloaded is None:
            return text_response(HTTPStatus.ACCEPTED, "the configuration will be read again; see `reload` in /status")
        problems = health.reloaded.problems
        return text_response(HTTPStatus.INTERNAL_SERVER_ERROR if problems else HTTPStatus.OK, "\n".join(problems) or "ok")

    return Route("POST", reload, is_operation=True)


class Access:
    """Decides who may use the operations.

    Args:
        secret: The token of this bridge's own commands.
        token: Returns the other token that is valid now; None if there is none.
        note_wrong_token: Called with the address of a client that sent a wrong token.
    """

    def __init__(self, secret: str, token: Callable[[], str | None], note_wrong_token: Callable[[str], None]) -> None:
        self._secret = secret
        self._token = token
        self.note_wrong_token = note_wrong_token

    def is_command(self, headers: Message) -> bool:
        """Return whether the request has the secret of this bridge's own commands."""
        given = _bearer(headers)
        return bool(given) and hmac.compare_digest(given, self._secret.encode())

    def is_trusted(self, headers: Message) -> bool:
        """Return whether the request has a token that is valid now."""
        if self.is_command(headers):
            return True
        # Nobody makes us read the configuration without a token.
        valid = self._token() if _bearer(headers) else None
        return valid is not None and hmac.compare_digest(_bearer(headers), valid.encode())

    def refusal(self, headers: Message, *, needed: bool) -> Response | None:
        """Return why a request is refused: a token is `needed` and missing, or there is a wrong one."""
        given = "Authorization" in headers
        # What is open to all stays so for a client with credentials of another kind, a scraper with a login perhaps.
        if self.is_trusted(headers) or not (needed or str(headers.get("Authorization", "")).lower().startswith("bearer ")):
            return None
        if given:
            text = "the token is not the one of http.token"
        else:
            text = "needs the token of http.token, as `Authorization: Bearer ...`; commands of the bridge's user need none"
        return text_response(HTTPStatus.UNAUTHORIZED, text, {"WWW-Authenticate": 'Bearer realm="event-bridge"'})


def _bearer(headers: Message) -> bytes:
    """Return the token that was sent. Headers are read as Latin-1, whatever they are."""
    scheme, _, given = str(headers.get("Authorization", "")).partition(" ")
    return given.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""


def _dead_letters(journal: Journal, request: Request) -> object:
    asked = _parameters(request, _Filter)
    query = DeadLetterQuery(
        asked.sink, asked.reason, None if asked.since is None else _time("since", asked.since), _uuid(asked.uuid), asked.type
    )
    return journal.dead_letters(query, asked.after, min(asked.limit, DEAD_LETTERS_PER_PAGE))


def _retries(journal: Journal, request: Request) -> object:
    asked = _parameters(request, _OfSink)
    return journal.retries(asked.sink, asked.after, min(asked.limit, RETRIES_PER_PAGE))


def _replay(journal: Journal, request: Request) -> object:
    asked = _body(request, _Replay)
    return journal.replay(asked.sink, asked.ids)


def _drop(journal: Journal, request: Request) -> object:
    return {"dropped": journal.discard(_body(request, _Drop).ids)}


def _rewind(journal: Journal, request: Request) -> object:
    asked = _body(request, _Rewind)
    to = asked.to if isinstance(asked.to, int) else _time("to", asked.to)
    return journal.rewind(asked.sink, to, dry_run=asked.dry_run)


def _skip(journal: Journal, request: Request) -> object:
    return {"skipped": journal.skip(_body(request, _Skip).sink)}


def _quarantine(journal: Journal, request: Request) -> object:
    asked = _parameters(request, _Page)
    return journal.quarantine(asked.after, min(asked.limit, MESSAGES_PER_PAGE))


def _extent(journal: Journal, request: Request) -> object:
    _parameters(request, _None)
    return journal.extent()


def _events(journal: Journal, request: Request) -> object:
    asked = _parameters(request, _Page)
    return journal.events(asked.after, min(asked.limit, EVENTS_PER_PAGE))


def _verify(journal: Journal, request: Request) -> object:
    asked = _parameters(request, _Page)
    return journal.verify(asked.after, min(asked.limit, ROWS_PER_VERIFY))


def _check(journal: Journal, request: Request) -> object:
    _parameters(request, _None)
    return {"damage": journal.check()}


def _prune(journal: Journal, request: Request) -> object:
    _body(request, _None)
    return {"freed": journal.prune_all()}


_OPERATIONS: Final[dict[str, tuple[str, Callable[[Journal, Request], object]]]] = {
    "/dead-letters": ("GET", _dead_letters),
    "/dead-letters/replay": ("POST", _replay),
    "/dead-letters/drop": ("POST", _drop),
    "/retries": ("GET", _retries),
    "/sinks/rewind": ("POST", _rewind),
    "/sinks/skip": ("POST", _skip),
    "/quarantine": ("GET", _quarantine),
    "/journal": ("GET", _extent),
    "/journal/events": ("GET", _events),
    "/journal/verify": ("GET", _verify),
    "/journal/check": ("GET", _check),
    "/journal/prune": ("POST", _prune),
}


def _respond(operation: Callable[[Journal, Request], object], journal: Journal, request: Request) -> Response:
    try:
        body = msgspec.json.encode(operation(journal, request))
        if request.method == "POST":
            # Nothing else remembers that somebody did it.
            done = {"operation": request.path, "asked": plain(request.body.decode(errors="replace")), "result": body.decode()}
            log.warning("an operator changed the journal", client=request.client, **done)
        return Response(HTTPStatus.OK, JSON, body + b"\n")
    except _BadRequestError as error:
        return text_response(HTTPStatus.BAD_REQUEST, str(error))
    except UnknownSinkError as error:
        return text_response(HTTPStatus.CONFLICT, str(error))
    except JournalError as error:
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


def _time(name: str, text: str) -> datetime:
    try:
        return parse_time(text, datetime.now(UTC))
    except ValueError as error:
        raise _BadRequestError(f"{name}: {error}") from None


def _uuid(text: str | None) -> str | None:
    try:
        return None if text is None else str(uuid.UUID(text))
    except ValueError:
        raise _BadRequestError("uuid: is none") from None
