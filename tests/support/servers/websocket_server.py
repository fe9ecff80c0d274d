"""Websocket servers: an independent one with TLS, and one that misbehaves by hand; and sessions with them."""

import base64
import hashlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import pytest
from pydantic import SecretStr
from websockets.sync.server import ServerConnection

from bridge.source import Ended
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.source import DockerCloudSession, DockerCloudSource

DEADLINE = 20.0

SECRET = "c2VjcmV0LXVzZXI6c2VjcmV0LWtleQ=="  # secret-user:secret-key

AUTHORIZATION = f"Basic {SECRET}"


def source(url: str, *, authorization: str | None = AUTHORIZATION, **changes: Any) -> DockerCloudSource:
    settings = DockerCloudSettings(url=url, **changes)
    return DockerCloudSource(settings, lambda: with_header(settings, authorization), user_agent="event-bridge")


def with_header(settings: DockerCloudSettings, authorization: str | None) -> DockerCloudSettings:
    return settings.model_copy(update={"auth": None if authorization is None else SecretStr(authorization)})


def opened(url: str, **changes: Any) -> closing[DockerCloudSession]:
    return closing(source(url, **changes).open(None))


def failure(url: str, **changes: Any) -> Ended:
    """Why no session could be opened."""
    with pytest.raises(Ended) as caught:
        source(url, **changes).open(None)
    return caught.value


def read_until_end(session: DockerCloudSession) -> tuple[list[bytes], Ended]:
    messages: list[bytes] = []
    end_of_patience = time.monotonic() + DEADLINE
    while time.monotonic() < end_of_patience:
        try:
            messages += session.read().messages
        except Ended as ended:
            return messages, ended
    raise AssertionError("the session did not end")


def read_messages(session: DockerCloudSession, count: int) -> list[bytes]:
    messages: list[bytes] = []
    end_of_patience = time.monotonic() + DEADLINE
    while len(messages) < count and time.monotonic() < end_of_patience:
        messages += session.read().messages
    return messages


Script = Callable[[socket.socket], None]


class RawServer:
    """Gives each connection to the script, in a thread; what a script raises because the client left is ignored."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.connections: list[socket.socket] = []
        self.requests: list[str] = []
        self.left = threading.Event()
        self.port: int = self.listener.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with suppress(OSError):
            self._script(connection)

    def request(self, connection: socket.socket) -> str:
        """Read one request head and remember it."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            received = connection.recv(1)
            if not received:
                raise ConnectionResetError
            head += received
        self.requests.append(head.decode())
        return head.decode()

    def upgrade(self, connection: socket.socket, headers: str = "", after: bytes = b"") -> None:
        """Accept the websocket and send `after` in the same packet."""
        key = next(line for line in self.request(connection).splitlines() if line.startswith("Sec-WebSocket-Key: "))
        digest = hashlib.sha1(key.split()[1].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        answer += f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}\r\n{headers}\r\n"
        connection.sendall(answer.encode("latin-1") + after)

    def wait_for_leaving(self, connection: socket.socket) -> None:
        """Read until the client has closed the connection."""
        with suppress(OSError):
            while connection.recv(4096):
                pass
        self.left.set()

    def close(self) -> None:
        for opened_socket in [self.listener, *self.connections]:
            with suppress(OSError):
                opened_socket.shutdown(socket.SHUT_RDWR)
            opened_socket.close()


StartRaw = Callable[[Callable[[RawServer, socket.socket], None]], RawServer]

StartServer = Callable[..., str]


class Tls:
    """A private authority, and the context of a server that it vouches for under the name localhost."""

    def __init__(self, folder: Path) -> None:
        self.ca_file = str(folder / "ca.pem")
        key, request, certificate, extension = (folder / name for name in ("key.pem", "request.pem", "cert.pem", "names.txt"))
        extension.write_text("subjectAltName=DNS:localhost\n")
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        authority = ["-x509", "-subj", "/CN=test authority", "-keyout", str(folder / "ca.key"), "-out", self.ca_file]
        self._openssl("req", *new_key, *authority)
        self._openssl("req", *new_key, "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(request))
        signed_by = ["-CA", self.ca_file, "-CAkey", str(folder / "ca.key"), "-CAcreateserial", "-extfile", str(extension)]
        self._openssl("x509", "-req", "-in", str(request), "-out", str(certificate), *signed_by)
        self.context = SSLContext(PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def stay(connection: ServerConnection) -> None:
    """Read until the client goes."""
    for _ in connection:
        pass


def answering(answer: str) -> Callable[[RawServer, socket.socket], None]:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.request(connection)
        connection.sendall(answer.encode())
        server.wait_for_leaving(connection)

    return script


def response(status: str, body: str = "", headers: str = "") -> str:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body.encode())}\r\nX-Internal: {SECRET}\r\n{headers}\r\n{body}"


def drip(server: RawServer, connection: socket.socket) -> None:
    """Send an answer that never ends, in pieces that come soon enough for any timeout of a single read."""
    try:
        while not server.left.wait(0.01):
            connection.sendall(b"H")
    except OSError:
        server.left.set()
