"""A process that is a Stream API server, and sends at full speed or at a rate.

    python -m benchmarks.sender --events 500000            # made in memory before the first connection is accepted
    python -m benchmarks.sender --events 10000 --rate 1000 # made one by one: their uuids hold the time

It writes its port to standard output as JSON, then waits for connections. It sends the events to the first connection when a
line arrives on standard input, then writes the monotonic times of the first and the last byte in seconds. It answers pings
until it is terminated.
"""

import argparse
import base64
import hashlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from benchmarks.events import frames_in_chunks, stamped_event
from bridge.frames import PING, PONG, TEXT, FrameReader, encode


def main() -> None:
    """Run the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.0)
    args = parser.parse_args()
    send = _paced(args.events, args.rate) if args.rate else _blast(list(frames_in_chunks(args.events)))
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection, send), daemon=True).start()
        send = _nothing


def _serve(connection: socket.socket, send: Callable[[socket.socket], None]) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection, suppress(ConnectionError):
        _shake_hands(connection)
        send(connection)
        _answer_pings(connection)


def _shake_hands(connection: socket.socket) -> None:
    """Do the server's part (RFC 6455, section 4.2); the client's request is not checked."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(4096)
    key = next(line.split(b": ", 1)[1] for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: "))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def _blast(chunks: Sequence[bytes]) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        sys.stdin.readline()
        first = time.monotonic()
        for chunk in chunks:
            connection.sendall(chunk)
        print(json.dumps({"first": first, "last": time.monotonic()}), flush=True)

    return send


def _paced(events: int, rate: float) -> Callable[[socket.socket], None]:
    def send(connection: socket.socket) -> None:
        sys.stdin.readline()
        first = time.monotonic()
        for index in range(events):
            time.sleep(max(0.0, first + index / rate - time.monotonic()))
            connection.sendall(encode(TEXT, stamped_event()))
        print(json.dumps({"first": first, "last": time.monotonic()}), flush=True)

    return send


def _nothing(_: socket.socket) -> None:
    """Send nothing: all connections but the first."""


def _answer_pings(connection: socket.socket) -> None:
    reader = FrameReader(1 << 16, masked=True)
    while data := connection.recv(4096):
        for control in reader.feed(data).controls:
            if control.opcode == PING:
                connection.sendall(encode(PONG, control.payload))


if __name__ == "__main__":
    main()
