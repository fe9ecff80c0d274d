"""Who may use the operations."""

from email.message import Message
from http import HTTPStatus

import pytest

from bridge.admin.auth import is_loopback, refusal

LOCAL = {"Host": "127.0.0.1:9477"}
TOKEN = "geheim"


def ask(client: str, headers: dict[str, str], token: str | None = None) -> HTTPStatus | None:
    """The status of the refusal; None if there is none."""
    message = Message()
    for name, value in headers.items():
        message[name] = value
    answer = refusal(client, message, token)
    if answer is not None:
        assert answer.body.endswith(b"\n")
        assert TOKEN.encode() not in answer.body
    return answer and answer.status


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["127.0.0.1:9477", "localhost", "LocalHost:9477", "[::1]:9477", "10.0.0.5:80"])
def test_without_a_token_whoever_is_on_this_machine_may(client: str, host: str) -> None:
    assert ask(client, {"Host": host}) is None


@pytest.mark.parametrize("client", ["10.0.0.5", "172.17.0.1", "2001:db8::1", "::ffff:10.0.0.5", "fe80::1%eth0", "nowhere"])
def test_without_a_token_nobody_else_may(client: str) -> None:
    assert ask(client, LOCAL) == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For"])
def test_without_a_token_what_a_proxy_forwards_is_not_of_this_machine(header: str) -> None:
    assert ask("127.0.0.1", {**LOCAL, header: "127.0.0.1"}) == HTTPStatus.FORBIDDEN
    assert ask("127.0.0.1", {**LOCAL, header: "10.0.0.5", "Authorization": f"Bearer {TOKEN}"}, TOKEN) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:9477", "127.0.0.1.evil.example", "[evil]", "", "a@127.0.0.1"]
)
def test_without_a_token_a_name_that_somebody_chose_leads_nowhere(host: str) -> None:
    assert ask("127.0.0.1", {"Host": host}) == HTTPStatus.FORBIDDEN


def test_without_a_token_the_host_is_one_and_is_there() -> None:
    two = Message()
    two["Host"] = "127.0.0.1"
    two["Host"] = "evil.example"

    assert refusal("127.0.0.1", two, None) is not None
    assert ask("127.0.0.1", {}) == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:9477", "null"])
def test_no_web_page_may_not_even_with_the_token(origin: str) -> None:
    assert ask("127.0.0.1", {**LOCAL, "Origin": origin}) == HTTPStatus.FORBIDDEN
    assert ask("127.0.0.1", {**LOCAL, "Origin": origin, "Authorization": f"Bearer {TOKEN}"}, TOKEN) == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_with_a_token_whoever_shows_it_may_from_anywhere_by_any_name(scheme: str) -> None:
    assert ask("10.0.0.5", {"Host": "bridge.example:9477", "Authorization": f"{scheme} {TOKEN}"}, TOKEN) is None


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN}x",
        f"Bearer x{TOKEN}",
        "Bearer gehei",
        "Bearer ŋ",
    ],
)
@pytest.mark.parametrize("client", ["127.0.0.1", "10.0.0.5"])
def test_with_a_token_nobody_else_may_not_even_from_this_machine(given: str | None, client: str) -> None:
    headers = LOCAL if given is None else {**LOCAL, "Authorization": given}

    assert ask(client, headers, TOKEN) == HTTPStatus.UNAUTHORIZED


def test_who_shows_no_token_is_told_how() -> None:
    answer = refusal("127.0.0.1", Message(), TOKEN)

    assert answer is not None
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
    assert b"http.token" in answer.body


def test_an_address_that_is_none_is_nobody_s() -> None:
    assert not is_loopback("")
    assert not is_loopback("localhost")
