"""Requests, responses, and the rows of the route table."""

from collections.abc import Callable, Mapping
from email.message import Message
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

JSON: Final = "application/json; charset=utf-8"
TEXT: Final = "text/plain; charset=utf-8"


class Request(NamedTuple):
    """A request.

    Attributes:
        method: GET or POST.
        path: Without the query.
        query: The text after the question mark, as it was sent.
        body: Empty unless it is a POST.
        accept: The Accept header.
        client: The client's address.
        is_trusted: It has a token that opens the operations.
    """

    method: str
    path: str
    query: str = ""
    body: bytes = b""
    accept: str = ""
    client: str = ""
    is_trusted: bool = False


class Response(NamedTuple):
    """A response."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = {}


def text_response(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response of one line of text."""
    return Response(status, TEXT, text.encode() + b"\n", headers or {})


class Access(Protocol):
    """Knows the tokens; see `bridge.admin.routes`."""

    def is_command(self, headers: Message) -> bool:
        """Return whether the request has the secret of this bridge's own commands, which need no client certificate."""

    def is_trusted(self, headers: Message) -> bool:
        """Return whether the request has any token that is valid now."""

    def refusal(self, headers: Message, *, needed: bool) -> Response | None:
        """Return why a request is refused: a token is `needed` and missing, or there is a wrong one."""

    def note_wrong_token(self, client: str) -> None:
        """Note that a client, by its address, sent a wrong token."""


class Route(NamedTuple):
    """The row of a path in the route table.

    Attributes:
        method: The only method, GET or POST; HEAD goes with GET.
        respond: Answers a request.
        is_operation: It needs a token.
        is_probe: Open to everybody: it needs no client certificate, and tells a web page nothing.
    """

    method: str
    respond: Callable[[Request], Response]
    is_operation: bool = False
    is_probe: bool = False
