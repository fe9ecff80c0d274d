"""Settings in, parts out."""

import socket
import urllib.request
from pathlib import Path
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from bridge import app
from bridge.admin.client import Client, OperationError
from bridge.journal import DeadLetterQuery
from bridge.simulator.server import Simulator, SimulatorSettings
from bridge.source import Ended
from bridge.sources.dockercloud.source import DockerCloudSource
from bridge.sources.engine.source import EngineSource
from config.load import ConfigError, load
from config.rotation import ConfigReader
from config.settings import Settings
from sinks.stdout import StdoutSink
from tests.support.servers import kafka_broker


def settings_of(tmp_path: Path, **variables: str) -> Settings:
    base = {
        "BRIDGE_SECRETS_DIR": "",
        "BRIDGE_JOURNAL__PATH": str(tmp_path / "journal.db"),
        "BRIDGE_HTTP__LISTEN": "127.0.0.1:0",
        "BRIDGE_STREAMS__ACME__USERNAME": "bob",
        "BRIDGE_STREAMS__ACME__API_KEY": "old",
    }
    return load(None, base | variables)


def test_every_stream_gets_the_source_of_its_kind_and_every_sink_its_plugin(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, BRIDGE_STREAMS__LOCAL__TYPE="engine", BRIDGE_SINKS__OUT__TYPE="stdout")
    reader = ConfigReader(settings, lambda: settings)

    assert isinstance(app.source("acme", settings.streams["acme"], reader), DockerCloudSource)
    assert isinstance(app.source("local", settings.streams["local"], reader), EngineSource)
    assert isinstance(app.make_sink("out", settings.sinks["out"]), StdoutSink)


def test_a_bridge_has_its_parts_and_answers_before_anything_happened(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, BRIDGE_SINKS__OUT__TYPE="stdout")
    reader = ConfigReader(settings, lambda: settings)
    bridge = app.build(settings, reader)
    server = app.serve(settings, bridge)
    assert server is not None
    try:
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            text = answer.read().decode()
    finally:
        server.close()
        bridge.journal.close()

    assert [stream.name for stream in bridge.supervisor.running().streams] == ["acme"]
    assert [forwarder.name for forwarder in bridge.supervisor.running().forwarders] == ["out"]
    assert 'event_bridge_events_received_total{stream="acme"} 0.0' in text
    assert 'event_bridge_sink_pending_events{sink="out"} 0.0' in text


@pytest.mark.skipif(kafka_broker.available() is not None, reason=str(kafka_broker.available()))
def test_a_kafka_sink_whose_password_file_has_changed_recovers_by_itself(tmp_path: Path) -> None:
    broker = kafka_broker.shared()
    topic = f"compose-{uuid4().hex[:8]}"
    kafka_broker.create_topic(broker.address(), topic)
    broker.allow("alice", topic, "WRITE", "DESCRIBE")
    password = tmp_path / "password"
    password.write_text("the old one\n")
    kafka = {"TYPE": "kafka", "BOOTSTRAP_SERVERS": broker.address("SASL"), "TOPIC": topic, "SASL": "PLAIN"}
    login = {"USERNAME": "alice", "PASSWORD_FILE": str(password), "CONNECT_TIMEOUT": "5s"}
    now = 100.0

    def read() -> Settings:
        return settings_of(tmp_path, **{f"BRIDGE_SINKS__AUDIT__{key}": value for key, value in (kafka | login).items()})

    first = read()
    bridge = app.build(first, ConfigReader(first, read, lambda: now))
    (forwarder,) = bridge.supervisor.running().forwarders
    try:
        forwarder.step()
        assert (forwarder.status.up, forwarder.status.reason) == (False, "unauthorized")
        password.write_text(kafka_broker.USERS["alice"] + "\n")
        now += 2
        forwarder.step()
        assert forwarder.status.up
    finally:
        forwarder.close()
        bridge.journal.close()


def test_a_stream_whose_api_key_has_changed_uses_it_for_its_next_session(tmp_path: Path) -> None:
    now, key = 100.0, "old"
    with Simulator(SimulatorSettings(port=0, username="bob", api_key="new")) as simulator:

        def read() -> Settings:
            return settings_of(tmp_path, BRIDGE_STREAMS__ACME__URL=simulator.url, BRIDGE_STREAMS__ACME__API_KEY=key)

        first = read()
        source = app.source("acme", first.streams["acme"], ConfigReader(first, read, lambda: now))
        with pytest.raises(Ended, match="401"):
            source.open(None)
        key = "new"
        now += 2
        source.open(None).close()


def test_what_can_t_be_made_is_said_before_anything_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no")

    monkeypatch.setattr("bridge.app.make_sink", fail)
    settings = settings_of(tmp_path, BRIDGE_SINKS__OUT__TYPE="stdout", BRIDGE_SINKS__ERR__TYPE="stdout")

    with pytest.raises(ConfigError) as raised:
        app.build(settings, ConfigReader(settings, lambda: settings))

    assert raised.value.problems == ["sinks.err: can't be made: ValueError: no", "sinks.out: can't be made: ValueError: no"]
    assert not (tmp_path / "journal.db").exists()


def test_a_port_in_use_is_a_mistake_unless_any_will_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = settings_of(tmp_path, BRIDGE_HTTP__LISTEN=f"127.0.0.1:{taken.getsockname()[1]}")
        reader = ConfigReader(settings, lambda: settings)
        bridge = app.build(settings, reader)
        try:
            with pytest.raises(app.PortError, match=r"http.listen: 127.0.0.1:\d+: Address already in use"):
                app.serve(settings, bridge)
            server = app.serve(settings, bridge, or_any_port=True)
            assert server is not None
            server.close()
        finally:
            bridge.journal.close()


def test_the_port_asks_for_the_token_that_is_valid_now(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("the old token, long")
    now = 100.0

    def read() -> Settings:
        return settings_of(tmp_path, BRIDGE_SINKS__OUT__TYPE="stdout", BRIDGE_HTTP__TOKEN_FILE=str(token))

    settings = read()
    reader = ConfigReader(settings, read, lambda: now)
    bridge = app.build(settings, reader)
    server = app.serve(settings, bridge)
    assert server is not None
    try:
        assert Client(server.url, "the old token, long").dead_letters(DeadLetterQuery(), 0, 10).dead_letters == []
        token.write_text("the new token, long")
        now += 2
        with pytest.raises(OperationError, match="token"):
            Client(server.url, "the old token, long").dead_letters(DeadLetterQuery(), 0, 10)
        assert Client(server.url, "the new token, long").dead_letters(DeadLetterQuery(), 0, 10).dead_letters == []
    finally:
        server.close()
        bridge.journal.close()


def test_off_means_no_port(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, BRIDGE_HTTP__LISTEN="off")
    reader = ConfigReader(settings, lambda: settings)
    bridge = app.build(settings, reader)
    try:
        assert app.serve(settings, bridge) is None
    finally:
        bridge.journal.close()


def test_a_demo_has_nothing_but_its_streams_and_standard_output(tmp_path: Path) -> None:
    settings = app.settings_for_demo({"acme": {"url": "ws://127.0.0.1:1"}}, tmp_path / "journal.db")

    assert list(settings.streams) == ["acme"]
    assert [sink.type for sink in settings.sinks.values()] == ["stdout"]


def test_an_old_name_in_the_settings_is_logged_once_at_the_start(tmp_path: Path) -> None:
    sink = {"TYPE": "mqtt", "URL": "mqtt://broker", "TOPIC": "docker/{id}"}
    settings = settings_of(tmp_path, **{f"BRIDGE_SINKS__HOME__{key}": value for key, value in sink.items()})

    with capture_logs() as logs:
        app.build(settings, ConfigReader(settings, lambda: settings)).journal.close()

    warnings = [line for line in logs if line["log_level"] == "warning"]
    assert [(line["sink"], line["setting"]) for line in warnings] == [("home", "topic: {id} is called {resource_uuid} now")]
