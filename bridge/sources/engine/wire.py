"""The content of a Docker Engine's `/events`: bytes in, JSON texts out; no sockets."""

import contextlib
import json
import re
from typing import Final

MAX_OBJECT_BYTES: Final = 1024 * 1024
"""A longer JSON object is cut off and passed on as malformed."""

_ADJACENT: Final = re.compile(rb"\}\s*\{")
_NOT_SPACE: Final = re.compile(r"\S")
_raw_decode: Final = json.JSONDecoder().raw_decode


class ObjectReader:
    """Takes JSON texts out of a byte stream that arrives in arbitrary pieces.

    They may stand in lines (Engines), have record separators before them (RFC 7464, newer Engines) or have nothing between
    them. Anything else comes out as it is, up to the next line.

    Args:
        max_bytes: A longer text is cut off here, and the rest of its line is left out.
    """

    def __init__(self, max_bytes: int = MAX_OBJECT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._tail = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Add data, and take out the texts that are complete."""
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
    """Separate JSON texts with nothing or white space between them; return them and the incomplete rest."""
    text, objects, position = line.decode("latin-1"), [], 0  # Every byte a character, so that positions are the same.
    with contextlib.suppress(ValueError, RecursionError):
        while match := _NOT_SPACE.search(text, position):
            _, end = _raw_decode(text, match.start())
            objects.append(line[match.start() : end])
            position = end
    return objects, line[position:]
