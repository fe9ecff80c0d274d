from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr

from config.introspection import KeyPath, at, decode, keys_of, merged, models_in, secrets_of


class Inner(BaseModel):
    size: int = 1
    token: SecretStr | None = None


class Cat(BaseModel):
    type: Literal["cat"] = "cat"
    toys: list[str] = []


class Dog(BaseModel):
    type: Literal["dog"]
    toys: dict[str, int] = {}


class Outer(BaseModel):
    text: str = ""
    words: list[str] = []
    numbers: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    many: Sequence[str] = ()
    either: str | list[str] = ""
    table: Mapping[str, list[str]] = {}
    inner: Inner = Inner()
    perhaps: Annotated[Inner, Field()] | None = None
    inners: list[Inner] = []
    pets: dict[str, Cat | Dog] = {}
    secret: SecretStr = SecretStr("")
    file_backed: Annotated[SecretStr | None, Field(min_length=1)] = None
    key: SecretStr | None = None
    key_file: str | None = None
    anything: Any = None


def decoded(value: Any, *, text: bool = True) -> tuple[Any, list[tuple[KeyPath, str]]]:
    problems: list[tuple[KeyPath, str]] = []
    return decode(Outer, value, lambda path, problem: problems.append((path, problem)), text=text), problems


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"words": "a, b,,c "}, {"words": ["a", "b", "c"]}),
        ({"words": ""}, {"words": []}),
        ({"words": '["a,b"]'}, {"words": ["a,b"]}),
        ({"numbers": "1,2"}, {"numbers": ["1", "2"]}),
        ({"many": "a,b"}, {"many": ["a", "b"]}),
        ({"text": "a,b"}, {"text": "a,b"}),
        ({"text": '{"a": 1}'}, {"text": '{"a": 1}'}),
        ({"either": "a,b"}, {"either": "a,b"}),
        ({"secret": "[1]"}, {"secret": "[1]"}),
        ({"anything": "[1]"}, {"anything": "[1]"}),
        ({"unknown": "{x"}, {"unknown": "{x"}),
        ({"inner": '{"size": 2}'}, {"inner": {"size": 2}}),
        ({"inner": ""}, {"inner": {}}),
        ({"inner": {"size": "2"}}, {"inner": {"size": "2"}}),
        ({"table": {"a": "x,y"}}, {"table": {"a": ["x", "y"]}}),
        ({"inners": '[{"size": 1}]'}, {"inners": [{"size": 1}]}),
        ({"pets": {"tom": {"toys": "a,b"}}}, {"pets": {"tom": {"toys": ["a", "b"]}}}),
        ({"pets": {"rex": {"type": "dog", "toys": '{"a": 1}'}}}, {"pets": {"rex": {"type": "dog", "toys": {"a": 1}}}}),
    ],
)
def test_text_becomes_what_its_type_wants(given: Any, wanted: Any) -> None:
    assert decoded(given) == (wanted, [])


@pytest.mark.parametrize(
    ("given", "path", "says"),
    [
        ({"inner": '{"size": '}, ("inner",), "is not valid JSON at line 1, column 10"),
        ({"inner": "size"}, ("inner",), "must be JSON, like {"),
        ({"inner": "[1]"}, ("inner",), "must be a mapping"),
        ({"inners": "a,b"}, ("inners",), "must be JSON, like [{"),
        ({"words": "[a]"}, ("words",), "is not valid JSON at line 1, column 2"),
        ({"words": "[" * 100_000}, ("words",), "is nested too deeply"),
        ({"pets": {"tom": "cat"}}, ("pets", "tom"), "must be JSON"),
    ],
)
def test_what_can_not_be_decoded_is_reported_and_left_out(given: Any, path: KeyPath, says: str) -> None:
    value, [(where, what)] = decoded(given)

    assert (value, where) == ({"pets": {}} if "pets" in given else {}, path)
    assert says in what


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"inner": None}, {"inner": {}}),
        ({"perhaps": None}, {"perhaps": None}),
        ({"pets": {"tom": None}}, {"pets": {"tom": {}}}),
        ({"pets": None}, {"pets": {}}),
        ({"words": "a,b"}, {"words": "a,b"}),
        ({"words": None}, {"words": None}),
        ({"text": None}, {"text": None}),
        ({1: {2: 3}}, {1: {2: 3}}),
    ],
)
def test_what_is_no_text_source_only_has_its_empty_mappings_filled_in(given: Any, wanted: Any) -> None:
    assert decoded(given, text=False) == (wanted, [])


@pytest.mark.parametrize("wrong", [5, "x", ["x"], True])
def test_what_is_no_mapping_is_reported_and_left_out(wrong: Any) -> None:
    value, [(path, what)] = decoded({"pets": {"tom": wrong, "rex": {"type": "dog"}}}, text=False)

    assert value == {"pets": {"rex": {"type": "dog"}}}
    assert (path, what) == (("pets", "tom"), "must be a mapping: keys with values")


def test_keys_that_are_secrets_are_found_unless_their_file_means_something_else() -> None:
    assert secrets_of(Outer) == ["secret", "file_backed"]
    assert {"secret_file", "file_backed_file", "key_file"} <= set(keys_of(Outer))
    assert "key_file_file" not in keys_of(Outer)


def test_models_are_found_wherever_they_are() -> None:
    value: dict[str, Any] = {
        "inner": {},
        "perhaps": None,
        "inners": [{}, {}],
        "pets": {"tom": {}, "rex": {"type": "dog"}},
        "table": {"a": {}},
        "unknown": {"x": {}},
    }

    assert [(path, model) for path, model, _ in models_in(Outer, value)] == [
        ((), Outer),
        (("inner",), Inner),
        (("inners", 0), Inner),
        (("inners", 1), Inner),
        (("pets", "tom"), Cat),
        (("pets", "rex"), Dog),
    ]


def test_the_type_at_a_path_is_found_even_where_nothing_stands() -> None:
    value = {"pets": {"rex": {"type": "dog"}}}

    assert at(Outer, value, ("inner", "size")).annotation is int
    assert at(Outer, value, ("pets", "rex", "toys")).annotation == dict[str, int]
    assert at(Outer, value, ("pets", "none", "toys")).annotation == list[str]
    assert at(Outer, value, ("pets", "rex", "fur")).annotation is None


def test_the_first_mapping_that_has_a_key_wins_it() -> None:
    high, low = {"a": {"x": 1}, "b": [1], "c": None}, {"a": {"x": 2, "y": 3}, "b": [2, 3], "c": {"z": 4}, "d": 5}

    assert merged([high, low]) == {"a": {"x": 1, "y": 3}, "b": [1], "c": None, "d": 5}
    assert merged([low, high])["c"] == {"z": 4}
    assert merged([]) == {}


def test_a_merged_mapping_shares_no_mapping_with_those_it_is_made_of() -> None:
    high: dict[str, Any] = {"a": {"x": {}}}
    low: dict[str, Any] = {"a": {"y": {}}, "b": {"z": {}}}

    result = merged([high, low])
    for mapping in (result["a"], result["a"]["x"], result["a"]["y"], result["b"], result["b"]["z"]):
        mapping["new"] = 1

    assert (high, low) == ({"a": {"x": {}}}, {"a": {"y": {}}, "b": {"z": {}}})


def test_a_type_of_a_stranger_that_can_not_be_hashed_is_taken_apart() -> None:
    class Odd(BaseModel):
        words: Annotated[list[str], {"of": "a stranger"}] = []

    assert decode(Odd, {"words": "a,b"}, lambda *_: None, text=True) == {"words": ["a", "b"]}
