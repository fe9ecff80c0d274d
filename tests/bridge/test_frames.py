"""The reader against websocket-client's own parser, which it replaces, and against the RFC where the two differ."""

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websocket import ABNF, WebSocketProtocolException
from websocket._abnf import continuous_frame, frame_buffer

from bridge.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Control, FrameReader, ProtocolError, encode

LIMIT = 70_000


@dataclass
class Outcome:
    """What a parser made of a byte stream: in which order does not matter between messages and controls."""

    messages: list[bytes] = field(default_factory=list)
    controls: list[tuple[int, bytes]] = field(default_factory=list)
    failed: bool = False


def ours(data: bytes, cuts: list[int], *, limit: int = LIMIT) -> Outcome:
    reader, outcome = FrameReader(limit), Outcome()
    for start, end in pairwise([0, *sorted(cuts), len(data)]):
        taken = reader.feed(data[start:end])
        outcome.messages += taken.messages
        outcome.controls += taken.controls
        outcome.failed |= taken.error is not None
    return outcome


class Starved(Exception):
    """The stream ends inside a frame or between two."""


class _Oracle(frame_buffer):
    """websocket-client's parser over bytes, with the limit that it lacks.

    Where the stream ends inside a frame, the frame is completed with zeros: so it can be told whether a reader that
    refuses it by its header alone is right.
    """

    def __init__(self, data: bytes, limit: int) -> None:
        super().__init__(self._read, skip_utf8_validation=True)
        self._data = data
        self._limit = limit
        self.completed = False

    def _read(self, size: int) -> bytes:
        if self.completed or (not self._data and self.header is not None):
            self.completed = True
            return bytes(size)
        if not self._data or (self.header is None and len(self._data) < size):
            raise Starved
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def recv_length(self) -> None:
        super().recv_length()
        assert self.header is not None
        assert self.length is not None
        if self.header[4] >= CLOSE and self.header[6] > 125:
            raise WebSocketProtocolException("RFC 6455, section 5.5: a control frame needs no longer length than seven bits")
        if self.header[4] < CLOSE and self.length > self._limit:
            raise WebSocketProtocolException("too large")

    def recv_frame(self) -> ABNF:
        """Add the rules of RFC 6455, sections 5.1 and 5.5, that the library does not look at."""
        frame = super().recv_frame()
        if frame.mask_value or (frame.opcode >= CLOSE and not frame.fin):
            raise WebSocketProtocolException("masked, or a control frame in fragments")
        return frame


class _Joined(continuous_frame):
    """websocket-client's joining of fragments, with the limit that it lacks."""

    def __init__(self, limit: int) -> None:
        super().__init__(fire_cont_frame=False, skip_utf8_validation=True)
        self._limit = limit

    def validate(self, frame: ABNF) -> None:
        super().validate(frame)
        if len(frame.data) + len(self.cont_data[1] if self.cont_data else b"") > self._limit:
            raise WebSocketProtocolException("too large")


def theirs(data: bytes, limit: int = LIMIT) -> tuple[Outcome, bool]:
    """Also tells whether the stream ended inside a frame, which was then completed with zeros and only judged."""
    buffer, joined, outcome = _Oracle(data, limit), _Joined(limit), Outcome()
    try:
        while True:
            frame = buffer.recv_frame()
            if frame.opcode < CLOSE:
                joined.validate(frame)
            if buffer.completed:
                break
            if frame.opcode >= CLOSE:
                outcome.controls.append((frame.opcode, bytes(frame.data)))  # type: ignore[arg-type]  # Read as bytes.
                if frame.opcode == CLOSE:
                    break
                continue
            joined.add(frame)
            if joined.is_fire(frame):
                outcome.messages.append(bytes(joined.extract(frame)[1].data))
    except Starved:
        pass
    except WebSocketProtocolException:
        outcome.failed = True
    return outcome, buffer.completed


payloads = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([0, 1, 124, 125, 126, 127, 128, 65_535, 65_536, 65_537]).map(lambda size: b"p" * size),
)
closings = st.one_of(
    st.just(b""),
    st.builds(
        lambda code, reason: code.to_bytes(2, "big") + reason, st.sampled_from([1000, 1001, 1011, 4000]), st.binary(max_size=20)
    ),
)
controls = st.builds(encode, st.sampled_from([PING, PONG]), st.binary(max_size=125))


@st.composite
def fragmented(draw: st.DrawFn) -> bytes:
    """One message in any number of fragments with control frames between them."""
    first, *rest = draw(st.lists(payloads.filter(lambda payload: len(payload) < 200), min_size=1, max_size=5))
    stream = encode(draw(st.sampled_from([TEXT, BINARY])), first, fin=not rest)
    for position, payload in enumerate(rest, start=1):
        stream += b"".join(draw(st.lists(controls, max_size=2)))
        stream += encode(CONTINUATION, payload, fin=position == len(rest))
    return stream


whole = st.builds(encode, st.sampled_from([TEXT, BINARY]), payloads)
closed = st.builds(lambda payload: encode(CLOSE, payload), closings)
valid_streams = st.builds(
    lambda frames, end: b"".join(frames) + end,
    st.lists(st.one_of(whole, controls, fragmented()), max_size=8),
    st.one_of(st.just(b""), closed, st.builds(lambda close, more: close + more, closed, st.binary(max_size=20))),
)


@st.composite
def cut(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> tuple[bytes, list[int]]:
    stream = draw(streams)
    return stream, draw(st.lists(st.integers(0, len(stream)), max_size=12))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid stream with some bytes changed, taken out or put in, mostly where headers are."""
    stream = bytearray(draw(valid_streams))
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.one_of(st.integers(0, min(12, len(stream))), st.integers(0, len(stream))))
        stream[position : position + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(stream)


# Frames that are good by themselves, in an order that often is not.
disordered = st.lists(
    st.builds(
        lambda opcode, payload, fin: encode(opcode, payload, fin=fin),
        st.sampled_from([CONTINUATION, CONTINUATION, TEXT, BINARY, PING, CLOSE]),
        st.binary(max_size=60),
        st.booleans(),
    ),
    max_size=8,
).map(b"".join)
# First bytes that are frames more often than chance makes them.
headers = st.builds(
    lambda first, second, rest: bytes((first, second)) + rest,
    st.sampled_from(
        [0x00, 0x01, 0x02, 0x03, 0x08, 0x09, 0x0A, 0x80, 0x81, 0x82, 0x87, 0x88, 0x89, 0x8A, 0x8F, 0xC1, 0xB1, 0x91]
    ),
    st.sampled_from([0, 1, 2, 3, 125, 126, 127, 128, 131, 254, 255]),
    st.binary(max_size=12),
)
invalid_streams = st.one_of(st.binary(max_size=60), mutated(), disordered, st.lists(headers, max_size=6).map(b"".join))


@given(cut(valid_streams))
def test_any_split_of_a_valid_stream_gives_what_websocket_client_gives(case: tuple[bytes, list[int]]) -> None:
    stream, cuts = case
    outcome = ours(stream, cuts)
    assert (outcome, False) == theirs(stream)
    assert not outcome.failed


@given(valid_streams.filter(lambda stream: len(stream) < 2_000))
def test_a_stream_may_come_byte_by_byte(stream: bytes) -> None:
    assert ours(stream, list(range(len(stream)))) == theirs(stream)[0]


def close_is_odd(outcome: Outcome) -> bool:
    """Whether the close frame's payload is one that websocket-client refuses; to us it is a close in any case."""
    if not outcome.controls or outcome.controls[-1][0] != CLOSE:
        return False
    try:
        ABNF(1, 0, 0, 0, CLOSE, 0, outcome.controls[-1][1]).validate(skip_utf8_validation=True)
    except WebSocketProtocolException:
        return True
    return False


@given(cut(invalid_streams), st.sampled_from([50, LIMIT]))
def test_a_stream_is_refused_by_both_or_by_neither(case: tuple[bytes, list[int]], limit: int) -> None:
    stream, cuts = case
    outcome, (expected, completed) = ours(stream, cuts, limit=limit), theirs(stream, limit)
    if close_is_odd(outcome):
        outcome.controls.pop()
        outcome.failed = True
    assert outcome.messages == expected.messages
    assert outcome.controls == expected.controls
    if completed:
        # Ours may refuse a frame by its header, or wait for the rest of it; it must not refuse what would be valid.
        assert expected.failed or not outcome.failed
    else:
        assert outcome.failed == expected.failed


@given(cut(invalid_streams))
def test_how_a_broken_stream_is_split_changes_nothing(case: tuple[bytes, list[int]]) -> None:
    stream, cuts = case
    assert ours(stream, cuts) == ours(stream, [])


@given(st.sampled_from([TEXT, BINARY, PING, PONG]), payloads, st.booleans())
def test_what_we_encode_is_the_unmasked_frame_of_websocket_client(opcode: int, payload: bytes, fin: bool) -> None:
    frame = ABNF(int(fin), 0, 0, 0, opcode, 0, payload)
    assert encode(opcode, payload, fin=fin) == frame.format()


def test_messages_before_an_error_are_kept_and_nothing_after_it_is_read() -> None:
    reader = FrameReader(LIMIT)
    taken = reader.feed(encode(TEXT, b"first") + b"\xc1\x00" + encode(TEXT, b"second"))
    assert taken.messages == [b"first"]
    assert taken.error is not None
    assert reader.feed(encode(TEXT, b"third")) == ([], [], None)


def test_nothing_after_a_close_frame_is_read() -> None:
    reader = FrameReader(LIMIT)
    taken = reader.feed(encode(CLOSE, b"\x03\xe8bye") + encode(TEXT, b"late"))
    assert taken == ([], [Control(CLOSE, b"\x03\xe8bye")], None)
    assert reader.feed(encode(TEXT, b"later")) == ([], [], None)


@pytest.mark.parametrize(
    ("stream", "code", "words"),
    [
        (b"\x91\x00", 1002, "reserved bits"),
        (b"\x83\x00", 1002, "unknown opcode 0x3"),
        (b"\x81\x80", 1002, "masked"),
        (b"\x09\x00", 1002, "control frame is fragmented"),
        (b"\x8a\x7e", 1002, "control frame is fragmented or too long"),
        (b"\x80\x00", 1002, "continuation without a beginning"),
        (b"\x01\x00\x81\x00", 1002, "beginning inside a fragmented message"),
        (b"\x82\x7f" + (1 << 40).to_bytes(8, "big"), 1009, "larger than 10 bytes"),
        (b"\x82\x7f" + b"\xff" * 8, 1009, "larger than 10 bytes"),
        (encode(TEXT, b"12345678901"), 1009, "larger than 10 bytes"),
        (b"\x81\x0b", 1009, "larger than 10 bytes"),
        (encode(TEXT, b"123456", fin=False) + b"\x80\x05", 1009, "larger than 10 bytes"),
    ],
)
def test_what_breaks_the_protocol_is_named_with_its_close_code(stream: bytes, code: int, words: str) -> None:
    error = FrameReader(10).feed(stream).error
    assert isinstance(error, ProtocolError)
    assert error.code == code
    assert words in str(error)


def test_a_beginning_inside_a_fragmented_message_is_refused_also_in_a_later_read() -> None:
    reader = FrameReader(LIMIT)
    assert reader.feed(encode(TEXT, b"beginning", fin=False)) == ([], [], None)
    taken = reader.feed(encode(TEXT, b"another"))
    assert taken.messages == []
    assert taken.error is not None


def test_a_message_of_exactly_the_limit_is_let_in_whole_or_in_fragments() -> None:
    stream = encode(TEXT, b"1234567890") + encode(TEXT, b"12345", fin=False) + encode(CONTINUATION, b"67890")
    assert ours(stream, [], limit=10) == Outcome([b"1234567890", b"1234567890"])
