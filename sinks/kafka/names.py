"""Names made of an event's fields: the topic and the key of a Kafka record; pure.

A template is text with fields in braces, `docker.{namespace}.{type}`. Only fields that are listed may stand there, plain: no
attribute, no index, no format. `{{` and `}}` stand for braces.
"""

import re
from collections.abc import Collection, Sequence
from functools import lru_cache
from string import Formatter
from typing import Final

from bridge.event import Fields

TOPIC_FIELDS: Final = ("type", "action", "state", "namespace", "resource_uuid")
KEY_FIELDS: Final = (*TOPIC_FIELDS, "resource_uri", "uuid")

_LONGEST: Final = 249
"""Characters of a topic's name at most, and what they may be: org.apache.kafka.common.internals.Topic."""
_LEGAL: Final = re.compile(r"[a-zA-Z0-9._-]+")
_ILLEGAL: Final = re.compile(r"[^a-zA-Z0-9._-]")
_LAST_SEGMENT: Final = re.compile(r"([^/]+)/?$")
_REMEMBERED: Final = 16_384


class Template:
    """A template that was understood.

    Args:
        text: The template.
        fields: The fields that may stand in it.

    Attributes:
        literals: What stands in it besides the fields.
        fixed: Whether it is the same for every event.
        shortest: How many characters come of it at least, if every field has one.

    Raises:
        ValueError: It can't be understood, in words.
    """

    def __init__(self, text: str, fields: Collection[str]) -> None:
        self._parts = _parse(text, fields)
        self._names = [name for _, name in self._parts if name is not None]
        self.literals = "".join(literal for literal, _ in self._parts)
        self.fixed = not self._names
        self.shortest = len(self.literals) + len(self._names)

    def values(self, event: Fields) -> tuple[str, ...]:
        """What the event has for the fields of the template, in their order."""
        return tuple([_resource_uuid(event) if name == "resource_uuid" else getattr(event, name) for name in self._names])

    def render(self, values: Sequence[str]) -> str:
        """Put values in the place of the fields."""
        left = iter(values)
        return "".join([literal + (next(left) if name is not None else "") for literal, name in self._parts])


class Topics:
    """Finds the topic of an event.

    Args:
        text: The template.

    Attributes:
        fixed: The only topic there is; None if it depends on the event.

    Raises:
        ValueError: It can't be understood, or makes no legal name.
    """

    def __init__(self, text: str) -> None:
        self._template = Template(text, TOPIC_FIELDS)
        wrong = _ILLEGAL.search(self._template.literals)
        if wrong:
            raise ValueError(f"{wrong[0]!r} can't stand in the name of a topic; letters, digits, `.`, `_` and `-` can")
        self.fixed = self._template.render(()) if self._template.fixed else None
        if self.fixed is not None and (problem := problem_of(self.fixed)):
            raise ValueError(problem)
        if self._template.shortest > _LONGEST:
            shortest = self._template.shortest
            raise ValueError(
                f"the name of a topic has {_LONGEST} characters at most, those of this template have {shortest} or more"
            )
        self._name = lru_cache(_REMEMBERED)(self._render)

    def name(self, event: Fields) -> str:
        """The topic of an event; what can't stand in a name becomes `_`, and so does a field that is empty."""
        return self.fixed if self.fixed is not None else self._name(self._template.values(event))

    def _render(self, values: tuple[str, ...]) -> str:
        return self._template.render([_ILLEGAL.sub("_", value) or "_" for value in values])


class Keys:
    """Finds the key of an event.

    Args:
        text: The template; records of an empty one have no key.

    Raises:
        ValueError: It can't be understood.
    """

    def __init__(self, text: str) -> None:
        self._template = Template(text, KEY_FIELDS)
        self._none = text == ""
        self._is_uri = text == "{resource_uri}"

    def key(self, event: Fields) -> bytes | None:
        """The key of an event; None for none."""
        if self._is_uri:
            return event.resource_uri.encode()
        return None if self._none else self._template.render(self._template.values(event)).encode()


def problem_of(topic: str) -> str | None:
    """Say why this can't be the name of a topic; None if it can."""
    if topic in {"", ".", ".."}:
        return f"{topic!r} can't be the name of a topic"
    if len(topic) > _LONGEST:
        return f"the name of a topic has {_LONGEST} characters at most, this one has {len(topic)}"
    return None if _LEGAL.fullmatch(topic) else f"{topic!r} can't be the name of a topic"


def _parse(text: str, fields: Collection[str]) -> list[tuple[str, str | None]]:
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"not a template: {error}") from None
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if name not in fields or form or conversion:
            written = "{" + name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"
            raise ValueError(f"{written} can't stand here; fields are {', '.join('{' + field + '}' for field in fields)}")
    return [(literal, name) for literal, name, _, _ in parts]


def _resource_uuid(event: Fields) -> str:
    """The last part of the resource URI, which is the resource's uuid."""
    found = _LAST_SEGMENT.search(event.resource_uri)
    return found[1] if found else ""
