"""The effective configuration as YAML: each value with the place that it comes from; secrets are masked."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from config.introspection import FILE, KeyPath
from config.layers import Layer
from config.load import load_with_layers


def effective(config: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """Return every value that a bridge would use, as a file that can be loaded but for its secrets.

    Raises:
        ConfigError: The configuration can't be used.
    """
    settings, layers = load_with_layers(config, os.environ if env is None else env)
    return "\n".join(_lines(settings.model_dump(), layers, ())) + "\n"


def _lines(values: Mapping[str, Any], layers: Sequence[Layer], path: KeyPath) -> Iterator[str]:
    for key, value in values.items():
        begin, place = f"{'  ' * len(path)}{_text(key)}:", (*path, key)
        if isinstance(value, dict) and value:
            yield begin
            yield from _lines(value, layers, place)
        else:
            yield f"{begin} {_text(value)}  # {_origin(layers, place)}"


def _text(value: Any) -> str:
    """Return a value as JSON, which is YAML; a plain word as it is."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w-]*", value) and value.lower() not in {"true", "false", "null"}:
        return value
    # The text of a secret is a row of stars.
    return re.sub(r"[a-z]+://[^\s\"]+", _masked, json.dumps(value, default=str, ensure_ascii=False)).replace("${", "$${")


def _masked(url: re.Match[str]) -> str:
    """Hide what may be a secret in a URL: a password, values of the query, long parts of the path."""
    scheme, _, rest = url[0].partition("://")
    host, slash, path = re.sub(r"=[^&]*", "=***", re.sub(r"^[^/@]*@", "***@", rest)).partition("/")
    return f"{scheme}://{host}{slash}" + re.sub(r"[^/?=&]{16,}", "***", path)


def _origin(layers: Sequence[Layer], path: KeyPath) -> str:
    twin = (*path[:-1], f"{path[-1]}{FILE}")
    for layer in layers:
        if layer.labels and layer.has(path):
            return layer.place(path)
        if layer.has(twin):
            return f"{layer.value(twin)}, named by {layer.place(twin)}"
    return "default"
