"""Messages to systemd; tests/e2e/test_systemd.py has those of the real command."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.admin import systemd
from tests.support.waiting import until


class FakeHealth:
    """A health that can be changed."""

    def __init__(self) -> None:
        self.works = True
        self.found: list[str] = []

    def alive(self, last_tick: float) -> bool:
        return self.works

    def problems(self) -> list[str]:
        return self.found


@pytest.fixture(params=["file", "abstract"])
def received(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "file" else f"@{tmp_path.name}-{id(request)}"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(name.replace("@", "\0", 1))
        server.settimeout(10)
        yield server


def test_assignments_are_lines_of_one_message(received: socket.socket) -> None:
    systemd.tell("READY=1", "STATUS=ready")

    assert received.recv(1000) == b"READY=1\nSTATUS=ready"


def test_a_long_status_does_not_make_systemd_ignore_the_message(received: socket.socket) -> None:
    systemd.tell("WATCHDOG=1", systemd.status_of(["stream é🙂: not connected"] * 1000))

    message = received.recv(100_000)
    assert message.startswith("WATCHDOG=1\nSTATUS=stream é🙂: not connected; stream".encode())
    assert 1000 < len(message) < 1100


@pytest.mark.parametrize("path", ["", "/nowhere/notify", "vsock:2:1234", "@nobody-listens"])
def test_nobody_who_listens_is_no_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)

    systemd.tell("READY=1")


def test_a_full_socket_stops_nobody(received: socket.socket) -> None:
    for _ in range(10_000):
        systemd.tell("WATCHDOG=1")

    assert received.recv(1000) == b"WATCHDOG=1"


def test_a_status_has_one_line() -> None:
    assert systemd.status_of([]) == "STATUS=ready"
    assert systemd.status_of(["journal: full", "sink a: it said\n READY=1"]) == "STATUS=journal: full; sink a: it said READY=1"


def test_it_tells_that_it_works_until_it_does_not(received: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "_EVERY", 0.001)
    health: Any = FakeHealth()
    stopping = False

    with systemd.telling_that_it_works(health, lambda: 0.0, lambda: stopping):
        assert received.recv(1000) == b"READY=1\nSTATUS=ready"
        assert received.recv(1000) == b"WATCHDOG=1\nSTATUS=ready"
        health.found = ["stream acme: gone"]
        assert b"WATCHDOG=1\nSTATUS=stream acme: gone" in {received.recv(1000) for _ in range(100)}
        stopping = True
        assert b"WATCHDOG=1" in {received.recv(1000) for _ in range(300)}
        health.works = False
        received.settimeout(0.2)
        until(lambda: is_silent(received), "it tells nothing any more")


def is_silent(received: socket.socket) -> bool:
    try:
        received.recv(1000)
    except TimeoutError:
        return True
    return False
