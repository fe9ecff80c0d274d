"""The address and the settings of the websocket kind of stream."""

from typing import Any

import pytest

from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.url import stream_url


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
    assert stream_url(DockerCloudSettings().model_copy(update=changes)) == expected
