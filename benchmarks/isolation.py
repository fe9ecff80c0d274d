"""The cost of a dead sink for the other sinks, in latency and memory; the cost of failing events for all other events.

Nobody listens at the address of a dead sink. It begins with a backlog, as after an hour at 30 events/s.
"""

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.backlog import fill
from benchmarks.events import NAMESPACE
from benchmarks.figures import Figure, Sizes, percentile, spread
from benchmarks.processes import ACCEPTED, DELIVERED, bridge, receiver, sender
from bridge.field_types import MEBIBYTE

_RATE: Final = 1000
_LIVE: Final[Mapping[str, Mapping[str, object]]] = {"live": {"type": "stdout"}}
_DEAD: Final[Mapping[str, Mapping[str, object]]] = {
    "dead": {"type": "webhook", "url": "http://127.0.0.1:9/", "backoff": {"first": "60s"}}
}
"""Nobody listens on the port of the discard service. After an hour, an unreachable sink is tried about twice a minute."""

_FAILING: Final = 50
_PENDING: Final = "event_bridge_sink_pending_events"


def isolation(sizes: Sizes) -> list[Figure]:
    """Measure latency, memory and failing events."""
    # A day at 30 events/s is 2.6 million events; the dedup window holds one million.
    return [*_latency(sizes), _memory(int(sizes.window * 2.6)), *_failures(sizes)]


def _latency(sizes: Sizes) -> list[Figure]:
    events, backlog = max(1, int(sizes.seconds * _RATE)), min(108_000, sizes.window)
    # In turn, so that other load on the machine affects both.
    pairs = [(_p99(events, backlog, dead=False), _p99(events, backlog, dead=True)) for _ in range(sizes.rounds)]
    alone, beside = zip(*pairs, strict=True)
    change = (median(beside) / median(alone) - 1) * 100
    return [
        Figure(f"Socket → a pipe with a reader, {_RATE:,} events/s: p99, ms", spread(alone, 2)),
        Figure(f"… beside a dead sink with {backlog:,} events pending: p99, ms", spread(beside, 2), f"{change:+.0f} %, < 10 %"),
    ]


def _p99(events: int, backlog: int, *, dead: bool) -> float:
    read_end, write_end = os.pipe()
    with (
        os.fdopen(read_end, "rb") as output,
        os.fdopen(write_end, "wb") as pipe,
        tempfile.TemporaryDirectory() as directory,
        receiver("pipe", "--latency", f"--events={events}", stdin=output) as reader,
        sender(f"--events={events}", f"--rate={_RATE}") as (source, url),
    ):
        if dead:
            fill(Path(directory) / "journal.db", backlog, behind="dead", done=["live"])
        sinks = {**_LIVE, **_DEAD} if dead else _LIVE
        with bridge(Path(directory), {NAMESPACE: {"url": url}}, sinks, pipe.fileno()) as running:
            running.wait_until_ready()
            source.go()
            source.answer()
            return percentile(reader.answer()["milliseconds"], 0.99)


def _memory(events: int) -> Figure:
    """Measure the growth of memory from a tenth of the events, when the dedup window is full, to all of them."""
    with tempfile.TemporaryDirectory() as directory, sender(f"--events={events}") as (source, url):
        journal = {"max_bytes": "4GiB", "dedup": {"max_events": max(1, events // 100)}}
        streams = {NAMESPACE: {"url": url}}
        with bridge(Path(directory), streams, {**_LIVE, **_DEAD}, journal=journal) as running:
            running.wait_for("event_bridge_stream_connected", 1)
            source.go()
            resident: list[int] = []
            for tenth in range(1, 11):
                running.wait_for(DELIVERED, events * tenth // 10)
                resident.append(running.resident_bytes())
            source.answer()
            metrics = running.metrics()
    if metrics[ACCEPTED] != events or metrics[_PENDING] != events:
        raise RuntimeError(f"{events} events were sent; the counters are: {metrics}")
    first, most = resident[0] / MEBIBYTE, max(resident) / MEBIBYTE
    what = f"Memory after a tenth of {events:,} events of a dead sink → at most until the last, MiB"
    return Figure(what, f"{first:.1f} → {most:.1f}", "10 more at most")


def _failures(sizes: Sizes) -> list[Figure]:
    events = sizes.events // 50  # Requests take longer than lines.
    pairs = [(_requests(events, failing=0), _requests(events, failing=_FAILING)) for _ in range(sizes.rounds)]
    sound, mixed = zip(*pairs, strict=True)
    change = (median(mixed) / median(sound) - 1) * 100
    return [
        Figure("Webhook, a request per event, events/s", spread(sound)),
        Figure(
            f"… if every {_FAILING}th event is answered with 500, all others", spread(mixed), f"{change:+.0f} %, full speed"
        ),
    ]


def _requests(events: int, *, failing: int) -> float:
    """Return the events per second until all that do not fail are delivered; the others are retried meanwhile."""
    with (
        tempfile.TemporaryDirectory() as directory,
        receiver("webhook", f"--events={events}", f"--failing={failing}") as hook,
        sender(f"--events={events}") as (source, url),
    ):
        # max_pending is so high that the sink is never paused.
        retry = {"first_delay": "1s", "max_pending": events}
        sink = {"type": "webhook", "url": f"http://127.0.0.1:{hook.answer()['port']}/", "ordering": "none", "retry": retry}
        with bridge(Path(directory), {NAMESPACE: {"url": url}}, {"hook": sink}) as running:
            running.wait_for("event_bridge_stream_connected", 1)
            source.go()
            first = float(source.answer()["first"])
            last = running.wait_until(
                "only what failed is pending",
                lambda now: now.get(ACCEPTED) == events and now[_PENDING] == now["event_bridge_sink_retry_events"],
            )
            delivered = running.metrics()[DELIVERED]
    expected = events / failing if failing else 0
    # The receiver picks by checksum, which is close to random: allow five standard deviations.
    if abs(events - delivered - expected) > 5 * math.sqrt(expected) + bool(failing):
        raise RuntimeError(f"of {events} events {events - delivered} were not delivered, not about {expected:.0f}")
    return delivered / (last - first)
