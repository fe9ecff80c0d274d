"""What the real command tells systemd: that it runs, works, is ready or why not, and stops."""

import socket
from pathlib import Path

import pytest

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import Bridge, command
from tests.support.ports import free_port
from tests.support.waiting import until


class Listening:
    """The socket of a fake systemd.

    Attributes:
        name: The value of `NOTIFY_SOCKET`.
        messages: All that came, in order.
    """

    def __init__(self, directory: Path) -> None:
        self.name = str(directory / "notify")
        self.messages: list[list[str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self.name)

    def has(self, *lines: str) -> bool:
        """Return True if a message has come that has lines which begin like these."""
        try:
            while True:
                self.messages.append(self._socket.recv(10_000).decode().splitlines())
        except BlockingIOError:
            return any(all(any(got.startswith(line) for got in message) for line in lines) for message in self.messages)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Listening:
    return Listening(tmp_path)


def test_systemd_is_told_of_the_start_of_readiness_and_of_the_stop(tmp_path: Path, systemd: Listening) -> None:
    simulated = SimulatorSettings(port=free_port(), rate=5)
    stream = {"url": f"ws://127.0.0.1:{simulated.port}", "backoff": {"max": "1s"}}
    bridge = Bridge(tmp_path / "bridge", {"streams": {"acme": stream}, "health": {"stream_grace": "500ms"}})
    bridge.variables["NOTIFY_SOCKET"] = systemd.name
    with Simulator(simulated):
        bridge.launch()
        until(lambda: systemd.has("READY=1", "STATUS=ready"), "it tells that it is ready")
        assert bridge.answers(), "the port answered before"
        until(lambda: systemd.has("WATCHDOG=1", "STATUS=ready"), "it tells that it works")
    until(lambda: systemd.has("WATCHDOG=1", "STATUS=stream acme: not connected"), "it tells that it is not ready, and works")
    with Simulator(simulated):
        systemd.messages.clear()
        until(lambda: systemd.has("WATCHDOG=1", "STATUS=ready"), "it tells that it is ready again")
        assert not systemd.has("STOPPING=1")
        assert bridge.stop() == 0
    assert systemd.has("STOPPING=1", "STATUS=stopping")
    systemd.close()


def test_systemd_is_told_of_no_start_that_fails(tmp_path: Path, systemd: Listening) -> None:
    (tmp_path / "bridge.yaml").write_text("nonsense: 1\n")

    done = command("run", "--config", "bridge.yaml", cwd=tmp_path, NOTIFY_SOCKET=systemd.name)

    assert done.returncode == 78
    assert not systemd.has()
    systemd.close()
