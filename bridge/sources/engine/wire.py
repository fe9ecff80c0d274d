"""The content of a Docker Engine's `/events`: bytes in, JSON texts out; no sockets."""

import contextlib
import json
import re
from typing import Final

MAX_OBJECT_BYTES: Final = 1024 * 1024
"""A longer JSON object is cut off and passed on as malformed."""

_SOON_BYTES: Final = 16 * 1024
"""A longer text without a line break may have to wait for one: it is looked at again when it has twice the length."""

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
        self._tail = bytearray()
        self._skipping = False
        self._try_from = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Add data, and take out the texts that are complete."""
        first, *more = data.replace(b"\x1e", b"\n").split(b"\n")
        texts: list[bytes] = []
        if more:
            *lines, last = (bytes(self._tail) + first, *more)
            for line in lines[self._skipping :]:
                objects, rest = _objects(line) if _ADJACENT.search(line) else ([], line)
                texts += [*objects, rest.strip()] if rest.strip() else objects
            self._tail, self._skipping, self._try_from = bytearray(last), False, 0
        elif not self._skipping:
            self._tail += (last := first)
        if not self._skipping and last.rstrip().endswith(b"}") and len(self._tail) >= self._try_from:
            objects, rest = _objects(bytes(self._tail))
            self._tail = bytearray(rest)
            self._try_from = 2 * len(rest) if len(rest) > _SOON_BYTES else 0
            texts += objects
        if len(self._tail) > self._max_bytes:
            texts.append(bytes(self._tail))
            self._tail, self._skipping, self._try_from = bytearray(), True, 0
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
