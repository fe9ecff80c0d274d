"""Templates of topics and keys, such as `docker.{namespace}.{type}`; pure.

Only listed fields may stand in braces, without attribute, index or format. `{{` and `}}` are literal braces.
"""

from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from string import Formatter

from bridge.event import Fields


class Template:
    """A parsed template.

    Args:
        text: The template.
        fields: The fields that may stand in it.
        old_names: Old names of fields, which are still accepted, with the new ones.

    Attributes:
        names: The fields in the template, in their order.
        renamed: The old names among them as they were written, with the new ones.
        literals: The text besides the fields.

    Raises:
        ValueError: It can't be parsed.
    """

    def __init__(self, text: str, fields: Collection[str], old_names: Mapping[str, str] | None = None) -> None:
        self.names: list[str] = []
        self.renamed: dict[str, str] = {}
        self.literals = self._form = ""
        try:
            parts = list(Formatter().parse(text))
        except ValueError:
            raise ValueError(f"{text!r}: a brace without its other half; write {{{{ or }}}} for a brace itself") from None
        for literal, written, form, conversion in parts:
            self.literals += literal
            self._form += literal.replace("%", "%%")
            if written is None:
                continue
            name = (old_names or {}).get(written, written)
            if name not in fields or form or conversion:
                whole = written + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
                raise ValueError(f"{{{whole}}} can't stand here; fields are {', '.join(f'{{{field}}}' for field in fields)}")
            if name != written:
                self.renamed[written] = name
            self.names.append(name)
            self._form += "%s"
        self._getters = [resource_uuid if name == "resource_uuid" else attrgetter(name) for name in self.names]

    def values(self, event: Fields) -> tuple[str, ...]:
        """Return the values of the template's fields, in their order."""
        return tuple([get(event) for get in self._getters])

    def render(self, values: Sequence[str]) -> str:
        """Replace the fields by values."""
        return self._form % tuple(values)


def resource_uuid(event: Fields) -> str:
    """Return the last segment of the resource URI."""
    return event.resource_uri.rstrip("/").rpartition("/")[2]
