"""Latency from the socket to the receiver, at a thousand events per second."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.events import NAMESPACE
from benchmarks.figures import Figure, Sizes, percentile
from benchmarks.processes import Helper, bridge, receiver, sender

_RATE: Final = 1000


def latency(sizes: Sizes) -> list[Figure]:
    """Measure it for a pipe with a reader and for a webhook that takes many events per request."""
    events = max(1, int(sizes.seconds * _RATE))
    runs = (("a pipe with a reader", _to_pipe), ("a webhook, batches", _to_webhook))
    return [
        Figure(f"Socket → {name}, {_RATE:,} events/s: p50 / p99 / max, ms", _percentiles(run(events)), "p99 < 25")
        for name, run in runs
    ]


def _to_pipe(events: int) -> list[float]:
    read_end, write_end = os.pipe()
    with (
        os.fdopen(read_end, "rb") as output,
        os.fdopen(write_end, "wb") as pipe,
        receiver("pipe", "--latency", f"--events={events}", stdin=output) as reader,
    ):
        return _run(events, {"type": "stdout"}, reader, pipe.fileno())


def _to_webhook(events: int) -> list[float]:
    with receiver("webhook", "--latency", f"--events={events}") as hook:
        url = f"http://127.0.0.1:{hook.answer()['port']}/"
        return _run(events, {"type": "webhook", "url": url, "format": "batch"}, hook)


def _run(events: int, sink: dict[str, object], there: Helper, stdout: int | None = None) -> list[float]:
    """Return the milliseconds that each event took."""
    with (
        tempfile.TemporaryDirectory() as directory,
        sender(f"--events={events}", f"--rate={_RATE}") as (source, url),
        bridge(Path(directory), {NAMESPACE: {"url": url}}, {"sink": sink}, stdout) as running,
    ):
        running.wait_for("event_bridge_stream_connected", 1)
        source.go()
        source.answer()
        milliseconds: list[float] = there.answer()["milliseconds"]
        return milliseconds


def _percentiles(milliseconds: Sequence[float]) -> str:
    return " / ".join(f"{percentile(milliseconds, share):.1f}" for share in (0.5, 0.99, 1.0))
