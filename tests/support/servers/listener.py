"""A server whose port can be closed and opened again, and whose connections can be cut."""

import socket
import ssl
import threading
from abc import ABC, abstractmethod
from contextlib import suppress


class Listener(ABC):
    """Accepts connections on a port of its own until it is stopped; it may be started again on the same port.

    Args:
        context: What is needed for TLS, if that is spoken.

    Attributes:
        port: The port, on loopback.
        running: Whether connections are accepted.
        connections: How many were accepted.
        gate: While it is not set, nothing shall be answered; `stop` sets it.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.port = 0
        self.connections = 0
        self.gate = threading.Event()
        self.gate.set()
        self._context = context
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.start()

    @abstractmethod
    def talk(self, connection: socket.socket, number: int) -> None:
        """Serve a connection, which ends when this returns; `number` counts them from 1. An `OSError` is its end, too."""

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self.running = True
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections, and break those that there are."""
        self.running = False
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()
        self.end_connections()
        self.gate.set()

    def end_connections(self, farewell: bytes = b"") -> None:
        """Break the connections that there are, after some last words."""
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    if farewell:
                        connection.sendall(farewell)
                    # Without the goodbye of TLS, as a cable that is cut.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while self.running:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection, self.connections), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with suppress(OSError):
                if self._context:
                    connection = self._context.wrap_socket(connection, server_side=True)
                with self._lock:
                    self._open.add(connection)
                self.talk(connection, number)
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()
