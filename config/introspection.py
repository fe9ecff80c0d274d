"""Looking at models as types: which key is what, so that text can be decoded and files of secrets read before validation.

Sources are merged before they are validated, and three things depend on a key's type: whether text from the environment
is a list or a mapping, whether a mapping was meant where nothing stands, and whether a key is a secret and so may be given
by a file (`<key>_file`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import NoneType, UnionType
from typing import Annotated, Any, Final, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr

KeyPath = tuple[str | int, ...]
"""Where something stands: the keys (and places in lists) that lead to it."""

Report = Callable[[KeyPath, str], None]
"""Takes where a problem is and what it is."""

FILE: Final = "_file"


def unwrap(annotation: Any) -> Any:
    """Strip a type of its metadata, and of None if one type remains then."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif len(members := [member for member in _members(annotation) if member is not NoneType]) == 1:
            annotation = members[0]
        else:
            return annotation


def is_model(kind: Any) -> TypeGuard[type[BaseModel]]:
    """Whether a type is a model."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def is_mapping(kind: Any) -> bool:
    """Whether a type (unwrapped) stands for a mapping: a model, a union of models, or a mapping of anything."""
    members = _members(kind)
    if members:
        return all(is_model(unwrap(member)) for member in members)
    return is_model(kind) or kind is dict or get_origin(kind) in {dict, Mapping}


def is_list(kind: Any) -> bool:
    """Whether a type (unwrapped) stands for several values of one kind."""
    origin = get_origin(kind) or kind
    return origin in {list, tuple, set, frozenset, Sequence, AbstractSet}


def model_for(kind: Any, value: Any) -> type[BaseModel] | None:
    """The model of a value: the type itself, or the member of a union that has the value's `type` (else the first one)."""
    if is_model(kind):
        return kind
    models = [member for member in map(unwrap, _members(kind)) if is_model(member)]
    tag = value.get("type") if isinstance(value, dict) else None
    fitting = (model for model in models if tag is not None and tag in _tags(model))
    return next(fitting, models[0] if models else None)


def child(annotation: Any, key: str | int, value: Any) -> Any:
    """The type of what stands under `key` of `value`, a value of a type; None if there can be no such key."""
    kind = unwrap(annotation)
    if (model := model_for(kind, value)) is not None:
        field = model.model_fields.get(str(key))
        return field.annotation if field else None
    arguments = get_args(kind)
    if not arguments or not (is_mapping(kind) or is_list(kind)):
        return None
    return arguments[1 if is_mapping(kind) else 0]


def at(annotation: Any, value: Any, path: KeyPath) -> Any:
    """The type of what stands at a path in a value of a type; None if there can be no such path."""
    for key in path:
        annotation = child(annotation, key, value)
        try:
            value = value[key]
        except (LookupError, TypeError):
            value = None
    return annotation


def secrets_of(model: type[BaseModel]) -> list[str]:
    """The keys of a model that are secrets, and so can be given by a file: `<key>_file` holds its path.

    A key of that name that the model has itself means something else, and stays what it is.
    """
    fields = model.model_fields
    return [key for key, field in fields.items() if unwrap(field.annotation) is SecretStr and key + FILE not in fields]


def keys_of(model: type[BaseModel]) -> list[str]:
    """All keys that may stand in a mapping for this model."""
    return [*model.model_fields, *(key + FILE for key in secrets_of(model))]


def models_in(annotation: Any, value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, type[BaseModel], dict[str, Any]]]:
    """Find all mappings that stand for models, with their paths and models, parents first."""
    kind = unwrap(annotation)
    if isinstance(value, dict) and is_mapping(kind):
        if (model := model_for(kind, value)) is not None:
            yield path, model, value
        for key, inner in value.items():
            yield from models_in(child(kind, key, value), inner, (*path, key))
    elif isinstance(value, list) and is_list(kind):
        for index, inner in enumerate(value):
            yield from models_in(child(kind, index, value), inner, (*path, index))


OMIT: Final = object()
"""Stands for what was reported and is to be left out."""


def decode(annotation: Any, value: Any, report: Report, path: KeyPath = (), *, text: bool) -> Any:
    """Turn the values of one source into what their types want, as far as mappings and lists are concerned.

    Nothing becomes an empty mapping where one is wanted, as in a YAML file in which all keys of a section are commented out.
    What can't be a mapping is reported and left out. Everything else stays as it is, for validation.

    If the source has only `text` (variables, files), it becomes a mapping or a list where one is wanted: from JSON, or, for
    a list of simple values, from what stands between commas.
    """
    kind = unwrap(annotation)
    if text and isinstance(value, str) and (is_mapping(kind) or is_list(kind)):
        value = _from_text(kind, value, report, path)
    if not is_mapping(kind) or value is OMIT or (value is None and _allows_none(annotation)):
        return value
    if value is None:
        return {}
    if not isinstance(value, dict):
        report(path, "must be a mapping: keys with values")
        return OMIT
    inner = {key: decode(child(kind, key, value), item, report, (*path, key), text=text) for key, item in value.items()}
    return {key: item for key, item in inner.items() if item is not OMIT}


def _from_text(kind: Any, text: str, report: Report, path: KeyPath) -> Any:
    if text.lstrip().startswith(("{", "[")):
        return _from_json(text, report, path)
    if is_list(kind) and not is_mapping(unwrap(child(kind, 0, []))):
        return [part.strip() for part in text.split(",") if part.strip()]
    if text.strip():
        report(path, 'must be JSON, like [{"key": "value"}]' if is_list(kind) else 'must be JSON, like {"key": "value"}')
        return OMIT
    return [] if is_list(kind) else {}


def _from_json(text: str, report: Report, path: KeyPath) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        report(path, f"is not valid JSON at line {error.lineno}, column {error.colno}")
    except RecursionError:
        report(path, "is nested too deeply")
    return OMIT


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("type")
    return get_args(field.annotation) if field else ()


def _allows_none(annotation: Any) -> bool:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation is None or NoneType in _members(annotation)


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in {Union, UnionType} else ()
