"""Settings of a Docker Cloud stream."""

import base64
from typing import Any

import pytest
from pydantic import ValidationError

from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.source import authorization_of


def stream(**values: Any) -> DockerCloudSettings:
    return DockerCloudSettings.model_validate(values)


def test_one_key_of_a_backoff_leaves_the_other_at_its_default() -> None:
    assert stream(backoff={"first": "2s"}).backoff.max == 60
    assert stream(auth_backoff={"max": "5m"}).auth_backoff.first == 30


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
    assert authorization_of(stream(**credentials)) == expected


def test_the_header_is_that_of_the_documentation() -> None:
    assert authorization_of(stream(username="username", api_key="apikey")) == "Basic dXNlcm5hbWU6YXBpa2V5"


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


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"url": "https://ws.cloud.docker.com"}, "url"),
        ({"url": "ws://"}, "url"),
        ({"url": "ws://host:hunter2"}, "url"),
        ({"url": "ws://host:0"}, "url"),
        ({"url": "ws://user:hunter2@host"}, "url"),
        ({"url": "ws://host?auth=hunter2"}, "url"),
        ({"url": f"ws://{'a' * 64}.example"}, "url"),
        ({"url": "ws://host/a b"}, "url"),
        ({"url": "ws://host", "path": "/x\r\nY: z"}, "path"),
        ({"url": "ws://host", "proxy": "socks5://user:hunter2@proxy:1080"}, "proxy"),
        ({"url": "ws://host", "proxy": "http://user:hunt/er2@proxy:1080"}, "proxy"),
    ],
)
def test_settings_that_can_not_work_are_refused_without_repeating_a_password(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        DockerCloudSettings(**changes)
    assert "hunt" not in str(caught.value)


def test_the_password_of_a_proxy_is_not_in_the_representation() -> None:
    settings = DockerCloudSettings.model_validate({"url": "ws://host", "proxy": "http://user:hunter2@proxy:3128"})
    assert "hunter2" not in repr(settings)
