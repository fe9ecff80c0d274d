"""What a check tries and says; as a process it is tried in tests/e2e/test_command.py."""

import os
import socket
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from bridge.cli.check import ConnectFailed, check
from bridge.cli.main import main
from bridge.simulator.server import Simulator, SimulatorSettings
from bridge.sink import Entry, Failure
from tests.support.journal_samples import append, event, opened


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration but that of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "")
    monkeypatch.setenv("BRIDGE_HTTP__LISTEN", "off")


def test_a_check_that_reaches_nothing_names_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "bridge.yaml"
    with Simulator(SimulatorSettings(port=0, username="bob", api_key="key")) as simulator:
        config.write_text(f"streams: {{acme: {{url: '{simulator.url}'}}}}")
        with pytest.raises(ConnectFailed, match="stream acme"):
            check(config, connect=True)

    # Whether logs are set up by now, and so do not go there as well, depends on which tests ran before.
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("configuration", "stream"))]
    assert said[0] == f"configuration ok: streams acme; sinks stdout; read from {config}"
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
        ("streams: {x: {url: 'wss://far.example', proxy: 'http://u:p@proxy.example:3128'}}", ["proxy.example"]),
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


@pytest.mark.parametrize(
    ("http", "said"),
    [
        ("{listen: '0.0.0.0:9477', token: 0123456789abcdef}", True),
        ("{listen: '127.0.0.1:9477', token: 0123456789abcdef}", False),
        ("{listen: '0.0.0.0:9477'}", False),
        ("{listen: '0.0.0.0:9477', token: 0123456789abcdef, tls: {cert_file: a, key_file: b}}", False),
    ],
)
def test_a_token_of_operators_in_clear_text_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, http: str, said: bool
) -> None:
    monkeypatch.delenv("BRIDGE_HTTP__LISTEN")
    config = tmp_path / "bridge.yaml"
    config.write_text(f"streams: {{acme: {{}}}}\nhttp: {http}")

    check(config, connect=False)

    assert ("the token of operators crosses the network in clear text" in capsys.readouterr().out) is said


def test_the_command_prints_the_configuration_and_where_it_is_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bridge.yaml").write_text("streams: {acme: {username: bob, api_key: s3cret}}")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)

    assert main(["check", "--print"]) == 0

    output = capsys.readouterr()
    assert "    username: bob  # bridge.yaml: streams.acme.username" in output.out.splitlines()
    assert "  listen: off  # BRIDGE_HTTP__LISTEN" in output.out.splitlines()
    assert "s3cret" not in output.out
    assert output.err == "configuration: bridge.yaml\n"


@pytest.fixture
def config(tmp_path: Path) -> Iterator[Path]:
    """A configuration of which everything can be reached."""
    config = tmp_path / "bridge.yaml"
    with Simulator(SimulatorSettings(port=0)) as simulator:
        config.write_text(f"streams: {{acme: {{url: '{simulator.url}'}}}}\njournal: {{path: {tmp_path}/data/journal.db}}\n")
        yield config


def test_a_check_makes_no_journal_and_reads_the_one_that_is_there(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(config, connect=True)
    assert "journal: ok" in capsys.readouterr().out.splitlines()
    assert list(tmp_path.iterdir()) == [config]

    with opened(tmp_path / "data" / "journal.db", "stdout") as journal:
        append(journal, [event(1)])
        before = contents(tmp_path / "data")
        check(config, connect=True)
        assert contents(tmp_path / "data") == before
    said = capsys.readouterr().out.splitlines()
    assert said[1:3] == ["journal: ok", f"journal: in use by the bridge that runs (process {os.getpid()})"]


def contents(directory: Path) -> dict[str, bytes]:
    """The files but SQLite's shared memory, in which readers leave marks."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if not path.name.endswith("-shm")}


def test_a_check_finds_a_journal_that_run_would_refuse(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data" / "journal.db"
    with opened(path, "stdout"):
        pass
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")
    before = contents(tmp_path / "data")
    with pytest.raises(ConnectFailed, match=r"not reached: journal$"):
        check(config, connect=True)
    assert f"journal: {path}: written by a newer event-bridge (format 99" in capsys.readouterr().out
    assert contents(tmp_path / "data") == before

    monkeypatch.setenv("BRIDGE_JOURNAL__PATH", str(config / "journal.db"))
    with pytest.raises(ConnectFailed, match=r"not reached: journal$"):
        check(config, connect=True)
    assert f"journal: {config}: Not a directory; " in capsys.readouterr().out


def test_a_check_finds_a_port_in_use_but_not_that_of_the_running_bridge(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("BRIDGE_HTTP__LISTEN", address)
        with pytest.raises(ConnectFailed, match=r"not reached: http$"):
            check(config, connect=True)
        assert f"http: {address}: Address already in use" in capsys.readouterr().out.splitlines()
        with opened(tmp_path / "data" / "journal.db"):
            check(config, connect=True)


def test_a_refused_test_event_fails_the_check(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = _Sink(None)
    monkeypatch.setattr(sink, "deliver", lambda entries: [Failure.rejected(entries[0], "rejected", "answered 422")])
    monkeypatch.setattr("bridge.app.make_sink", lambda *_: sink)

    check(config, connect=True)
    assert "sink stdout: ok" in capsys.readouterr().out
    with pytest.raises(ConnectFailed, match="not reached: sink stdout"):
        check(config, connect=True, send=True)
    assert "sink stdout: rejected: answered 422" in capsys.readouterr().out
