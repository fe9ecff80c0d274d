"""Bytes in, JSON texts out, however they are cut."""

from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.sources.engine.wire import ChunkReader, ObjectReader
from tests.support.engine_samples import chunked


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    """The data in pieces of these sizes, and the rest."""
    pieces, position = [], 0
    for size in sizes:
        pieces.append(data[position : position + size])
        position += size
    return [*pieces, data[position:]]


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.lists(st.integers(0, 50), max_size=60))
def test_a_chunked_body_is_read_however_it_is_cut(contents: list[bytes], sizes: list[int]) -> None:
    reader = ChunkReader()
    body = chunked(*contents) + b"0\r\n\r\n"

    assert b"".join(reader.feed(piece) for piece in cut(body, sizes)) == b"".join(contents)
    assert reader.over


def test_extensions_of_chunks_are_ignored_and_nothing_after_the_last_chunk_is_read() -> None:
    reader = ChunkReader()

    assert reader.feed(b"3;name=value\r\nabc\r\n0\r\nTrailer: x\r\n\r\n5\r\nxxxxx") == b"abc"
    assert reader.feed(b"5\r\nxxxxx") == b""


@pytest.mark.parametrize("body", [b"nonsense\r\n", b"-5\r\n", b"3\r\nabcdef\r\n", b"1;" + b"x" * 5000, b"f" * 16 + b"\r\n"])
def test_a_broken_chunked_body_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="not the size of a chunk"):
        ChunkReader().feed(body)


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


def test_a_large_line_that_comes_at_once_is_cut_off_too() -> None:
    assert ObjectReader(max_bytes=10).feed(b'{"a":"xxxxxxxxxxxxxxxxxx"}\n{"b":2}\n') == [b'{"a":"xxxx', b'{"b":2}']


def test_deep_nesting_is_no_reason_to_die() -> None:
    deep = b"[" * 200_000

    assert ObjectReader().feed(b'{"a":1}{' + deep + b"\n") == [b'{"a":1}', b"{" + deep]
