"""Settings in, parts out."""

import socket
import urllib.request
from pathlib import Path

import pytest

from bridge import compose
from bridge.dockercloud import DockerCloudSource
from bridge.engine import EngineSource
from config.load import ConfigError, load
from config.settings import Settings
from sinks.stdout import StdoutSink


def settings_of(tmp_path: Path, **variables: str) -> Settings:
    base = {
        "BRIDGE_SECRETS_DIR": "",
        "BRIDGE_JOURNAL__PATH": str(tmp_path / "journal.db"),
        "BRIDGE_HTTP__LISTEN": "127.0.0.1:0",
        "BRIDGE_STREAMS__ACME__USERNAME": "bob",
        "BRIDGE_STREAMS__ACME__API_KEY": "old",
    }
    return load(None, base | variables)


def test_credentials_are_read_again_and_the_last_good_ones_survive_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("bridge.compose.time.monotonic", lambda: now)
    answers = [settings_of(tmp_path, BRIDGE_STREAMS__ACME__API_KEY="new")]

    def reload() -> Settings:
        if not answers:
            raise ConfigError(["bridge.yaml: gone"])
        return answers.pop()

    first = settings_of(tmp_path)
    credentials = compose.Credentials(first, reload)

    assert credentials.of("acme") == first.streams["acme"].authorization()  # type: ignore[union-attr]
    now += 2
    renewed = credentials.of("acme")
    assert renewed != first.streams["acme"].authorization()  # type: ignore[union-attr]
    now += 2
    assert credentials.of("acme") == renewed
    assert credentials.of("unknown") is None


def test_many_streams_that_reconnect_at_once_read_the_configuration_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("bridge.compose.time.monotonic", lambda: now)
    first = settings_of(tmp_path)
    reads = 0

    def reload() -> Settings:
        nonlocal reads
        reads += 1
        return first

    credentials = compose.Credentials(first, reload)

    now += 5
    for _ in range(100):
        credentials.of("acme")

    assert reads == 1


def test_every_stream_gets_the_source_of_its_kind_and_every_sink_its_plugin(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, BRIDGE_STREAMS__LOCAL__TYPE="engine", BRIDGE_SINKS__OUT__TYPE="stdout")
    credentials = compose.Credentials(settings, lambda: settings)

    assert isinstance(compose.source("acme", settings.streams["acme"], credentials), DockerCloudSource)
    assert isinstance(compose.source("local", settings.streams["local"], credentials), EngineSource)
    assert isinstance(compose.make_sink("out", settings.sinks["out"]), StdoutSink)


def test_a_bridge_has_its_parts_and_answers_before_anything_happened(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, BRIDGE_SINKS__OUT__TYPE="stdout")
    bridge = compose.build(settings, compose.Credentials(settings, lambda: settings))
    server = compose.serve(settings, bridge)
    assert server is not None
    try:
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            text = answer.read().decode()
    finally:
        server.close()
        bridge.journal.close()

    assert [stream.name for stream in bridge.streams] == ["acme"]
    assert [forwarder.name for forwarder in bridge.forwarders] == ["out"]
    assert 'event_bridge_events_received_total{stream="acme"} 0.0' in text
    assert 'event_bridge_sink_pending_events{sink="out"} 0.0' in text


def test_a_port_in_use_is_a_mistake_unless_any_will_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = settings_of(tmp_path, BRIDGE_HTTP__LISTEN=f"127.0.0.1:{taken.getsockname()[1]}")
        bridge = compose.build(settings, compose.Credentials(settings, lambda: settings))
        try:
            with pytest.raises(ConfigError, match=r"http.listen: 127.0.0.1:\d+: Address already in use"):
                compose.serve(settings, bridge)
            server = compose.serve(settings, bridge, or_any_port=True)
            assert server is not None
            server.close()
        finally:
            bridge.journal.close()


def test_off_means_no_port(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, BRIDGE_HTTP__LISTEN="off")
    bridge = compose.build(settings, compose.Credentials(settings, lambda: settings))
    try:
        assert compose.serve(settings, bridge) is None
    finally:
        bridge.journal.close()


def test_a_demo_has_nothing_but_its_streams_and_standard_output(tmp_path: Path) -> None:
    settings = compose.settings_for_demo({"acme": {"url": "ws://127.0.0.1:1"}}, tmp_path / "journal.db")

    assert list(settings.streams) == ["acme"]
    assert [sink.type for sink in settings.sinks.values()] == ["stdout"]
