"""Loading the configuration: read the sources, merge them key by key, read secrets from files, validate, report all problems.

`load` keeps nothing: each call reads everything again. Reload and new secrets depend on that.

The order matters. The type of a sink's key depends on the sink's `type`, which any source may set. So sink types are found
first, then text is decoded by type, then layers are merged, and then secrets are read from the files that won.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError

from bridge.field_types import NAME
from bridge.sink import SinkSettings
from bridge.text import hide
from config.dockercloud_env import from_original, incomplete
from config.errors import ConfigError, Problems
from config.introspection import FILE, KeyPath, decode, merged, models_in, secrets_of
from config.layers import Layer, find, from_environment, from_file, from_secrets, read_secret
from config.plugins import Plugins, installed, settings_models
from config.settings import Settings
from config.yaml_file import ReadError

Section = TypeVar("Section", bound=BaseModel)

__all__ = ["ConfigError", "find", "load", "load_section", "load_with_layers"]


def load(config: Path | None = None, env: Mapping[str, str] | None = None, plugins: Plugins | None = None) -> Settings:
    """Load the configuration.

    Args:
        config: The YAML file; if None, it is looked for (`find`).
        env: The environment; if None, that of the process.
        plugins: The types of sinks; if None, those that are installed. Only those in use are imported.

    Raises:
        ConfigError: With everything that is wrong.
    """
    return load_with_layers(config, os.environ if env is None else env, plugins)[0]


def load_with_layers(
    config: Path | None, env: Mapping[str, str], plugins: Plugins | None = None
) -> tuple[Settings, Sequence[Layer]]:
    """Load the configuration as `load` does; return also the sources of its values, the one that wins first."""
    layers, lines = _read(config, env)
    problems = Problems(layers)
    for layer in layers:
        layer.data = decode(Settings, layer.data, partial(problems.add, layer=layer), text=layer.text)
    for layer in layers:
        if layer.data.get("sinks"):
            break
    else:
        # With no sink configured, events go to stdout, as with the original `docker-cloud event`. A misspelt sink can't be
        # the reason: an unknown key is an error.
        layers.append(Layer({"sinks": {"stdout": {"type": "stdout"}}}, {}))
    models = settings_models(reversed(layers), installed() if plugins is None else plugins, problems)
    for layer in layers:
        sinks, report = layer.data.get("sinks", {}), partial(problems.add, layer=layer)
        for name in sinks.keys() & models.keys():
            sinks[name] = decode(models[name], sinks[name], report, ("sinks", name), text=layer.text)
    data = merged(map(attrgetter("data"), layers))
    layers.append(original := from_original(env, data.get("streams", {})))
    for path, text in incomplete(original):
        problems.add(path, text)
    data = merged([data, original.data])
    if not data.get("streams") and not problems.touches("streams"):
        streams = "name one under `streams`, or set DOCKERCLOUD_USER and DOCKERCLOUD_APIKEY for that of an account"
        problems.add(("streams",), f"no stream is configured; {streams}")
    mappings = list(models_in(Settings, {**data, "sinks": {}}))
    for name, model in models.items():
        mappings += models_in(model, data["sinks"][name], ("sinks", name))
    _put_in_secrets(mappings, layers, problems)
    return _validated(data, models, lines, problems), layers


def load_section(name: str, model: type[Section], config: Path | None = None, env: Mapping[str, str] | None = None) -> Section:
    """Load one section alone, for a command that needs no other one; see `load`.

    Raises:
        ConfigError: With what is wrong in this section; the others are not looked at.
    """
    layers, lines = _read(config, os.environ if env is None else env)
    problems = Problems(layers)
    for layer in layers:
        data = {name: layer.data[name]} if name in layer.data else {}
        layer.data = decode(Settings, data, partial(problems.add, layer=layer), text=layer.text)
    data = merged(map(attrgetter("data"), layers)).get(name, {})
    _put_in_secrets(list(models_in(model, data, (name,))), layers, problems)
    try:
        section = model.model_validate(data)
    except ValidationError as error:
        problems.add_validation(error, model, data, (name,))
    if lines or problems.found:
        raise ConfigError([*lines, *problems.found.values()])
    return section


def _read(config: Path | None, env: Mapping[str, str]) -> tuple[list[Layer], list[str]]:
    """Return the sources, the one that wins first, and the problems with names of variables.

    Raises:
        ConfigError: A source can't be read. No other problem is reported: its values would be missing everywhere.
    """
    lines: list[str] = []
    environment = from_environment(env, lines)
    secrets, sound = from_secrets(env, lines)
    try:
        document = from_file(config, env)
    except ReadError as error:
        raise ConfigError([*lines, str(error)]) from None
    if not sound:
        raise ConfigError(lines)
    return [environment, secrets, *([document] if document else [])], lines


def _put_in_secrets(
    mappings: Sequence[tuple[KeyPath, type[BaseModel], dict[str, Any]]], layers: list[Layer], problems: Problems
) -> None:
    """Put the content of `<key>_file` under `<key>`, for every key that is a secret."""
    for path, model, mapping in mappings:
        for key in secrets_of(model):
            if mapping.get(key + FILE) is not None:
                _put_in_secret(mapping, (*path, key), layers, problems)
            mapping.pop(key + FILE, None)


def _put_in_secret(mapping: dict[str, Any], path: KeyPath, layers: list[Layer], problems: Problems) -> None:
    key, twin = str(path[-1]), f"{path[-1]}{FILE}"
    twin_path = (*path[:-1], twin)
    if mapping.get(key) is not None:
        # Both set the same secret: the higher source wins, as for any key; within one source it is a contradiction.
        first, second = (next(index for index, layer in enumerate(layers) if layer.has(place)) for place in (path, twin_path))
        if first == second:
            other = layers[second].place(twin_path) if layers[second].text else twin
            problems.add(path, f"is set together with {other}; only one of the two can be meant")
        if first <= second:
            return
    file, mapping[key] = mapping[twin], "unread"  # After a problem with the file, the secret must not be reported as missing.
    if not isinstance(file, str) or not file:
        problems.add(path, "must be the path of a file that holds the secret", instead=twin_path)
        return
    try:
        mapping[key] = read_secret(Path(file))
    except ReadError as error:
        problems.add(path, str(error), instead=twin_path)


def _validated(
    data: Mapping[str, Any], models: Mapping[str, type[SinkSettings]], lines: Sequence[str], problems: Problems
) -> Settings:
    """Make the settings.

    Raises:
        ConfigError: With `lines` and all problems.
    """
    settings, sinks = None, {}
    for name, sink in data.get("sinks", {}).items():
        try:
            NAME.check(str(name))
            if name in models:
                sinks[name] = models[name].model_validate(sink)
        except ValidationError as error:
            problems.add_validation(error, models[name], sink, ("sinks", name))
        except ValueError as error:
            problems.add(("sinks", name), str(error))
    try:
        settings = Settings.model_validate({**data, "sinks": {}})
    except ValidationError as error:
        problems.add_validation(error, Settings, data)
    if settings is None or lines or problems.found:
        raise ConfigError([*lines, *problems.found.values()])
    settings = settings.model_copy(update={"sinks": sinks})
    _hide_secrets(settings)
    return settings


def _hide_secrets(settings: Settings) -> None:
    """Let no log line, error or status show a secret of the configuration, even if a peer repeats it."""
    secrets, usernames = set[str](), set[str]()

    def collect(value: Any) -> None:
        if isinstance(value, SecretStr):
            secrets.add(value.get_secret_value())
        elif isinstance(value, BaseModel):
            usernames.add(getattr(value, "username", None) or "")
            collect(dict(value))
        elif isinstance(value, dict):
            for inner in value.values():
                collect(inner)

    collect(settings)
    hide(secrets, usernames)
