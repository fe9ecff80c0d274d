"""The body of a Docker Engine's `/events`: bytes in, JSON texts out; no sockets.

The standard library's reader of chunked bodies breaks for good when a read times out, which on a silent stream is the rule;
and it gives one chunk at a time, where one read of the socket may bring hundreds.
"""

import contextlib
import json
import re
from typing import Final

MAX_OBJECT: Final = 1024 * 1024
"""Bytes of one JSON object beyond which it is cut off and passed on as malformed."""

_HEAD: Final = re.compile(rb"\r?\n([0-9a-fA-F]{1,15})[ \t]*(;[^\n]{0,1024})?\r?\n")
"""What stands before a chunk's content: the line end of the chunk before, and a line with the size."""

_INCOMPLETE_HEAD: Final = re.compile(rb"\r?(\n[^\n]{0,1024})?")

_ADJACENT: Final = re.compile(rb"\}\s*\{")
_NOT_SPACE: Final = re.compile(r"\S")
_raw_decode: Final = json.JSONDecoder().raw_decode


class ChunkReader:
    """Takes the content out of a chunked body (RFC 9112, section 7.1) that arrives in arbitrary pieces."""

    def __init__(self) -> None:
        self._tail = b"\r\n"  # As if a chunk had ended, so that every head looks the same.
        self._left = 0
        self.over = False

    def feed(self, data: bytes) -> bytes:
        """Add what was read, and take out the content so far; nothing after the last chunk (`over`) is looked at.

        Raises:
            ValueError: This is no chunked body.
        """
        data, content, position = self._tail + data, [], 0
        while not self.over:
            content.append(data[position : position + self._left])
            position += len(content[-1])
            self._left -= len(content[-1])
            head = None if self._left else _HEAD.match(data, position)
            if head is None:
                break
            position = head.end()
            self._left = int(head[1], 16)
            self.over = not self._left
        self._tail = data[position:]
        if not self.over and not _INCOMPLETE_HEAD.fullmatch(self._tail):
            raise ValueError(f"not the size of a chunk: {self._tail.strip()[:20]!r}")
        return b"".join(content)


class ObjectReader:
    """Takes JSON texts out of a byte stream that arrives in arbitrary pieces.

    They may follow each other in lines (what Engines write), with record separators before them (RFC 7464, what newer ones
    can write) or with nothing in between. What is no JSON comes out as it is, up to the next line.

    Args:
        max_bytes: A longer text is cut off here, and the rest of its line is left out.
    """

    def __init__(self, max_bytes: int = MAX_OBJECT) -> None:
        self._max_bytes = max_bytes
        self._tail = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Add what was read, and take out the texts that are complete."""
        *lines, self._tail = (self._tail + data).replace(b"\x1e", b"\n").split(b"\n")
        if self._skipping and lines:
            self._skipping = False
            del lines[0]
        texts: list[bytes] = []
        for line in lines:
            objects, rest = _objects(line) if _ADJACENT.search(line) else ([], line)
            texts += [*objects, rest.strip()] if rest.strip() else objects
        if self._skipping:
            self._tail = b""
        elif self._tail.rstrip().endswith(b"}"):
            objects, self._tail = _objects(self._tail)
            texts += objects
        if len(self._tail) > self._max_bytes:
            texts.append(self._tail)
            self._tail, self._skipping = b"", True
        return [text[: self._max_bytes] for text in texts]


def _objects(line: bytes) -> tuple[list[bytes], bytes]:
    """Separate JSON texts that follow each other with nothing or white space in between, and what is incomplete."""
    text, objects, position = line.decode("latin-1"), [], 0  # Every byte a character, so that positions are the same.
    with contextlib.suppress(ValueError, RecursionError):
        while match := _NOT_SPACE.search(text, position):
            _, end = _raw_decode(text, match.start())
            objects.append(line[match.start() : end])
            position = end
    return objects, line[position:]
