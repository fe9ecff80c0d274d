"""Topics made of events by a template such as `docker/{namespace}/{type}/{action}`; pure.

In an event's values, wildcards, separators, control characters and everything else that MQTT forbids in a topic name (MQTT 5.0,
sections 1.5.4 and 4.7) become `_`, and so does an empty level. A broker ends the connection over such a name: one event with a
NUL in its state would block all others.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from bridge.event import Fields
from sinks.template import Template

MAX_TEXT_BYTES: Final = 0xFFFF
"""Longest topic, or any other text in MQTT."""

# Control characters, surrogates and non-characters, which a broker may refuse in any text.
_UNFIT: Final = "\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufdd0-\\ufdef" + "".join(
    f"\\U{plane:04x}fffe\\U{plane:04x}ffff" for plane in range(17)
)
_UNFIT_IN_TEXT: Final = re.compile(f"[{_UNFIT}]")
_UNFIT_IN_LEVEL: Final = re.compile(f"[/+#{_UNFIT}]")

MAX_CACHED_CHARS: Final = 1024
"""Characters of the texts that a cache keeps under one key at most."""

_FIELDS: Final = ("namespace", "type", "action", "state", "resource_uuid", "uuid")


def clean_text(text: str) -> bytes:
    """Encode a text for a property, without characters that MQTT forbids, and cut to the allowed length."""
    if text.isascii() and text.isprintable() and len(text) <= MAX_TEXT_BYTES:
        return text.encode()
    return _UNFIT_IN_TEXT.sub("_", text).encode()[:MAX_TEXT_BYTES].decode(errors="ignore").encode()


class Topic:
    """Makes topics by a template in which `fields` may stand; `replace` has replacements for characters of their values.

    Attributes:
        template: The parsed template.

    Raises:
        ValueError: It can't be parsed, or makes no valid topic.
    """

    def __init__(self, text: str, fields: Sequence[str] = _FIELDS, replace: Mapping[str, str] | None = None) -> None:
        self._replace = str.maketrans(dict(replace or {}))
        self.template = Template(text, fields, {"id": "resource_uuid"})
        self.fill = lru_cache(4096)(self._fill)
        _check(text, self.template.render(["x"] * len(self.template.names)))

    def of(self, event: Fields) -> bytes:
        """Return the topic of an event. It may be longer than `MAX_TEXT_BYTES`."""
        values = self.template.values(event)
        # Long texts would fill the memory: a cache counts its entries, not their bytes.
        return self.fill(values) if sum(map(len, values)) <= MAX_CACHED_CHARS else self._fill(values)

    def _fill(self, values: tuple[str, ...]) -> bytes:
        """Return the topic with these values, in the order of the template's fields."""
        topic = self.template.render([_UNFIT_IN_LEVEL.sub("_", value.translate(self._replace)) for value in values])
        levels = [f"_{level[1:]}" if level.startswith("$") else level or "_" for level in topic.split("/")]
        return "/".join(levels).encode()


def _check(template: str, example: str) -> None:
    if "+" in example or "#" in example:
        raise ValueError(f"{template!r}: + and # are for subscribers, one can't publish to them")
    if _UNFIT_IN_TEXT.search(example):
        raise ValueError(f"{template!r}: has characters that can't stand in a topic")
    if example.startswith("$"):
        raise ValueError(f"{template!r}: topics that begin with $ are the broker's own")
    if not all(example.split("/")):
        raise ValueError(f"{template!r}: has an empty level; begin and end without a / and put one between levels")
    if len(example.encode()) > MAX_TEXT_BYTES // 2:
        raise ValueError(f"{template[:50]!r}...: is too long for a topic")
