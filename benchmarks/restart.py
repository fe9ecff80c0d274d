"""A start with a million events pending: time to the first delivery, rate and memory until all are delivered."""

import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.backlog import fill
from benchmarks.events import NAMESPACE
from benchmarks.figures import Figure, Sizes, spread
from benchmarks.processes import DELIVERED, bridge, sender
from bridge.field_types import MEBIBYTE


class _Reader(threading.Thread):
    """Reads a pipe.

    Attributes:
        first: The monotonic time of the first byte.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self.first = 0.0
        self._descriptor = descriptor

    def run(self) -> None:
        """Read until the other end is closed."""
        while os.read(self._descriptor, 1 << 20):
            self.first = self.first or time.monotonic()


def restart(sizes: Sizes) -> list[Figure]:
    """Measure it; every round begins with the same journal."""
    with tempfile.TemporaryDirectory() as directory:
        journal = Path(directory) / "journal.db"
        fill(journal, sizes.window, behind="out")
        firsts, rates, peaks = zip(*[_round(sizes.window, journal) for _ in range(sizes.rounds)], strict=True)
    return [
        Figure(f"Restart with {sizes.window:,} events pending: first delivery, s", spread(firsts, 2), "< 2"),
        Figure("… events/s until all are delivered", spread(rates)),
        Figure("… memory of the bridge at the peak, MiB", spread(peaks), "< 250"),
    ]


def _round(events: int, journal: Path) -> tuple[float, float, float]:
    """Return the seconds from the start of the process to the first delivery, events per second, and the peak in MiB."""
    read_end, write_end = os.pipe()
    with (
        os.fdopen(read_end, "rb") as output,
        os.fdopen(write_end, "wb") as pipe,
        tempfile.TemporaryDirectory() as directory,
        sender("--events=0") as (_, url),
    ):
        shutil.copy(journal, directory)
        reader = _Reader(output.fileno())
        reader.start()
        began = time.monotonic()
        with bridge(Path(directory), {NAMESPACE: {"url": url}}, {"out": {"type": "stdout"}}, pipe.fileno()) as running:
            last = running.wait_for(DELIVERED, events, pause=0.1)
            peak = running.peak_bytes() / MEBIBYTE
        pipe.close()
        reader.join()
        return reader.first - began, events / (last - reader.first), peak
