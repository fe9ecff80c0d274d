"""Websocket frames of a server (RFC 6455, section 5): bytes in, messages out; no sockets.

One read of a busy socket brings hundreds of small frames. websocket-client takes them one by one, with two or three system
calls each; here all complete frames of a read are taken at once (docs/benchmarks.md has the difference).

Two deliberate differences from the letter of the RFC: a binary message counts as a message like a text message, and text
is not checked for UTF-8 here, since the JSON decoder does so and a bad message must not cost the session.
"""

import struct
from typing import Final, NamedTuple

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_OPCODES: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})
_FIN: Final = 0x80
_FIN_TEXT: Final = _FIN | TEXT
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_MIN_HEADER_BYTES: Final = 2
_LENGTH_16: Final = 126
_LENGTH_64: Final = 127
_MAX_CONTROL_BYTES: Final = 125


class ProtocolError(Exception):
    """The peer broke the protocol; `code` is the close code (RFC 6455, section 7.4.1) to answer with."""

    def __init__(self, reason: str, code: int = 1002) -> None:
        super().__init__(reason)
        self.code = code


class Control(NamedTuple):
    """A control frame: its opcode (`CLOSE`, `PING` or `PONG`) and payload."""

    opcode: int
    payload: bytes


class Taken(NamedTuple):
    """Messages and control frames that a read completed, each in their order; and the error after which nothing follows."""

    messages: list[bytes]
    controls: list[Control]
    error: ProtocolError | None


class _Header(NamedTuple):
    fin: bool
    opcode: int
    start: int
    end: int


class FrameReader:
    """Takes complete messages out of a byte stream that arrives in arbitrary pieces.

    Args:
        max_bytes: The largest message that is accepted, over all its fragments.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._tail = bytearray()
        self._needed = _MIN_HEADER_BYTES
        self._fragments: bytearray | None = None
        self._closed = False

    def feed(self, data: bytes | memoryview) -> Taken:
        """Add data, and take out complete messages and control frames.

        A protocol error is part of the result, not an exception, so that the messages before it are not lost. Data after an
        error or a close frame is ignored.
        """
        taken = Taken([], [], None)
        self._tail += data
        if self._closed or len(self._tail) < self._needed:
            return taken
        whole = bytes(self._tail)
        try:
            position = self._take(whole, taken)
        except ProtocolError as error:
            self._closed = True
            return taken._replace(error=error)
        self._tail = bytearray(whole[position:])
        return taken

    def _take(self, data: bytes, taken: Taken) -> int:
        """Take all complete frames; return the position of the first incomplete one."""
        messages, limit = taken.messages, self._max_bytes
        position, end = 0, len(data)
        bulk = self._fragments is None
        self._needed = _MIN_HEADER_BYTES
        while end - position >= _MIN_HEADER_BYTES and not self._closed:
            # The common case in as few steps as Python allows: a whole text message of a server, up to 64 KiB.
            if bulk and data[position] == _FIN_TEXT and (length := data[position + 1]) <= _LENGTH_16:
                start = position + 2
                if length == _LENGTH_16:
                    start += 2
                    length = int.from_bytes(data[position + 2 : start], "big")
                if start + length <= end and length <= limit:
                    position = start + length
                    messages.append(data[start:position])
                    continue
            header = self._header(data, position)
            self._needed = header.end - position
            if header.end > end:
                break
            self._accept(header, data[header.start : header.end], taken)
            bulk = self._fragments is None
            self._needed = _MIN_HEADER_BYTES
            position = header.end
        return position

    def _header(self, data: bytes, position: int) -> _Header:
        """Read and check the header at `position`; if it is incomplete, `end` is the end of the header."""
        first, second = data[position], data[position + 1]
        opcode, length = first & 0x0F, second & 0x7F
        if first & _RESERVED:
            raise ProtocolError("reserved bits are set")
        if opcode not in _OPCODES:
            raise ProtocolError(f"unknown opcode {opcode:#x}")
        if second & _MASKED:
            raise ProtocolError("a server's frame is masked")
        if opcode >= CLOSE and (length > _MAX_CONTROL_BYTES or not first & _FIN):
            raise ProtocolError("a control frame is fragmented or too long")
        start = position + 2 + {_LENGTH_16: 2, _LENGTH_64: 8}.get(length, 0)
        if start > len(data):
            return _Header(bool(first & _FIN), opcode, start, start)
        if length >= _LENGTH_16:
            length = int.from_bytes(data[position + 2 : start], "big")
        if length + len(self._fragments or b"") > self._max_bytes and opcode < CLOSE:
            raise ProtocolError(f"a message is larger than {self._max_bytes} bytes", 1009)
        return _Header(bool(first & _FIN), opcode, start, start + length)

    def _accept(self, header: _Header, payload: bytes, taken: Taken) -> None:
        if header.opcode >= CLOSE:
            taken.controls.append(Control(header.opcode, payload))
            self._closed = header.opcode == CLOSE
        elif (header.opcode == CONTINUATION) is (self._fragments is None):
            raise ProtocolError("a continuation without a beginning, or a beginning inside a fragmented message")
        elif not header.fin:
            # In place: a message of many small fragments would otherwise be copied once for each.
            self._fragments = bytearray() if self._fragments is None else self._fragments
            self._fragments += payload
        else:
            taken.messages.append(bytes(self._fragments or b"") + payload)
            self._fragments = None


def encode(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """Make one frame as a server sends it, unmasked."""
    first = (_FIN if fin else 0) | opcode
    if len(payload) < _LENGTH_16:
        return bytes((first, len(payload))) + payload
    if len(payload) < 1 << 16:
        return struct.pack("!BBH", first, _LENGTH_16, len(payload)) + payload
    return struct.pack("!BBQ", first, _LENGTH_64, len(payload)) + payload
