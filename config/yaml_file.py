"""The YAML file: read as YAML 1.2. Every error is reported in one line that shows nothing of the content.

PyYAML implements YAML 1.1, where `no` and `off` are booleans, `012` is ten and `2026-01-01` is a date. In version 1.2, which
editors and the JSON Schema use, all these are text: `true`, `false` and `null` are the only words that are not text.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

_TAG: Final = "tag:yaml.org,2002:"
_UNSET: Final = "the variable "
# One without an end goes to the end of the text. So no character is looked at twice.
_VARIABLE: Final = re.compile(r"\$\$(?=\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?(?P<end>\}|\Z)")
_TWICE: Final = "this key is there twice"
_MAX_BYTES: Final = 2 << 20
_MAX_VALUES: Final = 20_000
"""Values of a configuration at most. An alias stands for all that is in it, and a merge key (`<<`) copies that."""

_QUOTED: Final = re.compile(r"""\s*(['"])(.*?)\1""")


class ReadError(ValueError):
    """A file can't be read; the text gives the reason and shows nothing of its content."""


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys, of which PyYAML would silently take the last, and replaces `${VARIABLE}` in values."""

    env: Mapping[str, str] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, _TWICE, key.start_mark)
                seen.add(key.value)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if "$" not in node.value:
            return node

        def replace(match: re.Match[str]) -> str:
            name, default = match["name"], match["default"]
            if name is None:
                return "$"
            if not match["end"]:
                return match[0]
            value = self.env.get(name) or default
            if value is None:
                problem = f"{_UNSET}{name} is not set; write ${{{name}:-}} for an empty default, or $${{…}} for the text itself"
                raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
            return str(value)

        value = _VARIABLE.sub(replace, node.value)
        if value != node.value and node.style is None:
            # As if it stood there: a number is a number.
            node.tag = self.resolve(yaml.ScalarNode, value, (True, False))  # type: ignore[no-untyped-call]
        node.value = value
        return node


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    # With a leading zero it is text: many passwords and ids begin with one, no number does.
    ("int", r"^[-+]?(0|[1-9][0-9]*)$", list("-+0123456789")),
    ("float", r"^[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_pattern), _first)


def read_document(path: Path, env: Mapping[str, str]) -> dict[str, Any]:
    """Read the mapping in a YAML file; an empty file gives an empty mapping.

    `${NAME}` and `${NAME:-default}` are replaced by variables of the environment, as by Compose; `$${` is `${`.

    Raises:
        ReadError: There is no such file, it is not YAML, its top level is no mapping, or a variable is not set.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ReadError(f"can't be read: {error.strerror}") from None
    except ValueError:
        raise ReadError("is not text in UTF-8") from None
    if len(content) > _MAX_BYTES:
        raise ReadError(f"is larger than {_MAX_BYTES >> 20} MiB")
    document = _parse(text, env)
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ReadError("must hold a mapping: sections like `streams:` and `sinks:` with keys and values")
    return document


def _parse(text: str, env: Mapping[str, str]) -> Any:
    try:
        loader = _Loader(text)
        loader.env = env
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        if (error.problem or "").startswith(_UNSET):
            raise ReadError(f"{position.removeprefix(' at ')}: {error.problem}") from None
        problem = _QUOTED.sub(_without_content, error.problem or "").removeprefix("but ")
        line = text.splitlines()[mark.line : mark.line + 1] if mark else []
        raise ReadError(f"is not valid YAML{position}: {problem}{_hint(problem, ''.join(line))}") from None
    except ReadError:
        raise
    except yaml.YAMLError:
        raise ReadError("has control characters, which YAML does not allow") from None
    except RecursionError:
        raise ReadError("is nested too deeply") from None
    except Exception:  # noqa: BLE001 - a wrong value after an explicit tag makes PyYAML raise anything, with the value in it
        raise ReadError("has a value that does not fit its tag (!!) or is too long a number") from None


def _hint(problem: str, line: str) -> str:
    """Return what would help, by what PyYAML says and the line at which it gave up."""
    if problem == _TWICE:
        return ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in problem:
        return "; indent with spaces, not with tabs"
    if "mapping values are not allowed" in problem or "<block" in problem:
        return "; is this line, or the one before it, indented as its neighbours are? Text with a colon needs quotes"
    return "; text with special characters needs quotes"


def _without_content(quoted: re.Match[str]) -> str:
    """Keep PyYAML's quote only if it is syntax: for `password: *hunter2` it says "found undefined alias 'hunter2'"."""
    return quoted[0] if re.fullmatch(r"<[a-z ]+>|\W{1,2}", quoted[2]) else ""


def _check_size(node: yaml.Node) -> None:
    """Refuse what would become too many values, before any is made."""
    if _size(node, {}) > _MAX_VALUES:
        raise ReadError(f"has more than {_MAX_VALUES:,} values, aliases (*) included")


def _size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return the number of values with every alias counted as often as it stands there; a few lines may mean millions.

    Raises:
        ReadError: A value contains itself.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = None
        inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_size(each, known) for each in inner)
    size = known[id(node)]
    if size is None:
        raise ReadError("has an anchor (&) that contains itself")
    return size
