"""Topics made from events by a template such as `docker/{namespace}/{type}/{action}`; pure.

What an event brings into a level is made fit for it: wildcards, separators, control characters and whatever else MQTT forbids
in a name (MQTT 5.0, sections 1.5.4 and 4.7) become `_`, and so does a level without anything in it. A broker ends the
connection over such a name, so that one event with a NUL in its state would stop all others.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from string import Formatter
from typing import Final

from bridge.event import Fields

LONGEST: Final = 0xFFFF
"""Bytes of a topic, or of any other text in MQTT, at most."""

# Control characters, surrogates and non-characters: what a broker may refuse in any text.
_UNFIT: Final = "\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufdd0-\\ufdef" + "".join(
    f"\\U{plane:04x}fffe\\U{plane:04x}ffff" for plane in range(17)
)
_UNFIT_IN_TEXT: Final = re.compile(f"[{_UNFIT}]")
_UNFIT_IN_LEVEL: Final = re.compile(f"[/+#{_UNFIT}]")

_CACHED: Final = 4096
"""Topics that are remembered; most templates make few."""


def resource_id(fields: Fields) -> str:
    """Read the resource's own id, the last part of its URI."""
    return fields.resource_uri.rstrip("/").rpartition("/")[2]


_FIELDS: Final[dict[str, Callable[[Fields], str]]] = {
    "namespace": lambda fields: fields.namespace,
    "type": lambda fields: fields.type,
    "action": lambda fields: fields.action,
    "state": lambda fields: fields.state,
    "id": resource_id,
    "uuid": lambda fields: fields.uuid,
}
"""What a template can name. Nothing else of an event can be reached, not even its attributes."""


def clean_text(text: str) -> bytes:
    """Encode a text for a property: without what MQTT forbids, and cut to what it allows."""
    if text.isascii() and text.isprintable() and len(text) <= LONGEST:
        return text.encode()
    return _UNFIT_IN_TEXT.sub("_", text).encode()[:LONGEST].decode(errors="ignore").encode()


class Topic:
    """A topic template that was checked.

    Args:
        template: Levels separated by `/`, with fields in braces.
        fields: The names that may stand in braces.

    Raises:
        ValueError: It is no template, and why.
    """

    def __init__(self, template: str, fields: Sequence[str] = tuple(_FIELDS)) -> None:
        self.names: list[str] = []
        form = ""
        try:
            parts = list(Formatter().parse(template))
        except ValueError:
            raise ValueError(f"{template!r}: a brace without its other half; write {{{{ or }}}} for a brace itself") from None
        for literal, name, spec, conversion in parts:
            form += literal.replace("%", "%%")
            if name is None:
                continue
            if name not in fields or spec or conversion:
                raise ValueError(f"{template!r}: no such field: {{{name}}}; fields are {', '.join(fields)}")
            self.names.append(name)
            form += "%s"
        self._form = form
        self._getters = [_FIELDS[name] for name in self.names if name in _FIELDS]
        self._cache: dict[tuple[str, ...], bytes] = {}
        _check(template, form % (("x",) * len(self.names)))

    def fill_with(self, values: Mapping[str, str]) -> bytes:
        """Make a topic of values by name."""
        return self._fill(tuple([values[name] for name in self.names]))

    def _fill(self, values: tuple[str, ...]) -> bytes:
        topic = self._form % tuple([_UNFIT_IN_LEVEL.sub("_", value) for value in values])
        levels = [f"_{level[1:]}" if level.startswith("$") else level or "_" for level in topic.split("/")]
        return "/".join(levels).encode()

    def of(self, fields: Fields) -> bytes:
        """Make the topic of an event; it may be longer than `LONGEST`."""
        values = tuple([get(fields) for get in self._getters])
        topic = self._cache.get(values)
        if topic is None:
            if len(self._cache) >= _CACHED:
                self._cache.clear()
            topic = self._cache[values] = self._fill(values)
        return topic


def _check(template: str, example: str) -> None:
    if "+" in example or "#" in example:
        raise ValueError(f"{template!r}: + and # are for subscribers, one can't publish to them")
    if _UNFIT_IN_TEXT.search(example):
        raise ValueError(f"{template!r}: has characters that can't stand in a topic")
    if example.startswith("$"):
        raise ValueError(f"{template!r}: topics that begin with $ are the broker's own")
    if not all(example.split("/")):
        raise ValueError(f"{template!r}: has an empty level; begin and end without a / and put one between levels")
    if len(example.encode()) > LONGEST // 2:
        raise ValueError(f"{template[:50]!r}...: is too long for a topic")
