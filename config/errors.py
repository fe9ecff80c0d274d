"""Problems of a configuration: collected and reported together, one line each, without secrets."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from config.introspection import FILE, KeyPath, at, keys_of
from config.layers import Layer, dotted
from config.settings import Settings

_TEXTS: Final = {
    "string_type": "must be text",
    "path_type": "must be a path",
    "list_type": "must be a list, like [a, b]",
    "dict_type": "must be a mapping: keys with values",
    "model_type": "must be a mapping: keys with values",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "byte_size": "must be a size: bytes, or a number with KiB, MiB or GiB",
    "byte_size_unit": "must be a size: bytes, or a number with KiB, MiB or GiB",
    "string_too_short": "is empty",
    "too_short": "is empty",
    "invalid_key": "must be text: put the key in quotes",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
}

_OWN_TEXT: Final = frozenset({"value_error", "assertion_error"})
"""Errors whose text is a validator's own message."""

_NO_KEY: Final = "holds a key that does not exist, without a value; text with a colon or a comma needs quotes, a colon a space"


class ConfigError(Exception):
    """The configuration can't be used.

    Attributes:
        problems: One line for each problem: the key, what is wrong, and what would be right. No secrets.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = sorted({" ".join(problem.split()) for problem in problems})
        super().__init__("\n".join(self.problems))


@dataclass
class Problems:
    """Collects problems, each under the variable or file and key that the user knows.

    Of several problems at one path only the first is kept: the others are its consequences.

    Attributes:
        layers: The sources, the one that wins first. The list may grow.
        found: A line for each problem, by path.
    """

    layers: Sequence[Layer]
    found: dict[KeyPath, str] = field(default_factory=dict)

    def add(self, path: KeyPath, text: str, *, layer: Layer | None = None, instead: KeyPath | None = None) -> None:
        """Add the problem at a path.

        Args:
            path: The path; a second problem at it is ignored.
            text: What is wrong.
            layer: The layer that has the problem, if it is known.
            instead: The path that is shown, if it is another one.
        """
        shown = path if instead is None else instead
        self.found.setdefault(path, f"{layer.place(shown) if layer else self._place(shown)}: {text}")

    def touches(self, section: str) -> bool:
        """Tell whether a section has a problem."""
        return any(path[:1] == (section,) for path in self.found)

    def add_validation(self, error: ValidationError, annotation: Any, data: Any, path: KeyPath = ()) -> None:
        """Add the problems that a type has with the `data` at a path; below the top, the type is a plug-in's."""
        for details in error.errors(include_url=False):
            tag = str(details.get("ctx", {}).get("discriminator", "")).strip("'")
            inner, model = _locate(details["loc"] + ((tag,) if tag else ()), annotation, data)
            text = _explain(details, inner, model)
            given = details["input"]
            if path and details["type"] in _OWN_TEXT and isinstance(given, str) and len(given) > 3:
                # A plug-in's validator may quote its input, which may be a secret. Shorter text occurs in any sentence.
                text = text.replace(given, "…")
            self.add(path + inner, text, instead=(*path, *inner[:-1]) if text == _NO_KEY else None)

    def _place(self, path: KeyPath) -> str:
        for known in (path, (*path[:-1], f"{path[-1]}{FILE}") if path else path):
            for layer in self.layers:
                if layer.has(known):
                    return layer.place(known)
        # A missing key is best added where the keys around it are, and rather in the file than in a variable.
        for length in range(len(path), 0, -1):
            for layer in reversed(self.layers):
                if layer.has(path[:length]):
                    return layer.place(path)
        return next((layer.place(path) for layer in self.layers if not layer.text), dotted(path))


def no_such_type(kind: Any, kinds: Iterable[str]) -> str:
    """Return the text for a type that does not exist: the closest type, and all types."""
    names = sorted(kinds)
    close = _suggestion(kind, names)
    return f"no such type{close}{' Types' if close else '; types'} are {', '.join(names)}"


def _suggestion(given: Any, names: Iterable[str]) -> str:
    close = get_close_matches(str(given).lower(), list(names), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _locate(loc: tuple[int | str, ...], annotation: Any, data: Any) -> tuple[KeyPath, type[BaseModel] | None]:
    """Return the path of an error in the data, and the model that has its last key.

    pydantic's own path also contains members of unions, which are not in the data. A missing key is not in the data either;
    it is kept if the model has it.
    """
    path: KeyPath = ()
    value, parent = data, None
    for key in loc:
        try:
            value, parent = value[key], value
        except (LookupError, TypeError):
            continue
        path = (*path, key)
    model = at(annotation, data, path).model_for(value)
    if model and loc and path[-1:] != loc[-1:] and loc[-1] in model.model_fields:
        return (*path, loc[-1]), model
    return path, at(annotation, data, path[:-1]).model_for(parent) if path else None


def _explain(details: ErrorDetails, path: KeyPath, model: type[BaseModel] | None) -> str:
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    key = str(path[-1]) if path else ""
    if kind == "string_type" and isinstance(given, (bool, int, float)):
        return "must be text: put it in quotes"
    match kind:
        case _ if kind in _OWN_TEXT:
            text = str(context["error"])
        case "missing":
            about = model.model_fields[key].description if model and key in model.model_fields else None
            text = f"is missing: {about}" if about else "is missing"
        case "extra_forbidden":
            text = _NO_KEY if given is None and _may_be_half_a_secret(path, model) else _unknown_key(key, model)
        case "literal_error":
            text = f"must be {context['expected']}"
        case "union_tag_invalid" | "union_tag_not_found":
            text = no_such_type(context.get("tag"), re.findall(r"'([^']+)'", str(context.get("expected_tags"))))
        case _:
            limits = {name: f"{value:g}" if isinstance(value, float) else value for name, value in context.items()}
            own = _TEXTS.get(kind)
            text = own.format_map(limits) if own else details["msg"].replace("Input should be", "must be", 1)
    return text


def _may_be_half_a_secret(path: KeyPath, model: type[BaseModel] | None) -> bool:
    """Tell whether a key without a value may show a secret, like `{password: one,half}` or `{password:secret}`."""
    key = str(path[-1])
    return model is not None and model is not Settings and (":" in key or not _suggestion(key, keys_of(model)))


def _unknown_key(key: str, model: type[BaseModel] | None) -> str:
    keys = sorted(keys_of(model)) if model else []
    return "no such key" + (_suggestion(key, keys) or f"; keys are {', '.join(keys)}")
