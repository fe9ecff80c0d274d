"""A process that is a Stream API server, and sends at full speed or at a rate.

    python -m benchmarks.sender --events 500000            # made in memory before the first connection is accepted
    python -m benchmarks.sender --events 10000 --rate 1000 # made one by one: their uuids hold the time

It writes its port to standard output as JSON, then waits for connections. It sends the events to the first connection when a
line arrives on standard input, then writes the monotonic times of the first and the last byte in seconds. It answers pings
until it is terminated.
"""

import argparse
import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence

from websockets.sync.server import ServerConnection, serve

from benchmarks.events import frames_in_chunks, stamped_event
from bridge.frames import TEXT, encode


def main() -> None:
    """Run the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--rate", type=float, default=0.0)
    args = parser.parse_args()
    send = _paced(args.events, args.rate) if args.rate else _blast(list(frames_in_chunks(args.events)))
    sends = iter([send])

    def handle(connection: ServerConnection) -> None:
        # Whole frames, past the library, which would make them one by one.
        next(sends, _nothing)(connection.socket)
        for _ in connection:
            pass

    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    logging.disable()  # A connection that is lost is no news.
    with serve(handle, sock=listener, compression=None, ping_interval=None) as server:
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
        server.serve_forever()


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


if __name__ == "__main__":
    main()
