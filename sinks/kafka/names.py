"""The topic and the key of a Kafka record, made of an event's fields by templates; pure."""

import re
from functools import lru_cache
from typing import Final

from bridge.event import Fields
from sinks.template import Template

TOPIC_FIELDS: Final = ("type", "action", "state", "namespace", "resource_uuid")
KEY_FIELDS: Final = (*TOPIC_FIELDS, "resource_uri", "uuid")

_LONGEST: Final = 249
"""Characters of a topic's name at most, and what they may be: org.apache.kafka.common.internals.Topic."""
_LEGAL: Final = re.compile(r"[a-zA-Z0-9._-]+")
_ILLEGAL: Final = re.compile(r"[^a-zA-Z0-9._-]")
_REMEMBERED: Final = 16_384


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
        self.fixed = None if self._template.names else self._template.render(())
        if self.fixed is not None and (problem := problem_of(self.fixed)):
            raise ValueError(problem)
        shortest = len(self._template.literals) + len(self._template.names)
        if shortest > _LONGEST:
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
