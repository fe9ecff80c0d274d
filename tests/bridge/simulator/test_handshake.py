import base64
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.simulator.handshake import Refusal, StreamFilter, Subscription, answer_handshake, is_authorized
from bridge.simulator.settings import SimulatorSettings

PATH = "/api/audit/v1/events"
BASIC = "Basic " + base64.b64encode(b"bob:secret").decode()
UPGRADE = {
    "upgrade": "websocket",
    "connection": "Upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


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
    headers = UPGRADE | ({} if header is None else {"authorization": header})

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
    assert answer_handshake(SimulatorSettings(), path, UPGRADE, expired=False) == Refusal(404, "there is no such resource")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 426),
        ({key: value for key, value in UPGRADE.items() if key != "upgrade"}, 426),
        (UPGRADE | {"sec-websocket-version": "8"}, 426),
        ({key: value for key, value in UPGRADE.items() if key != "sec-websocket-key"}, 400),
    ],
)
def test_a_request_that_is_no_handshake_is_told_so(headers: Mapping[str, str], expected: int) -> None:
    answer = answer_handshake(SimulatorSettings(), PATH, headers, expired=False)

    assert isinstance(answer, Refusal)
    assert answer.status == expected
    assert answer.error
    assert answer.headers == ({} if expected == 400 else {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"})


def test_the_accept_header_is_that_of_the_rfc() -> None:
    answer = answer_handshake(SimulatorSettings(), PATH, UPGRADE, expired=False)

    assert isinstance(answer, Subscription)
    assert answer.accept == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


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

    assert StreamFilter.from_query(query).accepts(event) is expected


def test_expired_credentials_are_refused_even_if_they_are_right() -> None:
    options, headers = SimulatorSettings(username="bob", api_key="secret"), UPGRADE | {"authorization": BASIC}

    assert isinstance(answer_handshake(options, PATH, headers, expired=False), Subscription)
    assert answer_handshake(options, PATH, headers, expired=True) == Refusal(401, "not authorized")
