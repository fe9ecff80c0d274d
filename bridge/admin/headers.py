"""Decisions on the headers of a request."""

import re
from email.message import Message
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

from bridge.admin.route import Response, text_response
from bridge.field_types import is_loopback

BODY: Final = 64 * 1024
"""Bytes of a request's body at most: the numbers of as many dead letters as one request may name, and more."""

_SINGLE: Final = ("Authorization", "Content-Length", "Content-Type", "Host", "Origin", "Sec-Fetch-Site", "Transfer-Encoding")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(:\d{1,5})?")

_DIGITS: Final = 10
"""Most digits of a length; Python refuses to read numbers of thousands of digits."""


def is_well_formed(headers: Message) -> bool:
    """Tell whether headers mean one thing only: none that decides is there twice, and no value has control characters."""
    return (
        all(len(headers.get_all(name, [])) < 2 for name in _SINGLE)
        and all(value.isprintable() or not _CONTROL.search(value) for value in map(str, headers.values()))
        and _HOST.fullmatch(str(headers.get("Host", ""))) is not None
    )


def is_of_a_web_page(headers: Message, our_address: str) -> bool:
    """Tell whether a browser sends this for a page, of which we have none.

    It names the page's origin (`Origin`) or its relation to us (`Sec-Fetch-Site`). Or the page's name was made to point to this
    machine ("DNS rebinding"): then it stands in `Host`, whereas who asks for loopback writes localhost or an address.
    """
    host = str(headers.get("Host", ""))
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return (
        "Origin" in headers
        or headers.get("Sec-Fetch-Site", "none") != "none"
        or (is_loopback(our_address) and not (is_loopback(name) or _is_address(name)))
    )


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def unreadable(headers: Message) -> Response | None:
    """Return why the body of a request can't be read; None if it can, or if there is none."""
    if headers.get("Content-Length", "0") == "0" and "Transfer-Encoding" not in headers:
        return None
    if "Content-Type" not in headers or headers.get_content_type() != "application/json":
        # A form of a web page can't send this type.
        return text_response(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json")
    length = headers.get("Content-Length", "")
    if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in headers:
        return text_response(HTTPStatus.LENGTH_REQUIRED, "the body needs a Content-Length")
    if len(length) > _DIGITS or int(length) > BODY:
        return text_response(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body must not be larger than {BODY} bytes")
    return None
