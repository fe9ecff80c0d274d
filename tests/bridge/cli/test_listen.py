"""What listen decides; as a process it is tried in tests/e2e/test_command.py."""

from pathlib import Path

import pytest

from bridge.cli.listen import Filters, listen
from bridge.cli.run import OptionError


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
