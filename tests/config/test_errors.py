"""What is said about a wrong configuration: one line per problem, all of them, never a secret."""

import json
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from bridge.sink import SinkSettings
from config.load import ConfigError, load
from config.plugins import Plugins
from config.settings import Settings
from tests.support.queue_plugin import QueueSettings, plugin


class LockedSettings(SinkSettings):
    type: Literal["locked"]
    secret: SecretStr


def broken() -> Any:
    raise ModuleNotFoundError("No module named 'paho'")


PLUGINS: Plugins = {
    "queue": lambda: plugin(QueueSettings),
    "locked": lambda: plugin(LockedSettings),
    "stdout": lambda: plugin(SinkSettings),
    "broken": broken,
}


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test has its own ./bridge.yaml."""
    monkeypatch.chdir(tmp_path)
    return iter([None])


def loaded(text: str, env: dict[str, str]) -> Settings:
    if text:
        Path("bridge.yaml").write_text(text)
    return load(env={"BRIDGE_SECRETS_DIR": "", **env}, plugins=PLUGINS)


def problems(text: str, env: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(text, env)
    return caught.value.problems


STREAM = "streams: {acme: {}}\n"


def queue(more: str) -> str:
    return STREAM + f"sinks: {{q: {{type: queue, url: 'queue://host', {more}}}}}"


QUEUE = queue("")
NO_STREAM = (
    "no stream is configured; name one under `streams`, or set DOCKERCLOUD_USER and DOCKERCLOUD_APIKEY for that of an account"
)
NO_NAME = "is no name: names are a lower-case letter, then lower-case letters, digits, `-` or single `_`"
NO_KEY = "holds a key that does not exist, without a value; text with a colon or a comma needs quotes, a colon a space"


@pytest.mark.parametrize(
    ("text", "env", "expected"),
    [
        ("", {}, f"streams: {NO_STREAM}"),
        ("streams:", {}, f"bridge.yaml: streams: {NO_STREAM}"),
        ("http: {}", {"DOCKERCLOUD_NAMESPACE": "acme"}, f"bridge.yaml: streams: {NO_STREAM}"),
        ("", {"DOCKERCLOUD_USER": "b"}, "DOCKERCLOUD_USER: needs DOCKERCLOUD_APIKEY or DOCKERCLOUD_PASS beside it"),
        (
            STREAM,
            {"DOCKERCLOUD_PASS": "p"},
            "DOCKERCLOUD_USER: is missing: DOCKERCLOUD_APIKEY and DOCKERCLOUD_PASS need it beside them",
        ),
        (
            "",
            {"DOCKERCLOUD_STREAM_HOST": "ws.cloud.docker.com"},
            "DOCKERCLOUD_STREAM_HOST: must begin with wss:// (or ws://, without TLS), like wss://ws.cloud.docker.com",
        ),
        (
            "",
            {"DOCKERCLOUD_USER": "b", "DOCKERCLOUD_APIKEY": "k", "DOCKERCLOUD_APIKEY_FILE": "f"},
            "DOCKERCLOUD_APIKEY: is set together with DOCKERCLOUD_APIKEY_FILE; only one of the two can be meant",
        ),
        (
            "",
            {"DOCKERCLOUD_AUTH_FILE": "missing"},
            "DOCKERCLOUD_AUTH_FILE: missing: can't be read: No such file or directory",
        ),
        (STREAM, {"BRIDGE_LOG_LEVLE": "info"}, "BRIDGE_LOG_LEVLE: no such setting; did you mean BRIDGE_LOG__LEVEL?"),
        (STREAM, {"BRIDGE_LOG__LEVLE": "info"}, "BRIDGE_LOG__LEVLE: no such key; did you mean level?"),
        (STREAM, {"BRIDGE_LOG__LEVEL": "loud"}, "BRIDGE_LOG__LEVEL: must be 'debug', 'info', 'warning' or 'error'"),
        (STREAM, {"BRIDGE_LOG": "info"}, 'BRIDGE_LOG: must be JSON, like {"key": "value"}'),
        (STREAM + "jurnal: {}", {}, "bridge.yaml: jurnal: no such key; did you mean journal?"),
        (STREAM + "jurnal:", {}, "bridge.yaml: jurnal: no such key; did you mean journal?"),
        (
            STREAM + "x: 1",
            {},
            "bridge.yaml: x: no such key; keys are health, http, journal, log, shutdown, sinks, streams",
        ),
        (STREAM + "x:", {}, "bridge.yaml: x: no such key; keys are health, http, journal, log, shutdown, sinks, streams"),
        (STREAM + "1: 2", {}, "bridge.yaml: [1]: must be text: put the key in quotes"),
        (STREAM + "journal: {dedup: {windwo: 1h}}", {}, "bridge.yaml: journal.dedup.windwo: no such key; did you mean window?"),
        (
            STREAM + "journal: {dedup: {window: 1 day}}",
            {},
            "bridge.yaml: journal.dedup.window: not a duration: write seconds (2.5) or numbers with ms, s, m, h or d",
        ),
        (STREAM + "journal: {max_bytes: 1MiB}", {}, "bridge.yaml: journal.max_bytes: must be at least 16777216"),
        (
            STREAM + "journal: {max_bytes: much}",
            {},
            "bridge.yaml: journal.max_bytes: must be a size: bytes, or a number with KiB, MiB or GiB",
        ),
        (
            STREAM + "journal: {max_bytes: 5 lightyears}",
            {},
            "bridge.yaml: journal.max_bytes: must be a size: bytes, or a number with KiB, MiB or GiB",
        ),
        (STREAM + "journal: {path: 5}", {}, "bridge.yaml: journal.path: must be a path"),
        (STREAM + "journal: {dedup: {max_events: many}}", {}, "bridge.yaml: journal.dedup.max_events: must be a whole number"),
        (STREAM + "shutdown: {grace: [1]}", {}, "bridge.yaml: shutdown.grace: must be a number"),
        (STREAM + "shutdown: {grace: 2h}", {}, "bridge.yaml: shutdown.grace: must be at most 3600"),
        (STREAM + "http: 9477", {}, "bridge.yaml: http: must be a mapping: keys with values"),
        (
            STREAM + "http: {listen: 9477}",
            {},
            "bridge.yaml: http.listen: must be text: put it in quotes",
        ),
        (
            STREAM,
            {"BRIDGE_HTTP__LISTEN": "9477"},
            "BRIDGE_HTTP__LISTEN: must be host:port, like 127.0.0.1:9477, 0.0.0.0:9477 or [::1]:9477, or off",
        ),
        ("streams: [acme]", {}, "bridge.yaml: streams: must be a mapping: keys with values"),
        ("streams: {acme: wss://host}", {}, "bridge.yaml: streams.acme: must be a mapping: keys with values"),
        ("streams: {Acme: {}}", {}, f"bridge.yaml: streams.Acme: {NO_NAME}"),
        ("streams: {a__b: {}}", {}, f"bridge.yaml: streams.a__b: {NO_NAME}"),
        ("", {"BRIDGE_STREAMS__0__URL": "ws://h"}, f"BRIDGE_STREAMS__0: {NO_NAME}"),
        (
            "streams: {acme: {type: docker}}",
            {},
            "bridge.yaml: streams.acme.type: no such type; did you mean docker-cloud? Types are docker-cloud, engine",
        ),
        (
            "streams: {acme: {url: 'http://h'}}",
            {},
            "bridge.yaml: streams.acme.url: must begin with wss:// (or ws://, without TLS), like wss://ws.cloud.docker.com",
        ),
        (
            "streams: {acme: {types: [Container]}}",
            {},
            "bridge.yaml: streams.acme.types[0]: must be a type in lower case: stack, service, container, nodecluster, node",
        ),
        ("streams: {acme: {types: node}}", {}, "bridge.yaml: streams.acme.types: must be a list, like [a, b]"),
        (
            "streams: {acme: {api_key: k}}",
            {},
            "bridge.yaml: streams.acme.username: is missing: api_key and password need it beside them",
        ),
        (
            "streams: {acme: {username: b, api_key: 12345}}",
            {},
            "bridge.yaml: streams.acme.api_key: must be text: put it in quotes",
        ),
        ("streams: {acme: {auth: ''}}", {}, "bridge.yaml: streams.acme.auth: is empty"),
        ("streams: {acme: {auth_fil: x}}", {}, "bridge.yaml: streams.acme.auth_fil: no such key; did you mean auth_file?"),
        (
            "streams: {acme: {ca_file_file: x}}",
            {},
            "bridge.yaml: streams.acme.ca_file_file: no such key; did you mean ca_file?",
        ),
        ("streams: {acme: {api_key:hunter2}}", {}, f"bridge.yaml: streams.acme: {NO_KEY}"),
        ("streams: {acme: {auth: one,hunter2}}", {}, f"bridge.yaml: streams.acme: {NO_KEY}"),
        (
            "streams: {acme: {auth_file: missing}}",
            {},
            "bridge.yaml: streams.acme.auth_file: missing: can't be read: No such file or directory",
        ),
        ("streams: {acme: {auth_file: .}}", {}, "bridge.yaml: streams.acme.auth_file: .: can't be read: Is a directory"),
        ("streams: {acme: {auth_file: empty}}", {}, "bridge.yaml: streams.acme.auth_file: empty: is empty"),
        (
            "streams: {acme: {auth_file: 5}}",
            {},
            "bridge.yaml: streams.acme.auth_file: must be the path of a file that holds the secret",
        ),
        (
            STREAM,
            {"BRIDGE_STREAMS__ACME__AUTH_FILE": ""},
            "BRIDGE_STREAMS__ACME__AUTH_FILE: must be the path of a file that holds the secret",
        ),
        (
            "streams: {acme: {auth_file: lines}}",
            {},
            "bridge.yaml: streams.acme.auth_file: must be one line of printable text",
        ),
        (
            "streams: {acme: {auth: a, auth_file: b}}",
            {},
            "bridge.yaml: streams.acme.auth: is set together with auth_file; only one of the two can be meant",
        ),
        (
            STREAM,
            {"BRIDGE_STREAMS__ACME__AUTH": "a", "BRIDGE_STREAMS__ACME__AUTH_FILE": "b"},
            "BRIDGE_STREAMS__ACME__AUTH: is set together with BRIDGE_STREAMS__ACME__AUTH_FILE; only one of the two can be",
        ),
        ("streams: {e: {type: engine, key_file: c}}", {}, "bridge.yaml: streams.e: key_file needs cert_file beside it"),
        (STREAM + "sinks: [{type: stdout}]", {}, "bridge.yaml: sinks: must be a mapping: keys with values"),
        (STREAM + "sinks: {q: stdout}", {}, "bridge.yaml: sinks.q: must be a mapping: keys with values"),
        (STREAM + "sinks: {Q: {type: stdout}}", {}, f"bridge.yaml: sinks.Q: {NO_NAME}"),
        (STREAM + "sinks: {q: {}}", {}, "bridge.yaml: sinks.q.type: is missing; types are broken, locked, queue, stdout"),
        (
            STREAM,
            {"BRIDGE_SINKS__Q__URL": "x"},
            "BRIDGE_SINKS__Q__TYPE: is missing; types are broken, locked, queue, stdout",
        ),
        (
            STREAM + "sinks: {q: {type: Queu}}",
            {},
            "bridge.yaml: sinks.q.type: no such type; did you mean queue? Types are broken, locked, queue, stdout",
        ),
        (
            STREAM + "sinks: {q: {type: [x]}}",
            {},
            "bridge.yaml: sinks.q.type: no such type; types are broken, locked, queue, stdout",
        ),
        (
            STREAM + "sinks: {q: {type: broken}}",
            {},
            "bridge.yaml: sinks.q.type: the plug-in for type broken can't be loaded: ModuleNotFoundError: No module",
        ),
        (STREAM + "sinks: {q: {type: queue}}", {}, "bridge.yaml: sinks.q.url: is missing: Where the queue is."),
        (STREAM + "sinks: {q: {type: locked}}", {}, "bridge.yaml: sinks.q.secret: is missing"),
        (
            STREAM,
            {"BRIDGE_SINKS__Q__TYPE": "queue"},
            "BRIDGE_SINKS__Q__URL: is missing: Where the queue is.",
        ),
        (
            STREAM + "sinks: {q: {type: locked, secret_file: missing}}",
            {},
            "bridge.yaml: sinks.q.secret_file: missing: can't be read: No such file or directory",
        ),
        (
            STREAM + "sinks: {q: {type: queue, url: 'http://hunter2'}}",
            {},
            "bridge.yaml: sinks.q.url: … must begin with queue://",
        ),
        (queue("toekn: x"), {}, "bridge.yaml: sinks.q.toekn: no such key; did you mean token?"),
        (queue("token: 5"), {}, "bridge.yaml: sinks.q.token: must be text: put it in quotes"),
        (queue("tls: {pni: x}"), {}, "bridge.yaml: sinks.q.tls.pni: no such key; did you mean pin?"),
        (queue("table: {a: x}"), {}, "bridge.yaml: sinks.q.table.a: must be a whole number"),
        (queue("retry: {max_age: never}"), {}, "bridge.yaml: sinks.q.retry.max_age: not a duration"),
        (
            queue("match: [{stat: x}]"),
            {},
            "bridge.yaml: sinks.q.match: no such field: stat; fields are type, action, state, resource_uri, parents, namespace",
        ),
        (
            queue("match: [{state: [1]}]"),
            {},
            "bridge.yaml: sinks.q.match[0].state[0]: must be text: put it in quotes",
        ),
        (QUEUE, {"BRIDGE_SINKS__Q__MATCH": '[{"state"'}, "BRIDGE_SINKS__Q__MATCH: is not valid JSON at line 1, column 10"),
        (QUEUE, {"BRIDGE_SINKS__Q__MATCH": "state=x"}, 'BRIDGE_SINKS__Q__MATCH: must be JSON, like [{"key": "value"}]'),
        (QUEUE, {"BRIDGE_SINKS__Q__SERVERS": "[1]"}, "BRIDGE_SINKS__Q__SERVERS: [0]: must be text: put it in quotes"),
        (
            QUEUE,
            {"BRIDGE_SINKS__Q__TLS": "{}", "BRIDGE_SINKS__Q__TLS__PIN": "x"},
            "BRIDGE_SINKS__Q__TLS: is set together with BRIDGE_SINKS__Q__TLS__PIN; set either the whole or its parts",
        ),
        (
            STREAM,
            {"BRIDGE_CONFIG": "none.yaml"},
            "none.yaml (named by BRIDGE_CONFIG): can't be read: No such file or directory",
        ),
        (STREAM, {"BRIDGE_SECRETS_DIR": "none"}, "none: can't be read as a directory of secrets: No such file or directory"),
        ("streams: {acme: {}, acme: {}}", {}, "bridge.yaml: is not valid YAML at line 1, column 21: this key is there twice"),
        ("- streams", {}, "bridge.yaml: must hold a mapping"),
    ],
)
def test_a_problem_is_one_line_with_its_place_and_what_would_be_right(text: str, env: dict[str, str], expected: str) -> None:
    Path("empty").touch()
    Path("lines").write_text("a\nb")

    [problem] = problems(text, env)

    assert problem.startswith(expected)
    assert "hunter2" not in problem


def test_all_problems_are_told_at_once_in_a_fixed_order() -> None:
    text = """
        streams: {acme: {api_key: k, url: "http://h"}, Bob: {}}
        sinks: {q: {type: queue, toekn: x}, w: {type: unknown}, l: {type: locked, secret_file: missing}}
        journal: {max_bytes: 5}
        http: 5
        """
    env = {"BRIDGE_LOG__LEVEL": "loud", "BRIDGE_LOG_FORMAT": "json", "BRIDGE_SINKS__Q__MATCH": "{"}

    found = problems(text, env)

    assert [line.split(": no")[0].split(": must")[0].split(": is")[0] for line in found] == [
        "BRIDGE_LOG_FORMAT",
        "BRIDGE_LOG__LEVEL",
        "BRIDGE_SINKS__Q__MATCH",
        "bridge.yaml: http",
        "bridge.yaml: journal.max_bytes",
        "bridge.yaml: sinks.l.secret_file: missing: can't be read: No such file or directory",
        "bridge.yaml: sinks.q.toekn",
        "bridge.yaml: sinks.q.url",
        "bridge.yaml: sinks.w.type",
        "bridge.yaml: streams.Bob",
        "bridge.yaml: streams.acme.url",
        "bridge.yaml: streams.acme.username",
    ]
    assert problems(text, dict(reversed(env.items()))) == found


def test_the_text_of_the_error_is_its_problems() -> None:
    error = ConfigError(["b: is\nwrong", "a: is wrong", "a: is wrong"])

    assert error.problems == ["a: is wrong", "b: is wrong"]
    assert str(error) == "a: is wrong\nb: is wrong"


CORE = "hunter2"
SECRETS = st.builds(
    lambda before, after: before + CORE + after,
    st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=5),
    st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=5),
)


def _block(secret: str) -> tuple[str, dict[str, str]]:
    """The secret as it is, behind its key, in a file that is also wrong."""
    line = " ".join(secret.splitlines())
    return f"streams:\n  acme:\n    username: bob\n    api_key: {line}\n    unknown: 1\n", {}


def _quoted(secret: str) -> tuple[str, dict[str, str]]:
    values = {"username": "bob", "api_key": secret, "proxy": secret, "url": secret, "types": [secret], "path": secret, "x": 1}
    sink = {"type": "queue", "url": secret, "token": secret, "headers": {"a": secret}, "every": secret, "tls": secret}
    return yaml.safe_dump({"streams": {"acme": values}, "sinks": {"q": sink}}), {}


def _wrong_kinds(secret: str) -> tuple[str, dict[str, str]]:
    values = {
        "username": [secret],
        "api_key": {"x": secret},
        "auth": [secret],
        "ping_interval": secret,
        "max_frame_bytes": secret,
    }
    return json.dumps({"streams": {"acme": values}, "journal": secret, "log": {"level": secret, "format": [secret]}}), {}


def _variables(secret: str) -> tuple[str, dict[str, str]]:
    return "", {
        "BRIDGE_STREAMS__ACME__API_KEY": secret,
        "BRIDGE_STREAMS__ACME__URL": f"wss://bob:{secret}@host",
        "BRIDGE_STREAMS__OTHER": '{"username": "' + secret,
        "BRIDGE_SINKS__Q__TYPE": secret,
        "BRIDGE_SINKS__W__TYPE": "queue",
        "BRIDGE_SINKS__W__URL": secret,
        "BRIDGE_SINKS__W__TABLE": secret,
        "BRIDGE_HTTP__LISTEN": secret,
        "BRIDGE_APIKEY": secret,
    }


def _originals(secret: str) -> tuple[str, dict[str, str]]:
    return "", {"DOCKERCLOUD_APIKEY": secret, "DOCKERCLOUD_AUTH": f"\n{secret}", "DOCKERCLOUD_STREAM_HOST": secret}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(secret=SECRETS, make=st.sampled_from([_block, _quoted, _wrong_kinds, _variables, _originals]))
@example(secret="*hunter2", make=_block)
@example(secret="!hunter2 x", make=_block)
@example(secret="&hunter2 *x", make=_block)
@example(secret="{hunter2", make=_block)
@example(secret="{a:hunter2}", make=_block)
@example(secret="x: hunter2", make=_block)
@example(secret='"hunter2', make=_block)
def test_no_error_ever_shows_a_secret(secret: str, make: Any) -> None:
    text, env = make(secret)

    with pytest.raises(ConfigError) as caught:
        loaded(text or "{}", env)

    shown = "".join(traceback.format_exception(caught.value)) + str(caught.value) + repr(caught.value)
    assert CORE not in shown
    assert all(len(problem.splitlines()) == 1 for problem in caught.value.problems)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["streams", "sinks", "acme", "type", "url", "match", "journal", "dedup", "token_file", "tls"])
                | st.text(max_size=3),
                inner,
                max_size=4,
            )
        ),
    )
)
def test_whatever_a_file_holds_there_are_settings_or_problems(document: Any) -> None:
    try:
        assert isinstance(loaded(yaml.safe_dump(document), {}), Settings)
    except ConfigError as error:
        assert error.problems  # noqa: PT017 - either outcome is right
