"""A way between two programs that can be spoiled: slow, dripping, cut, reset, or open and dead."""

import contextlib
import select
import socket
import struct
import threading
import time
from typing import Final, Literal, Self

Fault = Literal["latency", "drip", "half-open", "cut", "reset"]
"""Faults of the connection.

latency: Everything takes longer.
drip: A byte at a time.
half-open: Connections stay and are accepted, and nothing goes through; what was under way arrives when it is over.
cut: Connections end in order, and so do new ones.
reset: Connections end with RST, and so do new ones.
"""

FAULTS: Final[tuple[Fault, ...]] = ("latency", "drip", "half-open", "cut", "reset")

_LATENCY: Final = 0.05
_DRIP: Final = 0.0005
_TICK: Final = 0.02
_CHUNK: Final = 256 * 1024
_RST: Final = struct.pack("ii", 1, 0)


class Proxy:
    """Listens, and passes everything on to a port of this machine; a context manager.

    Args:
        target: The port to pass everything on to.
        port: Where to listen; 0 takes a free port.

    Attributes:
        fault: What is wrong now; may be set at any time.
    """

    def __init__(self, target: int, port: int = 0) -> None:
        self.fault: Fault | None = None
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", port), backlog=64)
        self._listener.settimeout(_TICK)
        self.port: int = self._listener.getsockname()[1]
        self._ends = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _start(self, target: object, *arguments: object) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        thread = threading.Thread(target=target, args=arguments, daemon=True, name=f"proxy {self.port}")  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ends.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                client.close()
                continue
            self._start(self._serve, client, server)

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on what either side says, until one of them ends, or the fault says so."""
        other = {client: server, server: client}
        for side in other:
            side.settimeout(None)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while not self._ends.is_set() and self.fault not in {"cut", "reset"}:
                if self.fault == "half-open":
                    time.sleep(_TICK)
                    continue
                for side in select.select(list(other), [], [], _TICK)[0]:
                    data = side.recv(_CHUNK)
                    if not data:
                        return
                    if not self._pass_on(data, other[side]):
                        return
        except OSError:
            pass  # One side is gone, and so is the other in a moment.
        finally:
            for side in other:
                with contextlib.suppress(OSError):
                    if self.fault == "reset":
                        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
                    side.close()

    def _pass_on(self, data: bytes, to: socket.socket) -> bool:
        """Send as the fault has it; return whether the connection lives on."""
        view = memoryview(data)
        while view:
            if self._ends.is_set() or self.fault in {"cut", "reset"}:
                return False
            if self.fault == "half-open":
                time.sleep(_TICK)
                continue
            if self.fault == "latency":
                time.sleep(_LATENCY)
            elif self.fault == "drip":
                time.sleep(_DRIP)
            if not select.select([], [to], [], _TICK)[1]:
                continue
            view = view[to.send(view[:1] if self.fault == "drip" else view, socket.MSG_DONTWAIT) :]
        return True
