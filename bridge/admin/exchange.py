"""A request and its answer, as those see them who decide on one and know nothing of sockets."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

JSON: Final = "application/json; charset=utf-8"
TEXT: Final = "text/plain; charset=utf-8"


class Request(NamedTuple):
    """What was asked.

    Attributes:
        method: GET or POST.
        path: Without the query.
        query: What stands behind the question mark, as it was sent.
        body: Empty unless it is a POST.
    """

    method: str
    path: str
    query: str = ""
    body: bytes = b""


class Answer(NamedTuple):
    """What is sent back."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = {}


def words(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer of one line of text."""
    return Answer(status, TEXT, text.encode() + b"\n", headers or {})
