"""The address and the settings of the websocket kind of stream."""

from typing import Any

import pytest

from bridge.sources.dockercloud.url import DockerCloudOptions, stream_url


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "wss://ws.cloud.docker.com/api/audit/v1/events"),
        ({"url": "wss://ws.cloud.docker.com/"}, "wss://ws.cloud.docker.com/api/audit/v1/events"),
        ({"namespace": "acme"}, "wss://ws.cloud.docker.com/api/audit/v1/acme/events"),
        ({"namespace": "a/c me"}, "wss://ws.cloud.docker.com/api/audit/v1/a%2Fc%20me/events"),
        ({"url": "ws://127.0.0.1:8750/base/"}, "ws://127.0.0.1:8750/base/api/audit/v1/events"),
        ({"path": "/v1/events/", "namespace": "acme"}, "wss://ws.cloud.docker.com/v1/events/"),
        ({"path": "events?x=1", "types": ("node",)}, "wss://ws.cloud.docker.com/events?x=1&type=node"),
        (
            {"types": ("container", "action"), "objects": ("/x/1/",), "parents": ("/p/1/", "/p/2/")},
            "wss://ws.cloud.docker.com/api/audit/v1/events?object=%2Fx%2F1%2F&parent=%2Fp%2F1%2F%2C%2Fp%2F2%2F&type=container%2Caction",
        ),
    ],
)
def test_the_address_is_that_of_the_original_clients(changes: dict[str, Any], expected: str) -> None:
    assert stream_url(DockerCloudOptions(**{"url": "wss://ws.cloud.docker.com", **changes})) == expected


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
        DockerCloudOptions(**changes)
    assert "hunt" not in str(caught.value)


def test_the_password_of_a_proxy_is_not_in_the_representation() -> None:
    options = DockerCloudOptions(url="ws://host", proxy="http://user:hunter2@proxy:3128")
    assert repr(options) == "DockerCloudOptions('ws://host/api/audit/v1/events')"
