from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bridge.sink import SinkSettings
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.source import authorization_of
from bridge.sources.engine.settings import EngineSettings
from config.settings import Settings


def test_nothing_need_be_set() -> None:
    settings = Settings()

    assert settings.journal.path == Path("data/journal.db")
    assert (settings.journal.durability, settings.journal.when_full) == ("full", "block")
    assert (settings.journal.max_bytes, settings.journal.max_event_bytes) == (1024**3, 1_000_000)
    assert (settings.journal.dedup.window, settings.journal.dedup.max_events) == (86400, 1_000_000)
    assert settings.http.address == ("127.0.0.1", 9477)
    assert (settings.log.level, settings.log.format) == ("info", "auto")
    assert (settings.shutdown.grace, settings.health.stream_grace, settings.health.sink_grace) == (10, 60, 300)


def test_a_stream_needs_nothing_but_a_name() -> None:
    settings = Settings.model_validate({"streams": {"acme": {}}})

    acme = settings.streams["acme"]
    assert isinstance(acme, DockerCloudSettings)
    assert (acme.namespace, acme.url, authorization_of(acme)) == ("acme", "wss://ws.cloud.docker.com", None)
    assert (acme.ping_interval, acme.ping_timeout, acme.idle_timeout, acme.connect_timeout) == (10, 5, None, 10)
    assert (acme.backoff.first, acme.backoff.max, acme.auth_backoff.first, acme.auth_backoff.max) == (0.5, 60, 30, 600)
    assert (acme.stable_after, acme.max_frame_bytes) == (60, 16 * 1024**2)


def test_the_namespace_is_what_the_stream_says_even_if_that_is_none() -> None:
    settings = Settings.model_validate({"streams": {"a": {"namespace": ""}, "b": {"type": "engine", "namespace": "c"}}})

    assert [each.namespace for each in settings.streams.values()] == ["", "c"]


def test_an_engine_is_reached_by_its_socket() -> None:
    settings = Settings.model_validate({"streams": {"local": {"type": "engine"}}})

    local = settings.streams["local"]
    assert isinstance(local, EngineSettings)
    assert (local.url, local.namespace) == ("unix:///var/run/docker.sock", "local")


def test_settings_of_a_sink_stay_of_their_own_kind() -> None:
    class Own(SinkSettings):
        extra: int = 1

    settings = Settings.model_validate({"sinks": {"one": Own(type="own", extra=2)}})

    assert settings.sinks["one"] == Own(type="own", extra=2)
    assert settings.model_dump()["sinks"]["one"]["extra"] == 2


@pytest.mark.parametrize("name", ["a", "acme-prod", "acme_prod", "a1"])
def test_names(name: str) -> None:
    assert name in Settings.model_validate({"streams": {name: {"namespace": ""}}}).streams


@pytest.mark.parametrize("name", ["", "Acme", "1a", "-a", "_a", "a__b", "a.b", "a b", "a\n", "ä"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValidationError, match="is no name"):
        Settings.model_validate({"streams": {name: {"namespace": ""}}})


@pytest.mark.parametrize(
    "wrong",
    [
        {"journal": {"max_bytes": "15MiB"}},
        {"journal": {"max_event_bytes": 1}},
        {"journal": {"durability": "none"}},
        {"journal": {"dedup": {"max_events": 0}}},
        {"shutdown": {"grace": -1}},
        {"unknown": {}},
    ],
)
def test_limits_hold(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(wrong)


def test_settings_never_show_a_secret() -> None:
    settings = Settings.model_validate(
        {
            "streams": {
                "a": {"username": "bob", "api_key": "hunter2", "password": "hunter2", "auth": "hunter2"},
                "b": {"proxy": "http://bob:hunter2@proxy.example.com:3128"},
            }
        }
    )

    assert "hunter2" not in f"{settings!r}{settings}{settings.model_dump()}{settings.model_dump_json()}"


def test_equal_settings_are_equal_so_that_a_reload_can_tell_what_changed() -> None:
    values = {"streams": {"acme": {"username": "bob", "api_key": "k"}}}

    assert Settings.model_validate(values) == Settings.model_validate(values)
    values["streams"]["acme"]["api_key"] = "other"
    assert Settings.model_validate(values) != Settings.model_validate(
        {"streams": {"acme": {"username": "bob", "api_key": "k"}}}
    )
