"""What `event-bridge backlog` does."""

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


class Pace(NamedTuple):
    """What two looks at a sink tell.

    Attributes:
        delivered: Events per second.
        accepted: The same, of what comes in.
        drain: Seconds until nothing waits any more, if it goes on like that; infinite if it never does.
    """

    delivered: float
    accepted: float
    drain: float


def pace(first: SinkBacklog, second: SinkBacklog, seconds: float) -> Pace:
    """Compare two looks with so many seconds in between."""
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
    """Print what waits at each sink, and how fast it becomes less; return the exit status.

    Args:
        target: Target to look.
        interval: Seconds between the two looks that tell how fast; without a bridge that runs, one look is enough.
        as_json: Lines of JSON instead of a table.
        sleep: Waits for some seconds.
        monotonic: Seconds of a clock that nobody sets.

    Raises:
        OperationError: One can't look.
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
    table = Table([*("SINK", ">PENDING", ">RETRYING", ">DEAD", ">OLDEST", ">RATE", ">DRAINS IN"), "STATE"], line_width())
    print("\n".join(table.lines([_row(name, sink, paces.get(name)) for name, sink in sinks.items()])) or "no sinks")
    if not reader.running:
        print("no bridge runs on this journal", file=sys.stderr)
    return DONE


def _row(name: str, sink: SinkBacklog, its: Pace | None) -> list[str]:
    oldest = "-" if not sink.pending or sink.lag_seconds is None else age(sink.lag_seconds)
    drains = (
        "-"
        if its is None or not sink.pending or not sink.up
        else age(its.drain)
        if its.drain < math.inf
        else "never at this rate"
    )
    state = "stopped" if sink.up is None else "up" if sink.up else f"down: {sink.error}"
    counts = [f"{number:,}" for number in (sink.pending, sink.retrying, sink.dead_letters)]
    return [name, *counts, oldest, "-" if its is None else rate(its.delivered), drains, state]


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
    }
    return msgspec.json.encode(line).decode()
