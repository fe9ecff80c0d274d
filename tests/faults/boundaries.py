"""Kill the bridge before and after the commits that it makes, and in the middle of them."""

import shutil
import signal
import sys
from pathlib import Path
from typing import Final, NamedTuple

from tests.e2e.harness import EVENT_BRIDGE
from tests.faults.rig import Rig
from tests.support.waiting import until

ROOT: Final = Path(__file__).parents[2]


class Boundary(NamedTuple):
    """Before or after which commit of a kind; see `tests.faults.failpoint`."""

    kind: str
    when: str
    number: int

    def __str__(self) -> str:
        return ":".join(map(str, self))


def boundaries(numbers: dict[str, tuple[int, ...]]) -> list[Boundary]:
    """Before and after each of the commits of these numbers, by their kinds."""
    return [Boundary(kind, when, number) for kind, each in numbers.items() for number in each for when in ("before", "after")]


def die_at(rig: Rig, boundary: Boundary) -> None:
    """Run the bridge until it kills itself at a commit, and look at what it left."""
    rig.bridge.command = [sys.executable, "-m", "tests.faults.failpoint"]
    before = rig.bridge.variables
    rig.bridge.variables = {**before, "FAILPOINT": str(boundary), "PYTHONPATH": str(ROOT)}
    try:
        rig.bridge.launch()
        if boundary.kind == "close":
            until(rig.bridge.answers, "the bridge answers")
            rig.bridge.signal(signal.SIGTERM)
        _expect_death(rig, str(boundary))
    finally:
        rig.bridge.command, rig.bridge.variables = [EVENT_BRIDGE], before


def die_writing(rig: Rig, file: str, number: int) -> None:
    """Run the bridge until it has written the journal's file or its log so many times, and look at what it left."""
    path = rig.journal.with_name(rig.journal.name + file)
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(path), "-e", "trace=pwrite64"]
    rig.bridge.command = [*strace, "-e", f"inject=pwrite64:signal=KILL:when={number}", EVENT_BRIDGE]
    try:
        rig.bridge.launch()
        _expect_death(rig, f"write {number} of {path.name}")
    finally:
        rig.bridge.command = [EVENT_BRIDGE]


def no_strace() -> str | None:
    """Why no write can be interrupted here; None if it can."""
    return None if shutil.which("strace") else "not installed: strace"


def _expect_death(rig: Rig, where: str) -> None:
    status = rig.bridge.wait()
    assert status in {-signal.SIGKILL, 128 + signal.SIGKILL}, (
        f"{where}: it ended with {status}: {rig.bridge.log.read_text()[-2000:]}"
    )
    rig.died(f"after it died at {where}")
