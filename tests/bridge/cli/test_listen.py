"""What listen decides; as a process it is tried in tests/e2e/test_command.py."""

from pathlib import Path

import pytest

from bridge.cli.listen import Filters, listen
from bridge.cli.run import OptionError
from bridge.pipeline.stream import Stream
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.source import authorization_of


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration but that of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "")


def test_listening_needs_a_stream_over_a_websocket(tmp_path: Path) -> None:
    config = tmp_path / "bridge.yaml"
    config.write_text("streams: {local: {type: engine}}")

    with pytest.raises(OptionError, match="no docker-cloud stream"):
        listen(config, None, None, Filters())


def test_a_bad_url_to_listen_to_is_said_by_its_option(tmp_path: Path) -> None:
    config = tmp_path / "bridge.yaml"
    config.write_text("streams: {acme: {url: 'ws://127.0.0.1:1'}}")

    with pytest.raises(OptionError, match=r"^--url: "):
        listen(config, "ftp://x", None, Filters())


@pytest.mark.parametrize(
    ("text", "env", "sent"),
    [
        ("streams: {acme: {url: 'ws://127.0.0.1:1', username: bob, api_key: secret}}", {}, False),
        ("streams: {acme: {}}", {"DOCKERCLOUD_USER": "bob", "DOCKERCLOUD_APIKEY": "secret"}, False),
        (
            "streams: {acme: {}}",
            {"DOCKERCLOUD_STREAM_HOST": "URL", "DOCKERCLOUD_USER": "bob", "DOCKERCLOUD_APIKEY": "secret"},
            True,
        ),
        ("streams: {acme: {url: URL, username: bob, api_key: secret}}", {}, True),
    ],
)
def test_configured_credentials_are_sent_only_where_they_belong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, env: dict[str, str], sent: bool
) -> None:
    used: list[DockerCloudSettings] = []

    def note(stream: Stream, _: object) -> None:
        settings = stream._settings
        assert isinstance(settings, DockerCloudSettings)
        used.append(settings)

    url = "wss://stream.example:443"
    monkeypatch.setattr("bridge.cli.listen._follow", note)
    for name, value in env.items():
        monkeypatch.setenv(name, value.replace("URL", url))
    Path("bridge.yaml").write_text(text.replace("URL", url))

    listen(None, "wss://stream.example", None, Filters())

    assert (authorization_of(used[0]) is not None) is sent
    assert ("none are sent to wss://stream.example" in capsys.readouterr().err) is not sent
