import base64
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bridge.sink import SinkSettings
from config.settings import DockerCloudSettings, EngineSettings, HttpSettings, Settings


def stream(**values: Any) -> DockerCloudSettings:
    return DockerCloudSettings.model_validate(values)


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
    assert (acme.namespace, acme.url, acme.authorization()) == ("acme", "wss://ws.cloud.docker.com", None)
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


def test_one_key_of_a_backoff_leaves_the_other_at_its_default() -> None:
    assert stream(backoff={"first": "2s"}).backoff.max == 60
    assert stream(auth_backoff={"max": "5m"}).auth_backoff.first == 30


def test_settings_of_a_sink_stay_of_their_own_kind() -> None:
    class Own(SinkSettings):
        extra: int = 1

    settings = Settings.model_validate({"sinks": {"one": Own(type="own", extra=2)}})

    assert settings.sinks["one"] == Own(type="own", extra=2)
    assert settings.model_dump()["sinks"]["one"]["extra"] == 2


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        ({}, None),
        ({"username": "bob", "api_key": "k"}, basic("bob:k")),
        ({"username": "bob", "password": "p:p"}, basic("bob:p:p")),
        ({"username": "bob", "password": "p", "api_key": "k"}, basic("bob:k")),
        ({"username": "bob", "password": "ö"}, basic("bob:ö")),
        ({"auth": "TutumAccessKey 2c40"}, "TutumAccessKey 2c40"),
        ({"auth": "TutumAccessKey 2c40", "username": "bob", "api_key": "k", "password": "p"}, "TutumAccessKey 2c40"),
        ({"auth": "TutumAccessKey 2c40", "username": "bob"}, "TutumAccessKey 2c40"),
    ],
)
def test_credentials_are_used_in_the_order_of_the_original_clients(credentials: dict[str, str], expected: str | None) -> None:
    assert stream(**credentials).authorization() == expected


def test_the_header_is_that_of_the_documentation() -> None:
    assert stream(username="username", api_key="apikey").authorization() == "Basic dXNlcm5hbWU6YXBpa2V5"


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("0.0.0.0:9477", ("0.0.0.0", 9477)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9477", ("::1", 9477)),
        ("off", None),
        ("", None),
        (False, None),
    ],
)
def test_an_address_to_listen_on_is_host_and_port_or_off(listen: Any, address: tuple[str, int] | None) -> None:
    assert HttpSettings(listen=listen).address == address


@pytest.mark.parametrize("listen", ["9477", ":9477", "host", "::1:9477", "host:99999", "host:x", "a b:1", "host:1\n", True, 5])
def test_anything_else_is_no_address(listen: Any) -> None:
    with pytest.raises(ValidationError):
        HttpSettings(listen=listen)


@pytest.mark.parametrize("url", ["ws://127.0.0.1:8750", "wss://[::1]:443", "wss://proxy.example.com/docker-cloud"])
def test_urls_of_a_stream(url: str) -> None:
    assert stream(url=url).url == url


def test_a_slash_at_the_end_of_a_url_is_left_out_because_a_path_follows() -> None:
    assert stream(url="wss://ws.cloud.docker.com/").url == "wss://ws.cloud.docker.com"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"url": "https://ws.cloud.docker.com"}, "must begin with wss://"),
        ({"url": "ws.cloud.docker.com"}, "must begin with wss://"),
        ({"url": "wss://"}, "must begin with wss://"),
        ({"url": "wss:///path"}, "must begin with wss://"),
        ({"url": "wss://:443"}, "is no URL"),
        ({"url": "wss://host:0"}, "is no URL"),
        ({"url": "wss://host:port"}, "is no URL"),
        ({"url": "wss://[::1"}, "is no URL"),
        ({"url": "wss://ho st"}, "is no URL"),
        ({"url": "wss://höst"}, "is no URL"),
        ({"url": "wss://a..b"}, "is no URL"),
        ({"url": "wss://host\n"}, "is no URL"),
        ({"url": "wss://user:secret@host"}, "must not hold credentials"),
        ({"url": "wss://host?type=node"}, "must not have a query"),
        ({"url": "unix:///var/run/docker.sock"}, "type: engine"),
        ({"namespace": "a/b"}, "must be a namespace"),
        ({"namespace": ".."}, "must be a namespace"),
        ({"path": "events"}, "must be a path"),
        ({"path": "/events#x"}, "must be a path"),
        ({"path": "/ä"}, "must be a path"),
        ({"types": ["Container"]}, "lower case"),
        ({"types": ["container,service"]}, "lower case"),
        ({"objects": ["service/x"]}, "must be a resource URI"),
        ({"parents": ["/a,/b"]}, "must be a resource URI"),
        ({"proxy": "proxy.example.com:3128"}, "must look like http://"),
        ({"proxy": "socks5://proxy.example.com:1080"}, "must look like http://"),
        ({"proxy": "http://user:secret@proxy.example.com/path"}, "must look like http://"),
        ({"proxy": "http://"}, "must look like http://"),
        ({"auth": "Bäsic x"}, "ASCII"),
        ({"auth": "Basic x\r\nX-Other: y"}, "one line"),
        ({"auth": ""}, "at least 1"),
        ({"api_key": "k"}, "is missing: api_key and password"),
        ({"password": "p"}, "is missing: api_key and password"),
        ({"username": "bob"}, "needs api_key or password"),
        ({"username": "bo:b", "api_key": "k"}, "without a colon"),
        ({"username": "", "api_key": "k"}, "must be a Docker ID"),
        ({"backoff": {"first": "2m"}}, "first must not be longer than max"),
        ({"ping_interval": 0}, "greater than 0"),
        ({"idle_timeout": 0}, "greater than 0"),
        ({"type": "engine"}, "docker-cloud"),
    ],
)
def test_what_a_stream_can_not_be(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        stream(**wrong)

    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["unix:///run/docker.sock", "tcp://127.0.0.1:2375", "tcp://[::1]:2376", "tcp://host"])
def test_urls_of_an_engine(url: str) -> None:
    assert EngineSettings(type="engine", url=url).url == url


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"url": "unix://"}, "must look like unix:///"),
        ({"url": "unix://run/docker.sock"}, "must look like unix:///"),
        ({"url": "/var/run/docker.sock"}, "must look like unix:///"),
        ({"url": "tcp://"}, "must look like unix:///"),
        ({"url": "unix:/run/docker.sock"}, "must look like unix:///"),
        ({"url": "tcp://user:secret@127.0.0.1:2375"}, "must look like unix:///"),
        ({"url": "http://127.0.0.1:2375"}, "must look like unix:///"),
        ({"url": "tcp://127.0.0.1:x"}, "is no URL"),
        ({"url": "tcp://127.0.0.1:2376", "key_file": "a.pem"}, "needs cert_file"),
        ({"ca_file": "a.pem"}, "tcp://"),
        ({"username": "bob"}, "Extra inputs"),
    ],
)
def test_what_an_engine_can_not_be(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EngineSettings.model_validate({"type": "engine", **wrong})

    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


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
