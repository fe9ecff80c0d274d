"""`make chaos KILLS=…` and `make soak MINUTES=…`: the long runs. A table in Markdown goes to standard output.

Everything is kept in a directory of its own if something is wrong; the exit status is 1 then. A run with the same seed does
the same things in the same order, though never at quite the same instants.
"""

import argparse
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from tests.faults.chaos import chaos
from tests.faults.report import about_this_machine, keep_evidence, summary, table
from tests.faults.rig import Rig, missing
from tests.faults.soak import BOUNDS, faults_of, not_tried, prepared, soak


def main() -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Prove that nothing is lost.")
    parser.add_argument("--seed", type=int, help="chance, and what the server tells; one is drawn and printed if not given")
    parser.add_argument("--rate", type=float, default=2000, help="events per second (default: 2000)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("chaos", help="kill -9, again and again").add_argument("kills", type=int)
    commands.add_parser("soak", help="all faults by chance").add_argument("minutes", type=float)
    args = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if args.seed is None else args.seed
    # Clients that come and go are what this is about.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    directory = Path(tempfile.mkdtemp(prefix=f"event-bridge-{args.command}-"))
    facts: dict[str, object] = {"Command": f"python -m tests.faults --seed {seed} --rate {args.rate:g} {_what(args)}"}
    facts |= about_this_machine() | {"Events per second": f"{args.rate:g}"}
    facts |= {f"Not tried: {sink}": reason for sink, reason in missing().items()}
    print(f"seed {seed}; files are in {directory}", file=sys.stderr)
    began = time.monotonic()
    dice = random.Random(seed)
    if args.command == "chaos":
        facts |= {f"Not tried: {fault}": reason for fault, reason in not_tried().items()}
        with prepared(directory, args.rate, seed) as rig:
            say = _progress(rig, began)
            bounds = {name: fault for name, fault in faults_of(rig, directory).items() if name in BOUNDS or "rejects" in name}
            moments = chaos(rig, args.kills, dice, lambda n: say(f"{n} of {args.kills} kills") if n % 10 == 0 else None, bounds)
        facts["Kills"] = f"{rig.oracle.kills:,} ({', '.join(f'{count} {moment}' for moment, count in moments.items())})"
    else:
        facts |= {f"Not tried: {fault}": reason for fault, reason in not_tried().items()}
        with prepared(directory, args.rate, seed) as rig:
            tried = soak(rig, directory, args.minutes * 60, dice, _progress(rig, began))
        facts["Faults"] = ", ".join(f"{count} {fault}" for fault, count in sorted(tried.items()))
        facts["Kills"] = rig.oracle.kills
    facts["Time"] = f"{(time.monotonic() - began) / 60:.1f} minutes, until {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    print(table(rig.oracle, facts), flush=True)
    if not rig.oracle.broken:
        shutil.rmtree(directory)
        return 0
    print(summary(rig.oracle), file=sys.stderr)
    print(f"everything is kept: {keep_evidence(rig.oracle, directory)}", file=sys.stderr)
    return 1


def _what(args: argparse.Namespace) -> str:
    return f"chaos {args.kills}" if args.command == "chaos" else f"soak {args.minutes:g}"


def _progress(rig: Rig, began: float) -> Callable[[str], None]:
    def say(what: str) -> None:
        oracle = rig.oracle
        seconds, violations = time.monotonic() - began, sum(oracle.broken.values())
        print(
            f"{seconds:6.0f} s  {what}; {oracle.committed_count:,} committed, {oracle.missing():,} arrivals to come, "
            f"{oracle.remembered:,} in memory, {violations} violations",
            file=sys.stderr,
            flush=True,
        )

    return say


if __name__ == "__main__":
    sys.exit(main())
