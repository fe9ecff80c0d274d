"""Each fault of the proxy does to a connection what it says."""

import socket
import time
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Fault, Proxy
from tests.support.waiting import until


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        yield listener


@pytest.fixture
def proxy(listener: socket.socket) -> Iterator[Proxy]:
    with Proxy(listener.getsockname()[1]) as proxy:
        yield proxy


@pytest.fixture
def ends(listener: socket.socket, proxy: Proxy) -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(5)
            yield client, server


def read(end: socket.socket, size: int) -> list[bytes]:
    """Read so many bytes, as they come."""
    pieces: list[bytes] = []
    while sum(map(len, pieces)) < size:
        pieces.append(end.recv(65536))
        assert pieces[-1], "the connection has ended"
    return pieces


def test_without_a_fault_all_goes_both_ways(ends: tuple[socket.socket, socket.socket]) -> None:
    client, server = ends
    data = bytes(range(256)) * 100
    client.sendall(data)
    assert b"".join(read(server, len(data))) == data
    server.sendall(b"answer")
    assert b"".join(read(client, 6)) == b"answer"


def test_an_end_is_passed_on(ends: tuple[socket.socket, socket.socket]) -> None:
    client, server = ends
    client.close()
    assert server.recv(1) == b""


def test_latency_takes_time(ends: tuple[socket.socket, socket.socket], proxy: Proxy) -> None:
    client, server = ends
    proxy.fault = "latency"
    began = time.monotonic()
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    assert time.monotonic() - began >= 0.05


def test_a_drip_takes_many_pieces(ends: tuple[socket.socket, socket.socket], proxy: Proxy) -> None:
    client, server = ends
    proxy.fault = "drip"
    client.sendall(b"x" * 200)
    assert len(read(server, 200)) > 20


def test_half_open_lets_nothing_through_until_it_is_over(ends: tuple[socket.socket, socket.socket], proxy: Proxy) -> None:
    client, server = ends
    proxy.fault = "half-open"
    server.settimeout(0.2)
    client.sendall(b"x")
    with pytest.raises(TimeoutError):
        server.recv(1)
    proxy.fault = None
    server.settimeout(5)
    assert server.recv(1) == b"x"


@pytest.mark.parametrize(("fault", "how"), [("cut", "in order"), ("reset", "by RST")])
def test_connections_end_also_new_ones(
    ends: tuple[socket.socket, socket.socket], proxy: Proxy, listener: socket.socket, fault: Fault, how: str
) -> None:
    proxy.fault = fault
    assert [ended(end) for end in ends] == [how, how]
    with socket.socket() as client:
        client.settimeout(5)
        assert ended(client, proxy.port) == how
        listener.accept()[0].close()
    proxy.fault = None
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
        until(lambda: listener.accept() is not None, "it passes on again")
        client.sendall(b"x")


def ended(end: socket.socket, port: int = 0) -> str:
    """Wait for the end of a connection, after making it if a port is given; how it came."""
    try:
        if port:
            end.connect(("127.0.0.1", port))
        assert end.recv(1) == b""
    except ConnectionResetError:
        return "by RST"
    return "in order"
