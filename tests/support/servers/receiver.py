"""A webhook receiver on loopback that does what a test says: answers, stays silent, drips, hangs up."""

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.servers.listener import Listener


class Request(NamedTuple):
    """One request as it came in; `connection` counts connections from 1. Names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def events(self) -> list[dict[str, Any]]:
        if self.headers["content-type"] == "application/x-ndjson":
            return [json.loads(line) for line in self.body.splitlines()]
        body = json.loads(self.body)
        return body if isinstance(body, list) else [body]

    @property
    def uuids(self) -> list[str]:
        return [event["uuid"] for event in self.events]


Talk = Callable[[socket.socket], None]
"""Says something unusual on the connection; then the connection is closed."""


def reply(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def make_certificate(folder: Path, host: str = "localhost", password: str = "") -> tuple[Path, Path]:
    """Make a certificate that signs itself, and its key."""
    certificate, key = folder / f"{host}.crt", folder / f"{host}.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    command += ["-passout", f"pass:{password}"] if password else ["-nodes"]
    command += ["-subj", f"/CN={host}", "-addext", f"subjectAltName=DNS:{host}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def server_context(certificate: Path, key: Path, clients: Path | None = None) -> ssl.SSLContext:
    """Make what a receiver needs for TLS; `clients` are the certificates that it demands of its clients."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    if clients is not None:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def drip(data: bytes) -> Talk:
    """Send a byte every 20 ms, for ever if it lasts that long."""

    def talk(connection: socket.socket) -> None:
        pause = threading.Event()
        for byte in data:
            connection.sendall(bytes([byte]))
            pause.wait(0.02)

    return talk


class Receiver(Listener):
    """Answers requests over HTTP.

    Attributes:
        answer: What to answer a request with; `None` closes the connection without an answer.
        requests: All requests, in the order in which they were read.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answer: Callable[[Request], bytes | Talk | None] = lambda _: reply()
        self.requests: list[Request] = []
        super().__init__(context)

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://localhost:{self.port}/hook"

    def talk(self, connection: socket.socket, number: int) -> None:
        for request in _read_requests(connection, number):
            self.requests.append(request)
            self.gate.wait(30)
            answer = self.answer(request)
            if not isinstance(answer, bytes):
                if answer is not None:
                    answer(connection)
                return
            connection.sendall(answer)


def _read_requests(connection: socket.socket, number: int) -> Iterator[Request]:
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            more = connection.recv(1 << 16)
            if not more:
                return
            data += more
        head, _, data = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        parts = [data]
        missing = length - len(data)
        while missing > 0:
            more = connection.recv(min(missing, 1 << 20))
            if not more:
                return
            parts.append(more)
            missing -= len(more)
        data = b"".join(parts)
        body, data = data[:length], data[length:]
        yield Request(method, target, headers, body, number)
