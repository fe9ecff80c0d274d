"""A process that receives the events that the bridge delivers, and reports their count and latency.

    python -m benchmarks.receiver pipe --events 500000      # JSON lines on standard input
    python -m benchmarks.receiver webhook --events 10000    # JSON arrays by POST; its port goes to standard output first

When all events have arrived, it writes one line of JSON: the number of missing events, the monotonic time of the last one
in seconds, and with --latency the milliseconds that each took, which its uuid shows (`benchmarks.events`).
"""

import argparse
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from benchmarks.events import stamp_of

_UUID: Final = re.compile(rb'"uuid":"([0-9a-f-]{36})"')


class Tally:
    """Counts the events that arrive.

    Args:
        events: The number of expected events.
        latency: Whether the uuids hold the time of sending.
    """

    def __init__(self, events: int, *, latency: bool) -> None:
        self.complete = threading.Event()
        self._missing = events
        self._latency = latency
        self._milliseconds: list[float] = []
        self._last = 0.0
        self._lock = threading.Lock()

    def add(self, lines: bytes, count: int) -> None:
        """Count `count` events, which arrived in `lines`."""
        now = time.monotonic_ns()
        with self._lock:
            if self._latency:
                self._milliseconds += [(now - stamp_of(identity)) / 1e6 for identity in _UUID.findall(lines)]
            self._missing -= count
            self._last = now / 1e9
            if self._missing <= 0:
                self.complete.set()

    def report(self) -> None:
        """Write the result to standard output."""
        print(json.dumps({"missing": self._missing, "last": self._last, "milliseconds": self._milliseconds}), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("pipe", "webhook"))
    parser.add_argument("--events", type=int, required=True)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--failing", type=int, default=0, help="answer requests for about every so manieth event with 500")
    args = parser.parse_args(arguments)
    tally = Tally(args.events, latency=args.latency)
    if args.kind == "pipe":
        _read_pipe(tally)
    else:
        _serve(tally, args.failing)
    tally.report()


def _read_pipe(tally: Tally) -> None:
    rest = b""
    while not tally.complete.is_set() and (data := os.read(0, 1 << 20)):
        lines, newline, rest_of_data = data.rpartition(b"\n")
        tally.add(rest + lines, data.count(b"\n"))
        rest = rest_of_data if newline else rest + data


def _serve(tally: Tally, failing: int) -> None:
    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if failing and any(zlib.crc32(identity) % failing == 0 for identity in _UUID.findall(body)):
                self.send_response_only(500)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response_only(204)
            self.end_headers()
            # After the response: an event has arrived when it is acknowledged.
            tally.add(body, body.count(b'"uuid":"'))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tally.complete.wait()


if __name__ == "__main__":
    main()
