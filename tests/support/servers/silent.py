"""Addresses that do not answer, and names that a test resolves itself."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

Address = tuple[str, int]


@contextlib.contextmanager
def silent_address() -> Iterator[Address]:
    """An address whose listen queue is full: attempts to connect get no answer."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address: Address = listener.getsockname()
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(address)
        yield address


def refusing_address() -> Address:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address: Address = unused.getsockname()
        return address


def resolve(monkeypatch: pytest.MonkeyPatch, name: str, addresses: list[Address]) -> None:
    """Let a name have these addresses, in this order."""
    original = socket.getaddrinfo

    def look_up(host: str, *args: Any, **kwargs: Any) -> Any:
        if host != name:
            return original(host, *args, **kwargs)
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(families[":" in address[0]], socket.SOCK_STREAM, 0, "", address) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
