"""`make bench`: run the benchmarks; a table in Markdown goes to standard output, progress to standard error.

Files go to the directory for temporary files: set TMPDIR to measure another disk.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Final

from benchmarks.figures import SIZES, Figure, Sizes, table
from benchmarks.isolation import isolation
from benchmarks.latency import latency
from benchmarks.machine import machine
from benchmarks.memory import memory
from benchmarks.restart import restart
from benchmarks.sinks import sinks
from benchmarks.stages import stages
from benchmarks.throughput import throughput
from benchmarks.ways import ways

_SCENARIOS: Final[dict[str, Callable[[Sizes], list[Figure]]]] = {
    "machine": machine,
    "throughput": throughput,
    "sinks": sinks,
    "latency": latency,
    "memory": memory,
    "isolation": isolation,
    "restart": restart,
    "stages": stages,
    "ways": ways,
}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure speed, latency and memory.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"{', '.join(_SCENARIOS)}; all if none is given")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", dest="size", action="store_const", const="quick", help="smaller, once: less than a minute")
    how.add_argument("--smoke", dest="size", action="store_const", const="smoke", help="only whether everything runs")
    args = parser.parse_args()
    unknown = set(args.scenarios) - set(_SCENARIOS)
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(_SCENARIOS)}")
    figures: list[Figure] = []
    try:
        for name in args.scenarios or _SCENARIOS:
            began = time.monotonic()
            print(f"{name} …", file=sys.stderr, end=" ", flush=True)
            figures += _SCENARIOS[name](SIZES[args.size or "full"])
            print(f"{time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    finally:
        print(table(figures), flush=True)


if __name__ == "__main__":
    main()
