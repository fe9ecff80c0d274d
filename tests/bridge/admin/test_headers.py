"""What the headers of a request mean, and which are refused."""

from email.message import Message
from http import HTTPStatus

import pytest

from bridge.admin.headers import BODY, is_of_a_web_page, is_well_formed, unreadable


def headers(*lines: str) -> Message:
    message = Message()
    for line in lines:
        name, _, value = line.partition(":")
        message[name] = value.strip()
    return message


@pytest.mark.parametrize(
    ("lines", "fine"),
    [
        ([], True),
        (["Host: 127.0.0.1:9477", "Accept: a", "Accept: b"], True),
        (["Host: [::1]:9477"], True),
        (["X-Name: ünïcode"], True),
        (["Host: a", "Host: a"], False),
        (["Content-Length: 1", "content-length: 1"], False),
        (["Authorization: Bearer a", "Authorization: Bearer b"], False),
        (["X-Name: a\x0bb"], False),
        (["X-Name: a\x85b"], False),
        (["Host: a/b"], False),
        (["Host: a@b"], False),
        (["Host: a:port"], False),
    ],
)
def test_headers_mean_one_thing_or_are_refused(lines: list[str], fine: bool) -> None:
    assert is_well_formed(headers(*lines)) is fine


@pytest.mark.parametrize(
    ("lines", "address", "page"),
    [
        (["Host: localhost"], "127.0.0.1", False),
        (["Host: 10.0.0.5:9477"], "127.0.0.1", False),
        (["Host: pages.example"], "127.0.0.1", True),
        (["Host: bridge.example"], "0.0.0.0", False),
        (["Host: [::1]:9477"], "::1", False),
        (["Host: localhost", "Origin: null"], "127.0.0.1", True),
        (["Host: localhost", "Sec-Fetch-Site: none"], "127.0.0.1", False),
        (["Host: localhost", "Sec-Fetch-Site: same-site"], "127.0.0.1", True),
    ],
)
def test_a_browser_is_known_by_what_it_sends_for_a_page(lines: list[str], address: str, page: bool) -> None:
    assert is_of_a_web_page(headers(*lines), address) is page


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([], None),
        (["Content-Length: 0"], None),
        (["Content-Type: application/json", f"Content-Length: {BODY}"], None),
        (["Content-Length: 2"], HTTPStatus.UNSUPPORTED_MEDIA_TYPE),
        (["Content-Type: application/json", "Transfer-Encoding: chunked"], HTTPStatus.LENGTH_REQUIRED),
        (["Content-Type: application/json", "Content-Length: -1"], HTTPStatus.LENGTH_REQUIRED),
        (["Content-Type: application/json", f"Content-Length: {BODY + 1}"], HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
        (["Content-Type: application/json", "Content-Length: " + "9" * 5000], HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    ],
)
def test_a_body_that_can_t_be_read_is_refused_before_it_is(lines: list[str], status: HTTPStatus | None) -> None:
    answer = unreadable(headers(*lines))

    assert (answer.status if answer else None) == status
