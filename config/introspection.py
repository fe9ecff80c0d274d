"""The types of a configuration's keys, so that text can be decoded and files of secrets be read before validation.

Sources are merged before they are validated. Three things depend on a key's type: whether text from the environment
is a list or a mapping, whether a key without a value is an empty mapping, and whether a key is a secret and so may be given
by a file (`<key>_file`).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache, reduce
from types import NoneType, UnionType
from typing import Annotated, Any, Final, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

KeyPath = tuple[str | int, ...]
"""The keys, and indexes of lists, that lead to a value."""

Report = Callable[[KeyPath, str], None]
"""Takes the path of a problem and its text."""

FILE: Final = "_file"


@dataclass(frozen=True)
class Shape:
    """A type, taken apart.

    Attributes:
        annotation: The type as it is declared; None if no type is known.
        kind: The type without its metadata, and without None if one type remains then.
        optional: Whether it allows None.
        models: The models among the members of the union, or the model that it is.
        is_mapping: Whether it is a mapping: a model, a union of models, or a mapping of anything.
        is_list: Whether it holds several values of one kind.
        inner: The type of the values of a mapping or list.
    """

    annotation: Any
    kind: Any
    optional: bool
    models: tuple[type[BaseModel], ...]
    is_mapping: bool
    is_list: bool
    inner: "Shape | None"

    def model_for(self, value: Any) -> type[BaseModel] | None:
        """Return the model that has the value's `type`, else the first model, if there is one."""
        if len(self.models) > 1 and isinstance(value, dict) and value.get("type") is not None:
            for model in self.models:
                if "type" in model.model_fields and value["type"] in get_args(model.model_fields["type"].annotation):
                    return model
        return self.models[0] if self.models else None

    def child(self, key: str | int, value: Any) -> "Shape":
        """Return the type of what stands under `key` of `value`, a value of this type."""
        if (model := self.model_for(value)) is not None:
            return fields_of(model).get(str(key), _UNKNOWN)
        return self.inner or _UNKNOWN


def shape_of(annotation: Any) -> Shape:
    """Take a type apart."""
    kind, optional = annotation, False
    while True:
        members = get_args(kind) if get_origin(kind) in {Union, UnionType} else ()
        optional = optional or NoneType in members
        present = [member for member in members if member is not NoneType]
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        elif len(present) == 1:
            kind = present[0]
        else:
            break
    kinds = [shape_of(member).kind for member in members] or [kind]
    models = tuple(filter(_is_model, kinds))
    origin = get_origin(kind) or kind
    is_mapping = len(models) == len(kinds) or origin in (dict, Mapping)
    is_list = origin in (list, tuple, set, frozenset, Sequence, AbstractSet)
    arguments = get_args(kind) if not models and (is_mapping or is_list) else ()
    inner = shape_of(arguments[1 if is_mapping else 0]) if arguments else None
    return Shape(annotation, kind, optional, models, is_mapping, is_list, inner)


@cache
def fields_of(model: type[BaseModel]) -> Mapping[str, Shape]:
    """Return the types of a model's keys."""
    return {key: shape_of(field.annotation) for key, field in model.model_fields.items()}


def at(annotation: Any, value: Any, path: KeyPath) -> Shape:
    """Return the type of what stands at a path in a value of a type."""
    shape = shape_of(annotation)
    for key in path:
        shape = shape.child(key, value)
        try:
            value = value[key]
        except (LookupError, TypeError):
            value = None
    return shape


@cache
def secrets_of(model: type[BaseModel]) -> Sequence[str]:
    """Return the keys of a model that are secrets, and so can be given by a file: `<key>_file` holds its path.

    If the model itself has a key `<key>_file`, that key keeps its own meaning.
    """
    fields = fields_of(model)
    return [key for key, shape in fields.items() if shape.kind is SecretStr and key + FILE not in fields]


def keys_of(model: type[BaseModel]) -> list[str]:
    """Return all keys that may stand in a mapping for this model."""
    return [*model.model_fields, *(key + FILE for key in secrets_of(model))]


def models_in(annotation: Any, value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, type[BaseModel], dict[str, Any]]]:
    """Find all mappings that stand for models, with their paths and models, parents first."""
    return _models_in(shape_of(annotation), value, path)


def merged(layers: Iterable[Any]) -> Any:
    """Merge nested mappings key by key, the one that wins first; anything else is replaced.

    The result shares no mapping with the layers.
    """
    return reduce(_merge, reversed(list(layers)), {})


OMIT: Final = object()
"""Stands for a value that was reported and is left out."""


def decode(annotation: Any, value: Any, report: Report, path: KeyPath = (), *, text: bool) -> Any:
    """Turn the values of one source into the mappings and lists that their types want.

    None becomes an empty mapping where a mapping is wanted, as in a YAML file in which all keys of a section are commented
    out. A value that can't be a mapping is reported and left out. All other values stay as they are, for validation.

    If the source has only `text` (variables, files), it becomes a mapping or a list where one is wanted: from JSON, or, for
    a list of simple values, from the parts between commas.
    """
    return _decode(shape_of(annotation), value, report, path, text=text)


def _decode(shape: Shape, value: Any, report: Report, path: KeyPath, *, text: bool) -> Any:
    if text and isinstance(value, str) and (shape.is_mapping or shape.is_list):
        value = _from_text(shape, value, report, path)
    if not shape.is_mapping or value is OMIT or (value is None and shape.optional):
        return value
    if value is None:
        return {}
    if not isinstance(value, dict):
        report(path, "must be a mapping: keys with values")
        return OMIT
    decoded = {}
    for key, inner in value.items():
        decoded[key] = _decode(shape.child(key, value), inner, report, (*path, key), text=text)
    return {key: inner for key, inner in decoded.items() if inner is not OMIT}


def _from_text(shape: Shape, text: str, report: Report, path: KeyPath) -> Any:
    if text.lstrip().startswith(("{", "[")):
        return _from_json(text, report, path)
    if shape.is_list and not shape.child(0, []).is_mapping:
        return [part.strip() for part in text.split(",") if part.strip()]
    if text.strip():
        report(path, 'must be JSON, like [{"key": "value"}]' if shape.is_list else 'must be JSON, like {"key": "value"}')
        return OMIT
    return [] if shape.is_list else {}


def _from_json(text: str, report: Report, path: KeyPath) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        report(path, f"is not valid JSON at line {error.lineno}, column {error.colno}")
    except RecursionError:
        report(path, "is nested too deeply")
    return OMIT


def _models_in(shape: Shape, value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, type[BaseModel], dict[str, Any]]]:
    if isinstance(value, dict) and shape.is_mapping:
        if (model := shape.model_for(value)) is not None:
            yield path, model, value
        for key, inner in value.items():
            if isinstance(inner, dict | list):
                yield from _models_in(shape.child(key, value), inner, (*path, key))
    elif isinstance(value, list) and shape.is_list:
        for index, inner in enumerate(value):
            yield from _models_in(shape.child(index, value), inner, (*path, index))


def _merge(below: Any, above: Any) -> Any:
    if not isinstance(above, dict):
        return above
    result = dict(below) if isinstance(below, dict) else {}
    for key, value in above.items():
        result[key] = _merge(result.get(key), value) if isinstance(value, dict) else value
    return result


def _is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


_UNKNOWN: Final = shape_of(None)
