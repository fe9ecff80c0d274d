"""The command backlog."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from bridge.cli.output import Table, age, line_width, rate
from bridge.cli.target import Target
from bridge.journal import SinkBacklog

DONE: Final = 0

_STEADY_SECONDS: Final = 10.0
"""A backlog that is delivered in so much time is only what is under way, even if it does not fall."""


class Pace(NamedTuple):
    """Rates of a sink between two samples.

    Attributes:
        delivered: Delivered events per second.
        accepted: Accepted events per second.
        drain: Seconds until no event is pending, at this rate; infinite if the backlog does not fall.
    """

    delivered: float
    accepted: float
    drain: float


def pace(first: SinkBacklog, second: SinkBacklog, seconds: float) -> Pace:
    """Compare two samples with so many seconds in between."""
    drained = (first.pending - second.pending) / seconds
    drain = 0.0 if not second.pending else second.pending / drained if drained > 0 else math.inf
    delivered, accepted = second.delivered - first.delivered, second.accepted - first.accepted
    return Pace(max(0.0, delivered / seconds), max(0.0, accepted / seconds), drain)


def backlog(
    target: Target,
    *,
    interval: float,
    as_json: bool,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> int:
    """Print the backlog of each sink, and how fast it falls; return the exit status.

    Args:
        target: The journal.
        interval: Seconds between two samples; without a running bridge, one sample is enough.
        as_json: Print lines of JSON instead of a table.
        sleep: Waits for some seconds.
        monotonic: Monotonic clock.

    Raises:
        OperationError: The journal can't be read.
    """
    with target.open_reader() as reader:
        looked_at, sinks = monotonic(), reader.backlog()
        paces: Mapping[str, Pace] = {}
        if reader.running and sinks:
            sleep(interval)
            before, sinks = sinks, reader.backlog()
            seconds = max(monotonic() - looked_at, 0.001)
            paces = {name: pace(before[name], sink, seconds) for name, sink in sinks.items() if name in before}
    if as_json:
        for name, sink in sinks.items():
            print(_json(name, sink, paces.get(name)))
        return DONE
    table = Table(
        [*("SINK", ">PENDING", ">RETRYING", ">DEAD LETTERS", ">OLDEST", ">RATE", ">DRAINS IN"), "STATE"], line_width()
    )
    print("\n".join(table.lines([_row(name, sink, paces.get(name)) for name, sink in sinks.items()])) or "no sinks")
    if not reader.running:
        print("no bridge runs on this journal", file=sys.stderr)
    return DONE


def _row(name: str, sink: SinkBacklog, its: Pace | None) -> list[str]:
    oldest = "-" if not sink.pending or sink.lag_seconds is None else age(sink.lag_seconds)
    drains = _drains(sink, its) if its and sink.pending and sink.up else "-"
    again = f"; next try in {age(max(0.0, sink.next_attempt.timestamp() - time.time()))}" if sink.next_attempt else ""
    state = "stopped" if sink.up is None else "up" if sink.up else f"down: {sink.error}{again}"
    counts = [f"{number:,}" for number in (sink.pending, sink.retrying, sink.dead_letters)]
    return [name, *counts, oldest, "-" if its is None else rate(its.delivered), drains, state]


def _drains(sink: SinkBacklog, its: Pace) -> str:
    """Say when nothing is pending any more; never only of a sink to which more comes than it takes."""
    if its.drain < math.inf:
        return age(its.drain)
    if sink.pending <= sink.retrying or not its.delivered:
        return "after retries" if sink.retrying else "-"
    turn = sink.pending / its.delivered
    return age(turn) if turn < _STEADY_SECONDS else "never at this rate"


def _json(name: str, sink: SinkBacklog, its: Pace | None) -> str:
    known = its is not None and sink.up
    line = {
        "sink": name,
        "pending": sink.pending,
        "retrying": sink.retrying,
        "dead_letters": sink.dead_letters,
        "oldest_seconds": round(sink.lag_seconds, 1) if sink.pending and sink.lag_seconds is not None else None,
        "delivered_per_second": round(its.delivered, 3) if its else None,
        "accepted_per_second": round(its.accepted, 3) if its else None,
        "drains": its.drain < math.inf if its and known else None,
        "drain_seconds": round(its.drain, 1) if its and known and its.drain < math.inf else None,
        "up": sink.up,
        "error": None if sink.up else sink.error,
        "next_attempt": sink.next_attempt,
    }
    return msgspec.json.encode(line).decode()
