from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from pydantic import SecretStr

from bridge.admin.settings import HttpSettings
from bridge.sink import SinkSettings
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.source import authorization_of
from bridge.sources.engine.settings import EngineSettings
from config.load import ConfigError, load, load_section
from config.plugins import Plugins
from config.settings import Settings
from tests.support.queue_plugin import QueueSettings, Tls, plugin


class StdoutSettings(SinkSettings):
    type: Literal["stdout"]


PLUGINS: Plugins = {
    "queue": lambda: plugin(QueueSettings),
    "stdout": lambda: plugin(StdoutSettings),
    "broken": lambda: pytest.fail("a plug-in that is not used was imported"),
}


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test has its own ./bridge.yaml, and the environment of the process must not count."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_LOG__LEVEL", "nonsense")
    return iter([None])


def loaded(text: str = "", **env: str) -> Settings:
    if text:
        Path("bridge.yaml").write_text(text)
    return load(env={"BRIDGE_SECRETS_DIR": "", **env}, plugins=PLUGINS)


def acme(settings: Settings) -> DockerCloudSettings:
    stream = settings.streams["acme"]
    assert isinstance(stream, DockerCloudSettings)
    return stream


def queue(settings: Settings, name: str = "q") -> QueueSettings:
    sink = settings.sinks[name]
    assert isinstance(sink, QueueSettings)
    return sink


STREAM = "streams: {acme: {}}\n"
QUEUE = STREAM + "sinks: {q: {type: queue, url: 'queue://host'}}\n"


def test_variables_alone_are_enough() -> None:
    settings = loaded(
        BRIDGE_STREAMS__ACME__USERNAME="bob",
        BRIDGE_STREAMS__ACME__API_KEY="12345",
        BRIDGE_STREAMS__ACME__TYPES="container, service",
        BRIDGE_STREAMS__LOCAL__TYPE="engine",
        BRIDGE_SINKS__Q__TYPE="queue",
        BRIDGE_SINKS__Q__URL="queue://host",
        BRIDGE_SINKS__Q__SERVERS="a:1,b:2",
        BRIDGE_SINKS__Q__TABLE='{"a": 1}',
        BRIDGE_SINKS__Q__RETRY__MAX_ATTEMPTS="9",
        BRIDGE_SINKS__Q__RETRY__MAX_AGE="1h",
        BRIDGE_SINKS__Q__MATCH='[{"state": ["*failed*"]}]',
        BRIDGE_SINKS__Q__HEADERS__X_TOKEN="12345",
        BRIDGE_SINKS__Q__TEMPLATE='{"a": 1}',
        BRIDGE_JOURNAL__MAX_BYTES="2GiB",
        BRIDGE_HTTP__LISTEN="",
    )

    assert acme(settings).types == ["container", "service"]
    assert authorization_of(acme(settings)) == "Basic Ym9iOjEyMzQ1"
    assert isinstance(settings.streams["local"], EngineSettings)
    assert (queue(settings).servers, queue(settings).table) == (["a:1", "b:2"], {"a": 1})
    assert (queue(settings).retry.max_attempts, queue(settings).retry.max_age) == (9, 3600)
    assert queue(settings).match == [{"state": ["*failed*"]}]
    assert queue(settings).headers["x_token"].get_secret_value() == "12345"
    assert queue(settings).template == '{"a": 1}'
    assert (settings.journal.max_bytes, settings.http.address) == (2 * 1024**3, None)


def test_a_file_alone_is_enough() -> None:
    settings = loaded(
        "streams:\n  acme:\n  local: {type: engine}\nsinks:\n  q:\n    type: queue\n    url: queue://host\nhttp:\n"
    )

    assert acme(settings).namespace == "acme"
    assert queue(settings).url == "queue://host"
    assert settings.http.listen == "127.0.0.1:9477"


def test_a_source_says_only_what_it_wants_to_differently(tmp_path: Path) -> None:
    (tmp_path / "bridge_sinks__q__token").write_text("from the secrets\n")
    (tmp_path / "bridge_sinks__q__url").write_text("queue://from.the.secrets")

    settings = loaded(
        """
        streams: {acme: {types: [node], ping_interval: 3s}, other: {}}
        sinks:
          q:
            {type: queue, url: "queue://from.the.file", token: x, servers: [a, b], retry: {max_age: 5s, first_delay: 2s}}
          w: {type: queue, url: "queue://host"}
        """,
        BRIDGE_SECRETS_DIR=str(tmp_path),
        BRIDGE_SINKS__Q__URL="queue://from.the.environment",
        BRIDGE_SINKS__Q__RETRY__MAX_AGE="6s",
        BRIDGE_SINKS__Q__SERVERS="c",
        BRIDGE_STREAMS__ACME__TYPES="stack",
    )

    token = queue(settings).token
    assert token is not None
    assert token.get_secret_value() == "from the secrets"
    assert queue(settings).url == "queue://from.the.environment"
    assert queue(settings).servers == ["c"]
    assert (queue(settings).retry.max_age, queue(settings).retry.first_delay) == (6, 2)
    assert (acme(settings).types, acme(settings).ping_interval) == (["stack"], 3)
    assert (sorted(settings.streams), sorted(settings.sinks)) == (["acme", "other"], ["q", "w"])


def test_the_type_of_a_sink_may_come_from_another_source_than_its_keys() -> None:
    settings = loaded(
        STREAM + "sinks: {q: {url: 'queue://host'}}", BRIDGE_SINKS__Q__TYPE="queue", BRIDGE_SINKS__Q__SERVERS="a,b"
    )

    assert queue(settings).servers == ["a", "b"]


def test_a_whole_section_can_be_one_variable_and_is_merged_as_well() -> None:
    settings = loaded(
        QUEUE,
        BRIDGE_SINKS='{"q": {"servers": ["a"]}, "w": {"type": "queue", "url": "queue://other"}}',
        BRIDGE_STREAMS__ACME='{"types": ["node"]}',
    )

    assert (queue(settings).url, queue(settings).servers, queue(settings, "w").url) == ("queue://host", ["a"], "queue://other")
    assert acme(settings).types == ["node"]


def test_a_mapping_that_may_be_absent_stays_so_unless_it_is_there() -> None:
    assert queue(loaded(QUEUE.replace("host'", "host', tls: "))).tls is None
    assert queue(loaded(QUEUE.replace("host'", "host', tls: {}"))).tls == Tls()


def test_only_the_sinks_in_use_are_imported() -> None:
    assert loaded(QUEUE).sinks.keys() == {"q"}


@pytest.mark.parametrize("text", [STREAM, STREAM + "sinks:", STREAM + "sinks: {}"])
def test_without_a_word_about_sinks_events_go_to_standard_output(text: str) -> None:
    assert loaded(text).sinks == {"stdout": StdoutSettings(type="stdout")}


def test_the_original_clients_variables_are_enough() -> None:
    settings = loaded(DOCKERCLOUD_USER="bob", DOCKERCLOUD_APIKEY="k", DOCKERCLOUD_PASS="p", DOCKERCLOUD_NAMESPACE="acme")

    assert (acme(settings).namespace, authorization_of(acme(settings))) == ("acme", "Basic Ym9iOms=")
    assert settings.sinks.keys() == {"stdout"}


def test_without_a_namespace_they_make_a_stream_called_default() -> None:
    settings = loaded(DOCKERCLOUD_AUTH="TutumAccessKey 2c40", DOCKERCLOUD_STREAM_HOST="ws://127.0.0.1:8750/")

    stream = settings.streams["default"]
    assert isinstance(stream, DockerCloudSettings)
    assert (stream.namespace, stream.url, authorization_of(stream)) == ("", "ws://127.0.0.1:8750", "TutumAccessKey 2c40")


def test_they_are_the_credentials_of_streams_that_have_none() -> None:
    settings = loaded(
        "streams: {acme: {types: [node]}, own: {username: eve, password: p}}", DOCKERCLOUD_USER="bob", DOCKERCLOUD_APIKEY="k"
    )

    own = settings.streams["own"]
    assert isinstance(own, DockerCloudSettings)
    assert (authorization_of(acme(settings)), authorization_of(own)) == ("Basic Ym9iOms=", "Basic ZXZlOnA=")


def test_a_variable_of_ours_goes_before_one_of_the_original_clients() -> None:
    settings = loaded(DOCKERCLOUD_USER="bob", DOCKERCLOUD_APIKEY="k", BRIDGE_STREAMS__ACME__URL="ws://127.0.0.1:1")

    assert authorization_of(acme(settings)) is None


def test_a_secret_can_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k\n")
    (tmp_path / "token").write_text("t")
    (tmp_path / "pin").write_text("p")

    settings = loaded(
        "streams: {acme: {username: bob, api_key_file: key}}\n"
        "sinks: {q: {type: queue, url: 'queue://host', tls: {pin_file: pin, ca_file: ca.pem}}}",
        BRIDGE_SINKS__Q__TOKEN_FILE=str(tmp_path / "token"),
    )

    tls, token = queue(settings).tls, queue(settings).token
    assert tls is not None
    assert tls.pin is not None
    assert token is not None
    assert authorization_of(acme(settings)) == "Basic Ym9iOms="
    assert (tls.pin.get_secret_value(), tls.ca_file, token.get_secret_value()) == ("p", Path("ca.pem"), "t")


def test_a_secret_of_the_original_clients_can_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k\n")

    settings = loaded(DOCKERCLOUD_USER="bob", DOCKERCLOUD_APIKEY_FILE="key", DOCKERCLOUD_NAMESPACE="acme")

    assert authorization_of(acme(settings)) == "Basic Ym9iOms="


def test_loading_again_reads_secrets_again(tmp_path: Path) -> None:
    env = {"DOCKERCLOUD_AUTH_FILE": str(tmp_path / "auth"), "DOCKERCLOUD_NAMESPACE": "acme", "BRIDGE_SECRETS_DIR": ""}
    seen = []
    for value in ("one", "two"):
        (tmp_path / "auth").write_text(value)
        seen.append(authorization_of(acme(load(env=env, plugins=PLUGINS))))

    assert seen == ["one", "two"]


@pytest.mark.parametrize(
    ("text", "env", "expected"),
    [
        ("api_key: low", {"BRIDGE_STREAMS__ACME__API_KEY_FILE": "key"}, "high"),
        ("api_key_file: missing", {"BRIDGE_STREAMS__ACME__API_KEY": "high"}, "high"),
        ("api_key_file: missing", {"BRIDGE_STREAMS__ACME__API_KEY_FILE": "key"}, "high"),
        ("api_key_file: key, api_key: ", {}, "high"),
        ("api_key: high, api_key_file: ", {}, "high"),
    ],
)
def test_a_secret_and_its_file_are_one_setting_of_which_the_higher_source_wins(
    tmp_path: Path, text: str, env: dict[str, str], expected: str
) -> None:
    (tmp_path / "key").write_text("high")

    key = acme(loaded(f"streams: {{acme: {{username: bob, {text}}}}}", **env)).api_key

    assert key is not None
    assert key.get_secret_value() == expected


def test_a_file_given_by_name_is_used() -> None:
    Path("other.yaml").write_text("streams: {other: {}}")

    assert load(Path("other.yaml"), {}, PLUGINS).streams.keys() == {"other"}
    assert load(None, {"BRIDGE_CONFIG": "other.yaml"}, PLUGINS).streams.keys() == {"other"}


def test_without_an_explicit_environment_that_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRIDGE_LOG__LEVEL", "debug")
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "")
    monkeypatch.setenv("BRIDGE_STREAMS__ACME__TYPES", "node")

    settings = load(plugins=PLUGINS)

    assert (settings.log.level, acme(settings).types) == ("debug", ["node"])


# --- the part for who talks to a bridge ---------------------------------------------------------------------------------


def http(text: str = "", **env: str) -> tuple[str, str | None]:
    """Where it listens, and the token."""
    if text:
        Path("bridge.yaml").write_text(text)
    found = load_section("http", HttpSettings, None, {"BRIDGE_SECRETS_DIR": "", **env})
    return found.listen, found.token.get_secret_value() if found.token else None


def test_the_part_http_needs_nothing_else() -> None:
    assert http() == ("127.0.0.1:9477", None)
    assert http(BRIDGE_HTTP__TOKEN="a token that is long") == ("127.0.0.1:9477", "a token that is long")


def test_the_part_http_is_read_from_all_sources_and_files_of_secrets(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a token from a file\n")
    text = "http: {listen: 'off', token_file: token}\nsinks: {x: {type: nonsense}}\nstreams: 7\n"

    assert http(text) == ("off", "a token from a file")
    assert http(text, BRIDGE_HTTP__TOKEN="a token from a variable") == ("off", "a token from a variable")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http: {token: ''}", "bridge.yaml: http.token: is empty"),
        ("http: {token_file: nowhere}", "bridge.yaml: http.token_file: nowhere: can't be read"),
        ("http: {tokn: x}", "bridge.yaml: http.tokn: "),
        ("http: {token: ü}", "bridge.yaml: http.token: must be ASCII text"),
        ("http: {token: short}", "bridge.yaml: http.token: must have at least 16 characters"),
        ("http: 7", "bridge.yaml: http: must be a mapping"),
    ],
)
def test_what_is_wrong_with_the_part_http_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        http(text)

    (problem,) = raised.value.problems
    assert problem.startswith(said)


@pytest.mark.parametrize(("written", "level"), [("DEBUG", "debug"), ("warn", "warning"), ("Warn", "warning"), ("info", "info")])
def test_a_level_is_written_as_other_programs_have_it(written: str, level: str) -> None:
    Path("bridge.yaml").write_text(f"log: {{level: {written}}}\nstreams: {{acme: {{}}}}\n")

    assert load(plugins=PLUGINS, env={"BRIDGE_SECRETS_DIR": ""}).log.level == level


def test_a_secret_may_come_from_a_variable_of_any_name() -> None:
    Path("bridge.yaml").write_text("streams: {acme: {username: bob, api_key: '${API_KEY}'}}\n")

    settings = load(plugins=PLUGINS, env={"BRIDGE_SECRETS_DIR": "", "API_KEY": "from the environment"})

    assert acme(settings).api_key == SecretStr("from the environment")
    with pytest.raises(ConfigError, match=r"bridge\.yaml: line 1, column 42: the variable API_KEY is not set"):
        load(plugins=PLUGINS, env={"BRIDGE_SECRETS_DIR": ""})
