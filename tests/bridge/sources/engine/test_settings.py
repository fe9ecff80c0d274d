"""Settings of an Engine's stream."""

from typing import Any

import pytest
from pydantic import ValidationError

from bridge.sources.engine.settings import EngineSettings


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
