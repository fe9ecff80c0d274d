"""A simulator on a port of its own, and clients of it."""

import base64
import contextlib
import http.client
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import websocket

from bridge.simulator.server import Simulator, SimulatorSettings

PATH = "/api/audit/v1/events"
NOW = datetime(2016, 2, 1, 16, 47, 28, tzinfo=UTC)
BASIC = "Basic " + base64.b64encode(b"bob:secret").decode()
UPGRADE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}
ERROR_FRAME = '{"type":"error","data":{"errorMessage":"UNAUTHORIZED"}}'


def settings(**options: Any) -> SimulatorSettings:
    return SimulatorSettings(**{"port": 0, "rate": 0, "seed": 1, "record": True, **options})


@contextlib.contextmanager
def simulator(**options: Any) -> Iterator[Simulator]:
    with Simulator(settings(**options)) as running:
        yield running


@contextlib.contextmanager
def client(running: Simulator, path: str = PATH, **options: Any) -> Iterator[websocket.WebSocket]:
    connection = websocket.create_connection(running.url + path, timeout=10, **options)
    try:
        yield connection
    finally:
        connection.shutdown()  # type: ignore[no-untyped-call]


def read_events(connection: websocket.WebSocket, count: int) -> list[dict[str, Any]]:
    return [json.loads(connection.recv()) for _ in range(count)]


def read_to_the_end(connection: websocket.WebSocket) -> tuple[list[str], int | None]:
    """All messages until the server ends the connection, and the code of its close frame, if there was one."""
    received: list[str] = []
    while True:
        try:
            opcode, frame = connection.recv_data_frame(control_frame=True)
        except websocket.WebSocketConnectionClosedException:
            return received, None
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return received, int.from_bytes(frame.data[:2], "big")
        if opcode == websocket.ABNF.OPCODE_TEXT:
            received.append(frame.data.decode())


def everything(running: Simulator, *connections: websocket.WebSocket) -> list[list[dict[str, Any]]]:
    """What each client got when the simulator has told all."""
    assert running.finished.wait(10)
    running.disconnect_all()
    return [[json.loads(text) for text in read_to_the_end(connection)[0]] for connection in connections]


def status_of(
    running: Simulator, path: str = PATH, headers: Mapping[str, str] = UPGRADE
) -> tuple[int, http.client.HTTPMessage, Any]:
    """Status, headers and JSON body of a handshake that is refused."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    connection.request("GET", path, headers=dict(headers))
    response = connection.getresponse()
    body = json.loads(response.read()) if response.status != http.client.SWITCHING_PROTOCOLS else None
    connection.close()
    return response.status, response.headers, body
