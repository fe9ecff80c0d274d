"""Ports for programs that have to be told theirs."""

import random
import socket
from contextlib import ExitStack
from typing import Final

_RANGE: Final = range(10_240, 32_768)
"""Below those that the system gives to outgoing connections: one of them could take what was free a moment ago."""


def free_port() -> int:
    """Return a port without a listener."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return ports without listeners, all different."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            port = random.SystemRandom().choice(_RANGE)  # Tests may have seeded the common one.
            try:
                held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            found.append(port)
    return found
