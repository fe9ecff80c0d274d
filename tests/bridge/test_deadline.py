"""A time limit for a call, and connecting to a name that has several addresses."""

import socket
import threading
import time
from pathlib import Path

import pytest

from bridge.deadline import call_within, connect
from tests.support.servers.silent import refusing_address, resolve, silent_address


def unexpected(*_: object) -> None:
    pytest.fail("not to be called")


def test_the_result_of_a_call_in_time_is_returned() -> None:
    assert call_within(10, lambda: 5, cut=unexpected, discard=unexpected) == 5


@pytest.mark.parametrize("error", [ValueError("refused"), TimeoutError("its own")])
def test_the_error_of_a_call_in_time_is_raised(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        call_within(10, fail, cut=unexpected, discard=unexpected)

    assert raised.value is error


def test_a_late_call_is_cut_and_its_result_discarded() -> None:
    cut, discarded = threading.Event(), threading.Event()
    results: list[str] = []

    def late() -> str:
        assert cut.wait(10)
        return "late"

    def discard(result: str) -> None:
        results.append(result)
        discarded.set()

    with pytest.raises(TimeoutError):
        call_within(0.01, late, cut=cut.set, discard=discard)

    assert discarded.wait(10)
    assert results == ["late"]


def test_the_error_of_a_late_call_is_dropped() -> None:
    cut, over = threading.Event(), threading.Event()

    def late() -> None:
        assert cut.wait(10)
        over.set()
        raise ValueError("cut")

    with pytest.raises(TimeoutError):
        call_within(0.01, late, cut=cut.set, discard=unexpected)

    assert over.wait(10)


@pytest.mark.parametrize("first", ["silent", "refuses", "no route"])
def test_the_next_address_of_a_name_is_tried_within_the_deadline(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_address() as silent, socket.create_server(("127.0.0.1", 0)) as server:
        others = {"silent": silent, "refuses": refusing_address(), "no route": ("2001:db8::1", 9)}
        resolve(monkeypatch, "bridge.test", [others[first], server.getsockname()])

        with connect("bridge.test", 80, time.monotonic() + 10, [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]) as connection:
            assert connection.getpeername() == server.getsockname()
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_of_addresses_that_answer_the_first_is_taken_and_no_socket_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        silent_address() as silent,
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        resolve(monkeypatch, "bridge.test", [silent, first.getsockname(), second.getsockname()])
        before = len(list(Path("/proc/self/fd").iterdir()))

        with connect("bridge.test", 80, time.monotonic() + 10) as connection:
            assert connection.getpeername() == first.getsockname()
            assert len(list(Path("/proc/self/fd").iterdir())) == before + 1


def test_a_name_without_an_address_that_answers_is_given_up_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_address() as silent:
        resolve(monkeypatch, "bridge.test", [silent, refusing_address(), silent])

        with pytest.raises(TimeoutError):
            connect("bridge.test", 80, time.monotonic() + 0.6)


def test_if_no_address_can_be_reached_the_cause_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, "bridge.test", [refusing_address(), refusing_address()])
    with pytest.raises(ConnectionRefusedError, match="Connection refused"):
        connect("bridge.test", 80, time.monotonic() + 10)

    resolve(monkeypatch, "bridge.test", [])
    with pytest.raises(socket.gaierror, match="no address"):
        connect("bridge.test", 80, time.monotonic() + 10)
