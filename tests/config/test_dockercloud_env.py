from typing import Any

import pytest

from config.dockercloud_env import from_original, incomplete

NOBODY: dict[str, Any] = {}


@pytest.mark.parametrize(
    ("env", "streams"),
    [
        ({}, {}),
        ({"DOCKERCLOUD_NAMESPACE": "acme"}, {}),
        ({"DOCKERCLOUD_USER": "", "DOCKERCLOUD_APIKEY": ""}, {}),
        (
            {"DOCKERCLOUD_USER": "bob", "DOCKERCLOUD_APIKEY": "k", "DOCKERCLOUD_NAMESPACE": "acme"},
            {"acme": {"namespace": "acme", "username": "bob", "api_key": "k"}},
        ),
        (
            {"DOCKERCLOUD_USER": "bob", "DOCKERCLOUD_PASS": "p"},
            {"default": {"namespace": "", "username": "bob", "password": "p"}},
        ),
        (
            {"DOCKERCLOUD_AUTH": "Basic x", "DOCKERCLOUD_NAMESPACE": "Acme.Corp"},
            {"default": {"namespace": "Acme.Corp", "auth": "Basic x"}},
        ),
        (
            {"DOCKERCLOUD_STREAM_HOST": "ws://127.0.0.1:8750/", "DOCKERCLOUD_PASS": ""},
            {"default": {"namespace": "", "url": "ws://127.0.0.1:8750/"}},
        ),
        (
            {"DOCKERCLOUD_USER": "bob", "DOCKERCLOUD_APIKEY_FILE": "/run/secrets/key"},
            {"default": {"namespace": "", "username": "bob", "api_key_file": "/run/secrets/key"}},
        ),
    ],
)
def test_they_make_one_stream_if_none_is_configured(env: dict[str, str], streams: dict[str, Any]) -> None:
    assert from_original(env, NOBODY).data.get("streams", {}) == streams


@pytest.mark.parametrize(
    "own",
    [
        {"url": "wss://stream.example.com"},
        {"auth": "x"},
        {"username": "eve", "password": "p"},
        {"api_key_file": "/x"},
        {"type": "engine"},
    ],
)
def test_they_go_to_no_stream_with_credentials_or_a_url_of_its_own(own: dict[str, Any]) -> None:
    env = {"DOCKERCLOUD_USER": "bob", "DOCKERCLOUD_APIKEY": "k", "DOCKERCLOUD_NAMESPACE": "ignored"}

    layer = from_original(env, {"own": own, "acme": {"types": ["node"]}})

    assert layer.data == {"streams": {"acme": {"username": "bob", "api_key": "k"}}}
    assert from_original(env, {"own": own}).data == {}


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"DOCKERCLOUD_USER": "bob"}, "needs DOCKERCLOUD_APIKEY or DOCKERCLOUD_PASS beside it"),
        ({"DOCKERCLOUD_APIKEY": "k"}, "is missing: DOCKERCLOUD_APIKEY and DOCKERCLOUD_PASS need it beside them"),
        ({"DOCKERCLOUD_PASS_FILE": "/x"}, "is missing: DOCKERCLOUD_APIKEY and DOCKERCLOUD_PASS need it beside them"),
        ({"DOCKERCLOUD_AUTH": "Basic x", "DOCKERCLOUD_APIKEY": "k"}, None),
        ({"DOCKERCLOUD_AUTH_FILE": "/x", "DOCKERCLOUD_USER": "bob"}, None),
        ({"DOCKERCLOUD_USER": "bob", "DOCKERCLOUD_PASS": "p"}, None),
        ({"DOCKERCLOUD_STREAM_HOST": "ws://127.0.0.1"}, None),
    ],
)
def test_half_of_the_credentials_is_told_in_words_of_these_variables(env: dict[str, str], says: str | None) -> None:
    layer = from_original(env, NOBODY)
    found = list(incomplete(layer))

    assert [text for _, text in found] == ([says] if says else [])
    assert all(layer.place(path) == "DOCKERCLOUD_USER" for path, _ in found)
