"""Sizes of the runs, figures, and the table that shows them."""

from collections.abc import Sequence
from statistics import median
from typing import Final, NamedTuple


class Sizes(NamedTuple):
    """The amount of work of each run.

    Attributes:
        rounds: Repetitions of a run; the figure is the median.
        events: Events of one throughput run.
        sink_events: Events of one run into brokers.
        seconds: Duration of a latency run.
        window: Uuids in the full dedup window.
        stage_events: Events of one round of a stage.
        syncs: Syncs of the disk.
    """

    rounds: int
    events: int
    sink_events: int
    seconds: float
    window: int
    stage_events: int
    syncs: int


SIZES: Final = {
    "full": Sizes(
        rounds=5, events=500_000, sink_events=200_000, seconds=10.0, window=1_000_000, stage_events=73_000, syncs=300
    ),
    "quick": Sizes(
        rounds=1, events=200_000, sink_events=100_000, seconds=3.0, window=1_000_000, stage_events=14_600, syncs=100
    ),
    # For the tests: the figures mean nothing.
    "smoke": Sizes(rounds=1, events=3_000, sink_events=3_000, seconds=0.3, window=5_000, stage_events=730, syncs=3),
}


class Figure(NamedTuple):
    """One line of the result.

    Attributes:
        what: The measurement.
        value: The result, with its unit.
        target: The result to reach, if there is one.
    """

    what: str
    value: str
    target: str = ""


def table(figures: Sequence[Figure]) -> str:
    """Return figures as a table in Markdown."""
    rows = [("What", "Figure", "Target"), ("---", "---", "---"), *figures]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def spread(values: Sequence[float], digits: int = 0) -> str:
    """Return the median, and the range if there is more than one value."""
    middle = f"{median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of all values do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
