from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from config.yaml_file import ReadError, read_document


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bridge.yaml"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("off", "off"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("0", 0),
        ("0123", "0123"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2026-01-01", "2026-01-01"),
        ("2.5", 2.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.2.3", "1.2.3"),
        (".inf", ".inf"),
        ("127.0.0.1:9477", "127.0.0.1:9477"),
        ("=", "="),
        ("24h", "24h"),
        ('"12"', "12"),
        ("[a, 1]", ["a", 1]),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_values_are_those_of_yaml_1_2(file: Path, text: str, value: Any) -> None:
    file.write_text(f"key: {text}\n")

    read = read_document(file, {})["key"]

    assert (read, type(read)) == (value, type(value))


def test_a_mapping_can_be_merged_into_another_that_says_more(file: Path) -> None:
    file.write_text("a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: {<<: *b, x: 4}\n")

    assert read_document(file, {}) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 4, "y": 3}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${NAME}", "value"),
        ("a ${NAME} b ${NAME}", "a value b value"),
        ("${NUMBER}", 12),
        ('"${NUMBER}"', "12"),
        ("${UNSET:-7}", 7),
        ("${UNSET:-}", None),
        ("${EMPTY:-default}", "default"),
        ("${NAME:-default}", "value"),
        ("'$${NAME} ${NAME}'", "${NAME} value"),
        ("$NAME $ $$ {x}", "$NAME $ $$ {x}"),
        ("'${NAME} ${UNSET:-x ${UNSET'", "value ${UNSET:-x ${UNSET"),
        ("['${NAME}', x]", ["value", "x"]),
        ("${COLON}", "a: b # c"),
        ("|\n  x ${NAME}\n", "x value\n"),
    ],
)
def test_variables_are_replaced_in_values(file: Path, text: str, value: Any) -> None:
    file.write_text(f"key: {text}\n")

    read = read_document(file, {"NAME": "value", "NUMBER": "12", "EMPTY": "", "COLON": "a: b # c"})

    assert (read["key"], type(read["key"])) == (value, type(value))


def test_a_variable_that_is_not_set_is_an_error_with_its_place(file: Path) -> None:
    file.write_text("a: 1\nb: {token: '${HOOK_TOKEN}'}\n")

    with pytest.raises(ReadError, match=r"^line 2, column 12: the variable HOOK_TOKEN is not set; write \$\{HOOK_TOKEN:-\}"):
        read_document(file, {"HOOK_TOKEN": ""})


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("a:\n\tb: 1\n", "indent with spaces, not with tabs"),
        ("a:\n  b: 1\n   c: 2\n", "indented as its neighbours are"),
        ("a:\n   b: 1\n  c: 2\n", "indented as its neighbours are"),
        ("a: b: c\n", "Text with a colon needs quotes"),
        ("a: @x\n", "text with special characters needs quotes"),
    ],
)
def test_a_mistake_gets_the_hint_that_helps(file: Path, text: str, hint: str) -> None:
    file.write_text(text)

    with pytest.raises(ReadError, match=hint):
        read_document(file, {})


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n", "\ufeff"])
def test_an_empty_file_holds_nothing(file: Path, text: str) -> None:
    file.write_text(text)

    assert read_document(file, {}) == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "is not valid YAML at line 1, column 6: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\nb: - 2", "is not valid YAML at line 2, column 4: sequence entries are not allowed here"),
        ("a: 1\n  b: 2", "is not valid YAML at line 2, column 4: mapping values are not allowed here"),
        ("a: b\n\tc: d", "is not valid YAML at line 2, column 1: found character that cannot start any token"),
        ("a: *hunter2", "is not valid YAML at line 1, column 4: found undefined alias"),
        ("a: !hunter2 x", "is not valid YAML at line 1, column 4: could not determine a constructor for the tag"),
        ("a: {x: 1, y: 2, x: 3}", "is not valid YAML at line 1, column 17: this key is there twice"),
        ("a: 1\n---\nb: 2", "is not valid YAML at line 2, column 1: found another document"),
        ("{{ value }}: 1", "is not valid YAML at line 1, column 1: found unhashable key"),
        ("a: \x07hunter2", "has control characters"),
        ("a: !!int hunter2", "does not fit its tag"),
        ("a: !!timestamp hunter2", "does not fit its tag"),
        ("a: " + "9" * 5000, "too long a number"),
        ("a: " + "[" * 5000, "is nested too deeply"),
        ("a: &x [*x]", "an anchor (&) that contains itself"),
        ("a: &a [x]\n" + "".join(f"{b}: &{b} [{8 * f'*{a},'}]\n" for a, b in pairwise("abcdefghijklmnop")), "20,000 values"),
        (
            "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{9 * f'*{a},'}]}}\n" for a, b in pairwise("abcdefghij")),
            "20,000 values",
        ),
        ("a: [" + "1," * 30_000 + "]", "20,000 values"),
        ("a: " + "x" * (3 << 20), "larger than 2 MiB"),
        ("- a", "must hold a mapping"),
        ("hunter2", "must hold a mapping"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_shows_nothing_of_the_content(file: Path, text: str, says: str) -> None:
    file.write_text(text)

    with pytest.raises(ReadError) as caught:
        read_document(file, {})

    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_file_must_be_there_and_be_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"a: \xff\xfe")

    with pytest.raises(ReadError, match="No such file"):
        read_document(tmp_path / "missing.yaml", {})
    with pytest.raises(ReadError, match="Is a directory"):
        read_document(tmp_path, {})
    with pytest.raises(ReadError, match="UTF-8"):
        read_document(tmp_path / "binary", {})
