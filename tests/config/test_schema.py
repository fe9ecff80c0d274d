import copy
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import SecretStr, create_model

import config
from bridge.sink import SinkSettings
from config.load import load
from config.schema import json_schema
from config.yaml_file import read_document

FOLDER = Path(config.__file__).parent
SCHEMA = FOLDER / "bridge.schema.json"
EXAMPLE = FOLDER / "bridge.example.yaml"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text()))


@pytest.fixture
def example() -> dict[str, Any]:
    return copy.deepcopy(read_document(EXAMPLE, {}))


def test_the_file_is_what_the_models_say_now() -> None:
    assert json.loads(SCHEMA.read_text()) == json_schema(), "run: event-bridge schema > config/bridge.schema.json"


def test_it_is_a_schema(validator: Draft202012Validator) -> None:
    schema = json.loads(SCHEMA.read_text())

    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"].startswith("urn:")
    assert schema["title"]
    assert not validator.is_valid([])


def test_every_key_is_described_and_no_other_is_allowed() -> None:
    schema = json_schema()
    models = {"the top": schema, **schema["$defs"]}

    assert [
        (name, key) for name, each in models.items() for key, value in each["properties"].items() if not value["description"]
    ] == []
    assert [name for name, model in models.items() if model["additionalProperties"] is not False] == []


def test_the_example_is_valid_and_loads_without_anything_else(validator: Draft202012Validator, example: dict[str, Any]) -> None:
    settings = load(EXAMPLE, {"BRIDGE_SECRETS_DIR": ""})

    assert list(validator.iter_errors(example)) == []
    assert {stream.type for stream in settings.streams.values()} == {"docker-cloud", "engine"}
    assert {sink.type for sink in settings.sinks.values()} == {"kafka", "mqtt", "stdout", "webhook"}


def test_editors_find_the_schema_by_the_first_line_of_the_example() -> None:
    first = EXAMPLE.read_text().splitlines()[0]

    assert first == "# yaml-language-server: $schema=./bridge.schema.json"
    assert (EXAMPLE.parent / "bridge.schema.json").is_file()


def test_what_the_example_has_commented_out_is_right_as_well(validator: Draft202012Validator, tmp_path: Path) -> None:
    """Keys that are commented out are defaults or alternatives; each is put in by itself, and may only fail for its file."""
    lines = EXAMPLE.read_text().splitlines()
    tried = 0
    for index, line in enumerate(lines):
        key = line.strip().removeprefix("# ").split(":")[0]
        if not line.strip().startswith("# ") or not key.isidentifier() or not key.islower() or "  " not in line[:2]:
            continue
        (tmp_path / "bridge.yaml").write_text("\n".join([*lines[:index], line.replace("# ", "", 1), *lines[index + 1 :]]))
        document = read_document(tmp_path / "bridge.yaml", {})
        assert list(validator.iter_errors(document)) == [], line
        tried += 1
    assert tried >= 15


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("unknown",), 1),
        (("streams", "Acme"), {}),
        (("streams", "a__b"), {}),
        (("streams", "acme", "typs"), []),
        (("streams", "acme", "types"), "container"),
        (("streams", "acme", "types"), ["Container"]),
        (("streams", "acme", "url"), "https://ws.cloud.docker.com"),
        (("streams", "acme", "type"), "engin"),
        (("streams", "acme", "api_key"), 12345),
        (("streams", "local", "url"), "/var/run/docker.sock"),
        (("streams", "local", "api_key"), "k"),
        (("sinks", "alerts", "type"), "webhok"),
        (("sinks", "alerts", "ulr"), "x"),
        (("sinks", "alerts", "batch"), {"max_events": 0}),
        (("sinks", "alerts", "start_at"), "beginning"),
        (("sinks", "new"), {"url": "https://hooks.example.com"}),
        (("sinks", "new"), {"type": "webhook"}),
        (("journal", "durability"), "none"),
        (("journal", "dedup"), {"window": "1 fortnight"}),
        (("http", "listen"), "9477"),
        (("log", "level"), "loud"),
    ],
)
def test_what_is_wrong_for_the_program_is_wrong_for_the_schema(
    validator: Draft202012Validator, example: dict[str, Any], path: tuple[str, ...], value: Any
) -> None:
    place = example
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value

    assert not validator.is_valid(example)


@pytest.mark.parametrize(
    ("stream", "valid"),
    [
        ({}, True),
        ({"username": "bob", "api_key_file": "/run/secrets/key"}, True),
        ({"username": "bob", "api_key": "k"}, True),
        ({"username": "bob", "api_key": "k", "api_key_file": "/run/secrets/key"}, False),
        ({"ca_file": "ca.pem"}, True),
        ({"ca_file_file": "x"}, False),
        ({"backoff": {"first": "1s", "max": 60}, "idle_timeout": None, "max_frame_bytes": "1MiB"}, True),
        ({"type": "engine", "url": "tcp://127.0.0.1:2375"}, True),
    ],
)
def test_a_secret_or_its_file_may_be_given(validator: Draft202012Validator, stream: dict[str, Any], valid: bool) -> None:
    assert validator.is_valid({"streams": {"acme": stream}}) is valid


class Plain(SinkSettings):
    """A stranger's sink that has nothing to set, and does not say what its type is."""


def test_a_strangers_sink_is_told_from_others_by_its_type_and_a_secret_it_needs_may_be_in_a_file() -> None:
    model = create_model("Strange", __base__=SinkSettings, phrase=(SecretStr, ...))
    plugin = type("Plugin", (), {"Settings": model, "__init__": lambda *_: None})
    plain = type("Plain", (), {"Settings": Plain})

    check = Draft202012Validator(json_schema({"strange": lambda: plugin, "plain": lambda: plain}))

    assert check.is_valid({"sinks": {"a": {"type": "strange", "phrase": "x"}, "b": {"type": "plain"}}})
    assert check.is_valid({"sinks": {"a": {"type": "strange", "phrase_file": "x"}}})
    assert not check.is_valid({"sinks": {"a": {"type": "strange"}}})
    assert not check.is_valid({"sinks": {"a": {"type": "plain", "phrase": "x"}}})
    assert not check.is_valid({"sinks": {"a": {"phrase": "x"}}})
