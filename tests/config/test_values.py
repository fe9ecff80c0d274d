"""The kinds of text that a configuration has."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from config.values import EngineUrl, Listen, Name, StreamUrl, UrlPath


@pytest.mark.parametrize(
    ("kind", "good"),
    [
        (Name, "acme-2_b"),
        (Listen, "127.0.0.1:9477"),
        (Listen, "[::1]:0"),
        (StreamUrl, "wss://ws.cloud.docker.com"),
        (StreamUrl, "ws://127.0.0.1:8750"),
        (EngineUrl, "unix:///var/run/docker.sock"),
        (EngineUrl, "tcp://10.0.0.5:2376"),
        (UrlPath, "/api/audit/v1/events/"),
    ],
)
def test_what_is_meant_is_taken_as_it_is(kind: Any, good: str) -> None:
    assert TypeAdapter(kind).validate_python(good) == good


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (Name, "Acme"),
        (Name, "a__b"),
        (Name, "2acme"),
        (Listen, "9477"),
        (Listen, "127.0.0.1:70000"),
        (StreamUrl, "https://ws.cloud.docker.com"),
        (StreamUrl, "wss://bob:secret@ws.cloud.docker.com"),
        (EngineUrl, "/var/run/docker.sock"),
        (EngineUrl, "http://10.0.0.5"),
        (UrlPath, "events"),
    ],
)
def test_what_can_not_be_meant_is_refused_without_repeating_a_secret(kind: Any, bad: str) -> None:
    with pytest.raises(ValidationError) as refused:
        TypeAdapter(kind).validate_python(bad)

    assert "secret" not in refused.value.errors(include_input=False)[0]["msg"]
