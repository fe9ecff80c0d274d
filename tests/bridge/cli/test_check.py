"""What a check tries and says; as a process it is tried in tests/e2e/test_command.py."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bridge.cli.check import ConnectFailed, check
from bridge.simulator.server import Simulator, SimulatorSettings
from bridge.sink import Entry, Failure


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration but that of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "")


def test_a_check_that_reaches_nothing_names_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "bridge.yaml"
    with Simulator(SimulatorSettings(port=0, username="bob", api_key="key")) as simulator:
        config.write_text(f"streams: {{acme: {{url: '{simulator.url}'}}}}")
        with pytest.raises(ConnectFailed, match="stream acme"):
            check(config, connect=True)

    # Whether logs are set up by now, and so do not go there as well, depends on which tests ran before.
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("configuration", "stream"))]
    assert said[0] == "configuration ok: streams acme; sinks stdout"
    assert said[1].startswith("stream acme: unauthorized: ")


class _Sink:
    """A stranger's sink: it can tell of a limit, or has a bug."""

    def __init__(self, problem: Exception | None) -> None:
        self.closed = False
        self._problem = problem

    def open(self) -> None:
        if self._problem:
            raise self._problem

    def deliver(self, _: Sequence[Entry]) -> Sequence[Failure]:
        return ()

    def close(self) -> None:
        self.closed = True

    def remarks(self, max_event_bytes: int) -> Sequence[str]:
        return [f"takes less than {max_event_bytes} bytes", "is slow"]


@pytest.mark.parametrize("problem", [None, OSError("with-a-secret in it")])
def test_a_check_shows_what_a_sink_remarks_and_survives_its_bugs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, problem: Exception | None
) -> None:
    config = tmp_path / "bridge.yaml"
    sink = _Sink(problem)
    monkeypatch.setattr("bridge.app.make_sink", lambda *_: sink)
    with Simulator(SimulatorSettings(port=0)) as simulator:
        config.write_text(
            f"streams: {{acme: {{url: '{simulator.url}'}}}}\nsinks: {{far: {{type: stdout}}}}\n"
            "journal: {max_event_bytes: 4711}"
        )
        if problem:
            with pytest.raises(ConnectFailed, match="sink far"):
                check(config, connect=True)
        else:
            check(config, connect=True)

    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sink")]
    assert sink.closed
    if problem:
        assert said == ["sink far: internal: OSError in the sink"]
    else:
        assert said == ["sink far: ok", "sink far: takes less than 4711 bytes", "sink far: is slow"]


def test_a_check_names_what_has_an_old_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "bridge.yaml"
    config.write_text("streams: {acme: {}}\nsinks: {home: {type: mqtt, url: 'mqtt://broker', topic: 'docker/{id}'}}\n")

    check(config, connect=False)

    assert "sink home: topic: {id} is called {resource_uuid} now" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("part", "hosts"),
    [
        ("streams: {x: {url: 'ws://far.example', username: bob, api_key: k}}", ["far.example"]),
        ("streams: {x: {url: 'wss://far.example', username: bob, api_key: k}}", []),
        ("streams: {x: {url: 'ws://far.example'}}", []),
        ("streams: {x: {url: 'ws://[::1]', username: bob, api_key: k}}", []),
        ("sinks: {x: {type: webhook, url: 'http://far.example', token: t}}", ["far.example"]),
        ("sinks: {x: {type: webhook, url: 'http://far.example', headers: {X-Key: t}}}", ["far.example"]),
        ("sinks: {x: {type: webhook, url: 'http://localhost', token: t}}", []),
        ("sinks: {x: {type: mqtt, url: 'mqtt://10.0.0.5', username: bob, password: p}}", ["10.0.0.5"]),
        ("sinks: {x: {type: mqtt, url: 'mqtts://10.0.0.5', username: bob, password: p}}", []),
        (
            "sinks: {x: {type: kafka, bootstrap_servers: 'a:1,127.0.0.1:2', topic: t, sasl: PLAIN, username: b, password: p}}",
            ["a"],
        ),
        ("sinks: {x: {type: kafka, bootstrap_servers: 'a:1', topic: t, tls: true, sasl: PLAIN, username: b, password: p}}", []),
    ],
)
def test_credentials_in_clear_text_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, hosts: list[str]
) -> None:
    config = tmp_path / "bridge.yaml"
    config.write_text(part if part.startswith("streams") else f"streams: {{acme: {{}}}}\n{part}")

    check(config, connect=False)

    said = [line.split()[6] for line in capsys.readouterr().out.splitlines() if "clear text" in line]
    assert said == hosts
