"""Putting the configuration together: read the sources, merge them key by key, put secrets in, validate, say all that is wrong.

`load` has no memory: calling it again reads everything again, which is how a reload and fresh credentials work.

The order matters. What type a key has depends on the kind of its sink, which any source may tell; so kinds come first, then
text is decoded by type, then layers are merged, and only then are secrets read from the files that won.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from bridge.admin.settings import HttpSettings
from bridge.field_types import NAME
from bridge.sink import SinkSettings
from config.dockercloud_env import from_original, incomplete
from config.errors import ConfigError, Problems, no_such_type
from config.introspection import FILE, KeyPath, decode, models_in, secrets_of
from config.layers import Layer, find, from_environment, from_file, from_secrets, read_secret
from config.plugins import PluginError, Plugins, installed, load_plugin
from config.settings import Settings
from config.yaml_file import ReadError

__all__ = ["ConfigError", "find", "load", "load_http"]

DEFAULT_SINK: Final = "stdout"

_NO_STREAM: Final = (
    "no stream is configured; name one under `streams`, or set DOCKERCLOUD_USER and DOCKERCLOUD_APIKEY for that of an account"
)


def load(config: Path | None = None, env: Mapping[str, str] | None = None, plugins: Plugins | None = None) -> Settings:
    """Load the configuration.

    Args:
        config: The YAML file; if None, it is looked for (`find`).
        env: The environment; if None, that of the process.
        plugins: The kinds of sinks; if None, those that are installed. Only those in use are imported.

    Raises:
        ConfigError: With everything that is wrong.
    """
    env = os.environ if env is None else env
    plugins = installed() if plugins is None else plugins
    layers, lines = _read(config, env)
    problems = Problems(layers, lines)
    layers[:] = [_decoded(layer, problems) for layer in layers]
    if not any(layer.data.get("sinks") for layer in layers):
        # Without a word about sinks, one sees what comes, as with the original `docker-cloud event`. That a sink was meant
        # but misspelt can't be the reason: an unknown key is an error.
        layers.append(Layer({"sinks": {DEFAULT_SINK: {"type": DEFAULT_SINK}}}, {}))
    models = _models(layers, plugins, problems)
    _decode_sinks(layers, models, problems)
    layers.append(original := from_original(env, _merged(layers).get("streams", {})))
    for path, text in incomplete(original):
        problems.add(path, text)
    data = _merged(layers)
    if not data.get("streams") and not problems.touches("streams"):
        problems.add(("streams",), _NO_STREAM)
    _put_in_secrets(data, models, layers, problems)
    settings = _validated(data, models, problems)
    problems.raise_any()
    return settings


def load_http(config: Path | None = None, env: Mapping[str, str] | None = None) -> HttpSettings:
    """Load the part `http` alone, for who talks to a bridge that has its configuration elsewhere; see `load`.

    Raises:
        ConfigError: With what is wrong in this part; nothing else is looked at.
    """
    layers, lines = _read(config, os.environ if env is None else env)
    layers = [replace(layer, data={"http": layer.data["http"]} if "http" in layer.data else {}) for layer in layers]
    problems = Problems(layers, lines)
    layers[:] = [_decoded(layer, problems) for layer in layers]
    data = _merged(layers)
    _put_in_secrets({"sinks": {}, **data}, {}, layers, problems)
    settings = _validated(data, {}, problems)
    problems.raise_any()
    return settings.http


def _read(config: Path | None, env: Mapping[str, str]) -> tuple[list[Layer], list[str]]:
    """Read the sources, the one that wins first, and what is wrong with names of variables.

    Raises:
        ConfigError: Something could not be read. What it holds would be missing everywhere, so that is all to be said.
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


def _decoded(layer: Layer, problems: Problems) -> Layer:
    return replace(layer, data=decode(Settings, layer.data, partial(problems.add, layer=layer), text=layer.text))


def _merged(layers: list[Layer]) -> dict[str, Any]:
    return reduce(_merge, (layer.data for layer in reversed(layers)), {})


def _merge(below: Any, above: Any) -> Any:
    """Merge mappings key by key; of anything else, what is above wins. The result shares no mapping with either."""
    if not isinstance(above, dict):
        return above
    below = below if isinstance(below, dict) else {}
    return {key: _merge(below.get(key), above[key]) if key in above else _merge(None, below[key]) for key in {**below, **above}}


def _models(layers: list[Layer], plugins: Plugins, problems: Problems) -> dict[str, type[SinkSettings]]:
    """The settings model of each sink, by name, without the sinks whose type is missing or wrong."""
    models = {}
    for name, sink in _merged(layers).get("sinks", {}).items():
        path: KeyPath = ("sinks", name, "type")
        kind = sink.get("type")
        if kind is None:
            problems.add(path, f"is missing; types are {', '.join(sorted(plugins))}")
        elif not isinstance(kind, str) or kind not in plugins:
            problems.add(path, no_such_type(kind, plugins))
        else:
            try:
                models[name] = load_plugin(plugins, kind).Settings
            except PluginError as error:
                problems.add(path, str(error))
    return models


def _decode_sinks(layers: list[Layer], models: Mapping[str, type[SinkSettings]], problems: Problems) -> None:
    for layer in layers:
        sinks = layer.data.get("sinks", {})
        for name in sinks.keys() & models.keys():
            report = partial(problems.add, layer=layer)
            sinks[name] = decode(models[name], sinks[name], report, ("sinks", name), text=layer.text)


def _put_in_secrets(
    data: dict[str, Any], models: Mapping[str, type[SinkSettings]], layers: list[Layer], problems: Problems
) -> None:
    """Put the content of `<key>_file` under `<key>`, for every key that is a secret."""
    roots: list[tuple[KeyPath, Any, Any]] = [((), Settings, {**data, "sinks": {}})]
    roots += [(("sinks", name), model, data["sinks"][name]) for name, model in models.items()]
    for root, annotation, value in roots:
        for inner, model, mapping in list(models_in(annotation, value, root)):
            for key in secrets_of(model):
                if mapping.get(key + FILE) is not None:
                    _put_in_secret(mapping, (*inner, key), layers, problems)
                mapping.pop(key + FILE, None)


def _put_in_secret(mapping: dict[str, Any], path: KeyPath, layers: list[Layer], problems: Problems) -> None:
    key, twin = str(path[-1]), f"{path[-1]}{FILE}"
    twin_path = (*path[:-1], twin)
    if mapping.get(key) is not None:
        # They are two ways to say one thing: the higher source wins, as between any two; within one it is a contradiction.
        first, second = (next(index for index, layer in enumerate(layers) if layer.has(place)) for place in (path, twin_path))
        if first == second:
            other = layers[second].place(twin_path) if layers[second].text else twin
            problems.add(path, f"is set together with {other}; only one of the two can be meant")
        if first <= second:
            return
    file, mapping[key] = mapping[twin], "unread"  # So that after a problem nothing else is said to be missing beside it.
    if not isinstance(file, str) or not file:
        problems.add(path, "must be the path of a file that holds the secret", instead=twin_path)
        return
    try:
        mapping[key] = read_secret(Path(file))
    except ReadError as error:
        problems.add(path, str(error), instead=twin_path)


def _validated(data: dict[str, Any], models: Mapping[str, type[SinkSettings]], problems: Problems) -> Settings:
    """Make the settings; with problems, what is returned is worth nothing."""
    sinks = {}
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
        return Settings.model_validate({**data, "sinks": sinks})
    except ValidationError as error:
        problems.add_validation(error, Settings, data)
        return Settings()
