"""Differences between two configurations; pure."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from pydantic import BaseModel, SecretStr

from config.settings import Settings

_FIXED = ("journal", "http")
"""Sections that are read only when the process starts."""


class Changes(NamedTuple):
    """The names of the streams or sinks that were added, removed and changed."""

    added: list[str]
    removed: list[str]
    changed: list[str]


def changes(old: Mapping[str, BaseModel], new: Mapping[str, BaseModel]) -> Changes:
    """Compare streams or sinks, secrets included."""
    return Changes(
        [name for name in new if name not in old],
        [name for name in old if name not in new],
        [name for name in new if name in old and new[name] != old[name]],
    )


def needing_restart(old: Settings, new: Settings) -> list[str]:
    """Return the keys, like `journal.max_bytes`, that differ and can't be changed while the process runs."""
    return [key for section in _FIXED for key in _differing(getattr(old, section), getattr(new, section), section)]


def as_far_as_possible(old: Settings, new: Settings) -> Settings:
    """Return the new settings with the old sections that can't be changed while the process runs."""
    return new.model_copy(update={section: getattr(old, section) for section in _FIXED})


def _differing(old: BaseModel, new: BaseModel, path: str) -> Iterator[str]:
    for key in type(old).model_fields:
        before, after = getattr(old, key), getattr(new, key)
        if isinstance(before, BaseModel) and isinstance(after, BaseModel):
            yield from _differing(before, after, f"{path}.{key}")
        elif before != after and not (isinstance(before, SecretStr) and isinstance(after, SecretStr)):
            # A changed secret needs no restart: `config.rotation` reads it.
            yield f"{path}.{key}"
