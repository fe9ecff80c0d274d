"""Messages to systemd, by the protocol of sd_notify(3); nothing if it did not start the process with `Type=notify`."""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from bridge.admin.health import Health

_SOCKET: Final = "NOTIFY_SOCKET"
_EVERY: Final = 1.0
"""Seconds between messages."""

_STATUS: Final = 1024
"""Bytes of a status. systemd ignores a message of more than 4096, and with it the sign of life that is in it."""


def tell(*assignments: str) -> None:
    """Send assignments like `READY=1` to systemd. Takes no lock, so that a signal handler may call it; never raises."""
    path = os.environ.get(_SOCKET)
    if not path:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as client:
        client.sendto("\n".join(assignments).encode(), address)


def status_of(problems: Sequence[str]) -> str:
    """Return the assignment of a status in one line: the reasons why the process is not ready, cut to `_STATUS` bytes."""
    text = " ".join("; ".join(problems).split()) or "ready"
    return "STATUS=" + text.encode()[:_STATUS].decode(errors="ignore")


@contextmanager
def telling_that_it_works(health: Health, last_tick: Callable[[], float], is_stopping: Callable[[], bool]) -> Iterator[None]:
    """Tell systemd that the process has started, and then again and again that it works, and whether it is ready.

    Args:
        health: Knows whether it works.
        last_tick: Returns the monotonic time of the main thread's last tick; systemd is told nothing if that is long ago.
        is_stopping: Returns True if the process was told to stop.
    """
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(_EVERY):
            if health.alive(last_tick()):
                tell("WATCHDOG=1", *([] if is_stopping() else [status_of(health.problems())]))

    tell("READY=1", status_of(health.problems()))
    if os.environ.get(_SOCKET):
        threading.Thread(target=repeat, name="systemd", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
