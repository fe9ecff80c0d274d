"""Events per second of the whole program: socket, journal with full durability, standard output."""

import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.events import NAMESPACE, canonical_events
from benchmarks.figures import Figure, Sizes, spread
from benchmarks.processes import DELIVERED, Bridge, Helper, bridge, receiver, sender
from bridge.field_types import MEBIBYTE
from bridge.frames import TEXT, encode

_POLL_SECONDS: Final = 0.05
"""Pause between scrapes of a bridge under load; its rate is understated by half of this at most."""


class _Run(NamedTuple):
    rate: float
    cpu_microseconds: float
    resident_mebibytes: float


def throughput(sizes: Sizes) -> list[Figure]:
    """Measure it with standard output discarded and with a pipe that another process reads."""
    figures = [Figure("The sender by itself, events/s", spread([_sender_alone(sizes.events) for _ in range(sizes.rounds)]))]
    for output, run in (("/dev/null", _to_null), ("a pipe with a reader", _to_pipe)):
        runs = [run(sizes.events) for _ in range(sizes.rounds)]
        figures += [
            Figure(f"Stream → journal → {output}, events/s", spread([run.rate for run in runs]), "≥ 150,000"),
            Figure("… CPU of the bridge per event, all threads, µs", spread([run.cpu_microseconds for run in runs], 2)),
            Figure("… memory of the bridge at the end, MiB", spread([run.resident_mebibytes for run in runs])),
        ]
    return figures


def _to_null(events: int) -> _Run:
    with (
        tempfile.TemporaryDirectory() as directory,
        sender(f"--events={events}") as (source, url),
        bridge(Path(directory), {NAMESPACE: {"url": url}}, {"out": {"type": "stdout"}}) as running,
    ):
        return _measure(events, source, running, lambda: running.wait_for(DELIVERED, events, _POLL_SECONDS))


def _to_pipe(events: int) -> _Run:
    read_end, write_end = os.pipe()
    with (
        os.fdopen(read_end, "rb") as output,
        os.fdopen(write_end, "wb") as pipe,
        receiver("pipe", f"--events={events}", stdin=output) as reader,
        tempfile.TemporaryDirectory() as directory,
        sender(f"--events={events}") as (source, url),
        bridge(Path(directory), {NAMESPACE: {"url": url}}, {"out": {"type": "stdout"}}, pipe.fileno()) as running,
    ):
        return _measure(events, source, running, lambda: float(reader.answer()["last"]))


def _measure(events: int, source: Helper, running: Bridge, wait_for_last: Callable[[], float]) -> _Run:
    """Start the sender, and measure the bridge before and after."""
    running.wait_for("event_bridge_stream_connected", 1)
    cpu = running.cpu_seconds()
    source.go()
    first = float(source.answer()["first"])
    last = wait_for_last()
    # The bridge's own count must agree.
    running.wait_for(DELIVERED, events)
    used = running.cpu_seconds() - cpu
    delivered = running.metrics()[DELIVERED]
    if delivered != events:
        raise RuntimeError(f"{events} events were sent, the bridge says that it delivered {delivered:g}")
    return _Run(events / (last - first), used / events * 1e6, running.resident_bytes() / MEBIBYTE)


def _sender_alone(events: int) -> float:
    """Return the events per second that it sends to a reader that discards them."""
    left = events * len(encode(TEXT, canonical_events(1)[0]))
    room = bytearray(1 << 18)
    with sender(f"--events={events}") as (source, url):
        host, port = url.removeprefix("ws://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            connection.recv(len(room))
            source.go()
            while left > 0:
                left -= connection.recv_into(room)
            times = source.answer()
    return events / (float(times["last"]) - float(times["first"]))
