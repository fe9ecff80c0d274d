"""The machine of the measurement."""

import os
import platform
import sqlite3
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.figures import Figure, Sizes, percentile, spread


def machine(sizes: Sizes) -> list[Figure]:
    """Describe it: cores, versions, speed of a thread and of the disk, load."""
    load = os.getloadavg()
    return [
        Figure("Date", f"{datetime.now(UTC):%Y-%m-%d}"),
        Figure("Processor", f"{len(os.sched_getaffinity(0))} cores, {_processor()}"),
        Figure("System", f"{platform.system()} {platform.release()}"),
        Figure("Python, SQLite", f"{platform.python_version()}, {sqlite3.sqlite_version}"),
        Figure("A loop of a million turns in Python, ms", spread(_loop_times(sizes.rounds))),
        Figure("Sync of 4 KiB to the disk: p50 / p99, ms", _sync_times(sizes.syncs)),
        Figure("Load before the runs, 1 and 5 minutes", f"{load[0]:.1f}, {load[1]:.1f}"),
    ]


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _loop_times(count: int) -> list[float]:
    """Return the milliseconds of a loop in one thread: on a shared machine they change from hour to hour."""
    milliseconds: list[float] = []
    for _ in range(count):
        began = time.perf_counter()
        for _ in range(1_000_000):
            pass
        milliseconds.append((time.perf_counter() - began) * 1e3)
    return milliseconds


def _sync_times(count: int) -> str:
    milliseconds: list[float] = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(count):
            file.write(os.urandom(4096))
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            milliseconds.append((time.perf_counter() - began) * 1e3)
    return f"{percentile(milliseconds, 0.5):.2f} / {percentile(milliseconds, 0.99):.2f}"
