"""Bytes in, JSON texts out, however they are cut."""

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.sources.engine.wire import ObjectReader


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of these sizes, and the rest."""
    pieces, position = [], 0
    for size in sizes:
        pieces.append(data[position : position + size])
        position += size
    return [*pieces, data[position:]]


OBJECTS: Final = [b'{"a":1}', b'{"b":"} {\\" \\u00e9 \xc3\xa9"}', b'{"c":{"d":[{}]}}', b'{"e":"}{"}', b"{}"]


@pytest.mark.parametrize(
    "join",
    [
        lambda objects: b"".join(each + b"\n" for each in objects),
        lambda objects: b"".join(b"\x1e" + each + b"\n" for each in objects),
        lambda objects: b"\r\n\r\n".join([*objects, b""]),
        b"".join,
        b" ".join,
    ],
    ids=["lines", "json-seq", "blank lines", "nothing between", "spaces between"],
)
@given(sizes=st.lists(st.integers(0, 12), max_size=60))
def test_objects_are_found_however_they_are_joined_and_cut(join: Callable[[list[bytes]], bytes], sizes: list[int]) -> None:
    reader = ObjectReader()
    found = [text for piece in cut(join(OBJECTS), sizes) for text in reader.feed(piece)]

    assert found == OBJECTS


def test_what_is_no_json_comes_out_as_it_is_and_the_next_line_is_read() -> None:
    assert ObjectReader().feed(b'{"a":1}\nnot json}{\n{"b":2}{"c":\n{"d":3}\n') == [
        b'{"a":1}',
        b"not json}{",
        b'{"b":2}',
        b'{"c":',
        b'{"d":3}',
    ]


def test_an_object_that_is_too_large_is_cut_off_once_and_the_next_line_is_read() -> None:
    reader = ObjectReader(max_bytes=100)
    found = [text for piece in cut(b'{"a":"' + b"x" * 5000 + b'"}\n{"b":2}\n', [40] * 200) for text in reader.feed(piece)]

    assert found == [b'{"a":"' + b"x" * 94, b'{"b":2}']


@pytest.mark.parametrize("between", [b"\n", b" \n", b"\n{}\n"])
def test_a_large_object_in_small_pieces_comes_out_once(between: bytes) -> None:
    large, reader = b'{"a":[' + b'{"b":{}},' * 10_000 + b"0]}", ObjectReader()
    found = [text for piece in cut(large + between, [100] * 2000) for text in reader.feed(piece)]

    assert found == [large, *between.split()]


def test_a_large_line_that_comes_at_once_is_cut_off_too() -> None:
    assert ObjectReader(max_bytes=10).feed(b'{"a":"xxxxxxxxxxxxxxxxxx"}\n{"b":2}\n') == [b'{"a":"xxxx', b'{"b":2}']


def test_deep_nesting_is_no_reason_to_die() -> None:
    deep = b"[" * 200_000

    assert ObjectReader().feed(b'{"a":1}{' + deep + b"\n") == [b'{"a":1}', b"{" + deep]
