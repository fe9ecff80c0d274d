import base64
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.simulator.handshake import Refusal, Subscription, answer_handshake, is_authorized
from bridge.simulator.settings import SimulatorSettings
from tests.support.simulation import BASIC, PATH, UPGRADE, client, everything, simulator, status_of

HEADERS = {name.lower(): value for name, value in UPGRADE.items()}


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Basic",
        "Basic %%%",
        "Basic " + base64.b64encode(b"\xff\xfe").decode(),
        "Basic " + base64.b64encode(b"bob:wrong").decode(),
        "Basic " + base64.b64encode(b"eve:secret").decode(),
        "Basic " + base64.b64encode(b"bob").decode(),
        "ApiKey bob:wrong",
        "ApiKey secret",
        "TutumAccessKey wrong",
        "TutumAccessKey",
        "Bearer secret",
        "secret",
    ],
)
def test_wrong_credentials_are_refused_before_the_upgrade(header: str | None) -> None:
    options = SimulatorSettings(username="bob", api_key="secret")
    headers = HEADERS | ({} if header is None else {"authorization": header})

    assert answer_handshake(options, PATH, headers, expired=False) == Refusal(401, "not authorized")


@pytest.mark.parametrize(
    "query", [{"user": ["bob"]}, {"token": ["secret"]}, {"user": ["eve"], "token": ["secret"]}, {"auth": ["x"]}]
)
def test_half_of_the_credentials_are_not_enough(query: Mapping[str, Sequence[str]]) -> None:
    assert not is_authorized(SimulatorSettings(username="bob", api_key="secret"), None, query)


def test_without_an_account_name_the_key_alone_decides() -> None:
    assert is_authorized(SimulatorSettings(api_key="secret"), BASIC, {})
    assert not is_authorized(SimulatorSettings(api_key="other"), BASIC, {})


def test_without_a_key_nothing_is_asked_for() -> None:
    assert is_authorized(SimulatorSettings(), None, {})


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/audit/v1",
        "/api/audit/v1/event/",
        "/api/audit/v2/events",
        "/api/audit/v1/a/b/events",
        PATH + "//",
        "/api/app/v1/events",
    ],
)
def test_any_other_path_is_not_found(path: str) -> None:
    assert answer_handshake(SimulatorSettings(), path, HEADERS, expired=False) == Refusal(404, "there is no such resource")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {key: value for key, value in HEADERS.items() if key != "upgrade"},
        HEADERS | {"sec-websocket-version": "8"},
    ],
)
def test_a_request_that_is_no_handshake_is_told_so(headers: Mapping[str, str]) -> None:
    answer = answer_handshake(SimulatorSettings(), PATH, headers, expired=False)

    assert isinstance(answer, Refusal)
    assert answer.status == 426
    assert answer.error
    assert answer.headers == {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


@given(
    st.dictionaries(
        st.sampled_from(["type", "object", "parent", "parents"]), st.lists(st.sampled_from(["a", "b", "a,b", ""])), max_size=4
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from("abc"),
            "resource_uri": st.sampled_from("abc"),
            "parents": st.lists(st.sampled_from("abc")),
        },
    ),
)
def test_a_filter_accepts_exactly_what_its_words_say(query: dict[str, list[str]], event: dict[str, Any]) -> None:
    wanted = {name: {value for text in texts for value in text.split(",")} - {""} for name, texts in query.items()}
    parents = wanted.get("parent", set()) | wanted.get("parents", set())
    expected = (
        (not wanted.get("type") or event.get("type") in wanted["type"])
        and (not wanted.get("object") or event.get("resource_uri") in wanted["object"])
        and (not parents or bool(parents & set(event.get("parents", ()))))
    )

    assert Subscription.from_query("", query).accepts(event) is expected


def test_expired_credentials_are_refused_even_if_they_are_right() -> None:
    options, headers = SimulatorSettings(username="bob", api_key="secret"), HEADERS | {"authorization": BASIC}

    assert isinstance(answer_handshake(options, PATH, headers, expired=False), Subscription)
    assert answer_handshake(options, PATH, headers, expired=True) == Refusal(401, "not authorized")


@pytest.mark.parametrize("path", [PATH, PATH + "/", "/api/audit/v1/acme/events", "/api/audit/v1/acme/events/"])
def test_the_path_is_served_with_and_without_namespace_and_slash(path: str) -> None:
    with simulator() as running, client(running, path) as connection:
        namespace = "acme/" if "acme" in path else ""

        assert json.loads(connection.recv())["resource_uri"].split("/nodecluster/")[0] == f"/api/infra/v1/{namespace}"[:-1]


def test_the_sticky_cookie_is_set_unless_the_client_has_one() -> None:
    with simulator() as running:
        with client(running) as first:
            cookie = (first.getheaders() or {})["set-cookie"]
        with client(running, cookie=cookie.split(";")[0]) as second:
            assert "set-cookie" not in (second.getheaders() or {})

    assert cookie.startswith("liveid=")


@pytest.mark.parametrize(
    ("header", "query"),
    [
        (BASIC, {}),
        (BASIC.replace("Basic", "basic"), {}),
        ("ApiKey bob:secret", {}),
        ("TutumAccessKey secret", {}),
        (None, {"auth": BASIC}),
        (None, {"auth": "ApiKey bob:secret"}),
        (None, {"auth": "TutumAccessKey secret"}),
        (None, {"user": "bob", "token": "secret"}),
    ],
)
def test_every_form_of_credentials_is_accepted(header: str | None, query: dict[str, str]) -> None:
    options = {"header": [f"Authorization: {header}"]} if header else {}
    with (
        simulator(username="bob", api_key="secret") as running,
        client(running, f"{PATH}?{urlencode(query, quote_via=quote)}", **options) as connection,
    ):
        assert json.loads(connection.recv())["uuid"]


def test_a_namespace_that_is_not_served_is_not_found() -> None:
    with simulator(namespaces=["acme"]) as running:
        assert status_of(running, "/api/audit/v1/acme/events")[0] == 101
        assert status_of(running, "/api/audit/v1/other/events")[0] == 404
        assert status_of(running, PATH)[0] == 404


def test_the_accounts_own_namespace_has_two_paths_and_one_story() -> None:
    with (
        simulator(username="bob", namespaces=["", "acme"], count=400, wait_for_clients=2) as running,
        client(running) as own,
        client(running, "/api/audit/v1/bob/events") as named,
    ):
        first, second = everything(running, own, named)

    assert first == second
    assert len(first) == 200, "the other half was acme's, to whom nobody listened"


def test_each_namespace_has_its_own_story() -> None:
    with (
        simulator(count=2000, wait_for_clients=2) as running,
        client(running, "/api/audit/v1/acme/events") as acme,
        client(running, "/api/audit/v1/other/events") as other,
    ):
        first, second = everything(running, acme, other)

    assert len(first) == len(second) == 1000
    assert all("/acme/" in event["resource_uri"] for event in first)
    assert all("/other/" in event["resource_uri"] for event in second)
    assert {event["uuid"] for event in first}.isdisjoint(event["uuid"] for event in second)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET {path} HTTP/1.1", 400),  # Without a key.
        ("POST {path} HTTP/1.1", 405),
        ("GET {path} HTTP/1.0", 505),
    ],
)
def test_a_request_that_breaks_the_rules_of_a_handshake_is_refused(head: str, status: int) -> None:
    lines = [f"{name}: {value}" for name, value in UPGRADE.items() if name != "Sec-WebSocket-Key"]
    with simulator() as running, socket.create_connection(("127.0.0.1", running.port)) as stranger:
        stranger.sendall("\r\n".join([head.format(path=PATH), "Host: here", *lines, "", ""]).encode())

        assert stranger.recv(1 << 16).startswith(f"HTTP/1.1 {status} ".encode())


def test_the_accept_header_is_that_of_the_rfc() -> None:
    with simulator() as running:
        assert status_of(running)[1]["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
