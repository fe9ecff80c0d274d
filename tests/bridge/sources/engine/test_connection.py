"""HTTP to an Engine, however its answer is cut."""

import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.sources.engine.connection import MAX_BODY_BYTES, Address, Connection
from tests.support.engine_samples import chunked
from tests.support.servers.silent import resolve, silent_address

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextmanager
def answered(*pieces: bytes) -> Iterator[Connection]:
    """A connection whose request is answered with these bytes, and then closed by the peer."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = f"{directory}/engine.sock"
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            peer, _ = listener.accept()
            with peer, suppress(OSError):
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    request += peer.recv(4096)
                for piece in pieces:
                    peer.sendall(piece)

        thread = threading.Thread(target=answer)
        thread.start()
        with closing(Connection(Address(path), 10, None)) as connection:
            yield connection
        thread.join(10)


def read_to_end(connection: Connection) -> bytes:
    content = connection.buffered()
    while not connection.over and (more := connection.read_more()) is not None:
        content += more
    return content


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """The data in pieces of these sizes, and the rest."""
    pieces, position = [], 0
    for size in sizes:
        pieces.append(data[position : position + size])
        position += size
    return [*pieces, data[position:]]


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.lists(st.integers(1, 50), max_size=20))
def test_a_chunked_body_is_read_however_it_is_cut(contents: list[bytes], sizes: list[int]) -> None:
    with answered(*cut(CHUNKED + chunked(*contents) + b"0\r\n\r\n", sizes)) as connection:
        connection.get("/events")

        assert (connection.status, connection.length) == (200, None)
        assert read_to_end(connection) == b"".join(contents)
        assert connection.over


def test_extensions_of_chunks_are_ignored_and_nothing_after_the_last_chunk_is_read() -> None:
    with answered(CHUNKED + b"3;name=value\r\nabc\r\n0\r\nTrailer: x\r\n\r\n5\r\nxxxxx") as connection:
        connection.get("/events")

        assert read_to_end(connection) == b"abc"
        assert connection.over


@pytest.mark.parametrize("body", [b"nonsense\r\n", b"-5\r\n", b"3\r\nabcdef\r\n", b"1;" + b"x" * 500_000, b"f" * 21 + b"\r\n"])
def test_a_broken_chunked_body_is_an_error(body: bytes) -> None:
    with answered(CHUNKED, body) as connection:
        connection.get("/events")
        with pytest.raises(h11.RemoteProtocolError):
            read_to_end(connection)


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    with answered(b"HTTP/1.1 200 OK\r\n\r\n", b"some ", b"text") as connection:
        connection.get("/events")

        assert connection.length is None
        assert connection.read_all() == b"some text"


def test_a_body_that_is_too_long_is_cut_off() -> None:
    with answered(b"HTTP/1.1 200 OK\r\nContent-Length: 1500000\r\n\r\n", b"x" * 1_500_000) as connection:
        connection.get("/info")

        assert connection.length == 1_500_000
        assert connection.read_all() == b"x" * MAX_BODY_BYTES


def test_a_connection_closed_before_an_answer_is_a_broken_connection() -> None:
    with answered() as connection, pytest.raises(ConnectionResetError):
        connection.get("/info")


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 500_000, b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_something_else_than_http_is_a_protocol_error(head: bytes) -> None:
    with answered(head) as connection, pytest.raises(h11.RemoteProtocolError):
        connection.get("/info")


def test_a_silent_first_address_does_not_keep_it_from_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer() -> None:
        peer, _ = server.accept()
        with peer:
            peer.recv(4096)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with silent_address() as silent, socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer)
        thread.start()
        resolve(monkeypatch, "engine.test", [silent, server.getsockname()])
        with closing(Connection(Address("", "engine.test", 2375), 5, None)) as connection:
            connection.get("/info")
            assert connection.status == 200
        thread.join(10)
