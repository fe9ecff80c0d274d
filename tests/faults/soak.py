"""Everything that can go wrong, by chance, for as long as one likes."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.faults import troubles
from tests.faults.boundaries import Boundary, die_at, die_writing, no_strace
from tests.faults.proxy import FAULTS
from tests.faults.rig import RESERVE, Rig
from tests.faults.troubles import Trouble

_DISK: Final = 512 << 20
_LONGEST: Final = 6.0
_PAUSE: Final = 3.0
_MINUTE: Final = 60.0
_DRAIN: Final = 180.0
_COMMITS: Final = {"append": 50, "settle": 50, "prune": 3, "checkpoint": 3, "close": 1}
_WRITES: Final = 300
_DEADLY: Final = 5


BOUNDS: Final = frozenset({"full disk", "log pinned by a reader"})
"""Faults that push against what the journal may take."""


def not_tried() -> dict[str, str]:
    """The faults that can't be made here, and why."""
    reasons = {"full disk": troubles.no_small_disk(), "clock": troubles.no_clock(), "writes": no_strace()}
    return {fault: reason for fault, reason in reasons.items() if reason is not None}


@contextmanager
def prepared(directory: Path, rate: float, seed: int) -> Iterator[Rig]:
    """A rig on a small disk, with a clock of its own, as far as that can be had here."""
    with ExitStack() as stack:
        journal = {}
        if troubles.no_small_disk() is None:
            disk = stack.enter_context(troubles.small_disk(directory / "disk", _DISK))
            journal["path"] = str(disk / "journal.db")
        rig = stack.enter_context(Rig(directory, rate=rate, seed=seed, journal=journal))
        if troubles.no_clock() is None:
            rig.bridge.variables = troubles.own_clock(directory / "clock")
        yield rig


def soak(rig: Rig, directory: Path, seconds: float, dice: random.Random, progress: Callable[[str], None]) -> Counter[str]:
    """Do everything to it; in the end everything has to be in order.

    Args:
        rig: What it is done to; see `prepared`.
        directory: Where the rig keeps everything.
        seconds: For how long.
        dice: Chance.
        progress: Told of every fault, when it is over.

    Returns:
        How often each fault was tried.
    """
    until, tried = time.monotonic() + seconds, Counter[str]()
    faults = faults_of(rig, directory)
    rig.hook.be_difficult(random.Random(dice.random()))
    rig.bridge.start()
    troubles.recovered(rig)
    due = "full disk for a minute"
    while time.monotonic() < until and "progress" not in rig.oracle.broken:
        name = due if due in faults and not tried[due] else _draw(sorted(faults.keys() - {due}), dice)
        try:
            faults[name](rig, dice)
        except (AssertionError, OSError) as error:
            rig.oracle.violate("progress", name, f"{type(error).__name__}: {error}")
        tried[name] += 1
        progress(name)
        time.sleep(dice.uniform(0, _PAUSE))
    rig.finish(_DRAIN)
    return tried


def faults_of(rig: Rig, directory: Path) -> Mapping[str, Trouble]:
    faults: dict[str, Trouble] = {"kill": _kill, "commit": _commit, "bridge frozen": _freeze}
    for way in rig.proxies:
        for fault in FAULTS:
            faults[f"{fault} of {way}"] = lambda r, d, w=way, f=fault: troubles.spoil(r, w, f, _some(d))  # type: ignore[misc]
    for sink in rig.proxies.keys() & rig.oracle.sinks:
        faults[f"{sink} frozen"] = lambda r, d, s=sink: troubles.freeze_sink(r, s, _some(d))  # type: ignore[misc]
    faults["log pinned by a reader"] = lambda r, d: troubles.pin_log(r, _some(d))
    for sink in (rig.proxies.keys() & rig.oracle.sinks) - {"webhook"}:
        faults[f"{sink} away, webhook rejects"] = lambda r, d, s=sink: troubles.reject_while_away(r, s, _some(d))  # type: ignore[misc]
    left_out = not_tried()
    if "full disk" not in left_out:
        faults["full disk"] = lambda r, d: troubles.fill_disk(r, d.choice((0, RESERVE // 2)), _some(d))
        faults["full disk for a minute"] = lambda r, _: troubles.fill_disk(r, 0, _MINUTE)
    if "clock" not in left_out:
        faults["clock"] = lambda r, d: troubles.jump_clock(
            r, directory / "clock", d.choice(((1, 0), (-1, 0), (1, -1))), _some(d)
        )
    if "writes" not in left_out:
        faults["write"] = _write
    return faults


def _draw(names: Sequence[str], dice: random.Random) -> str:
    """Every fault as often as another, but that there are many ways to spoil and few to die."""
    (name,) = dice.choices(names, [_DEADLY if name in {"kill", "commit", "write"} else 1 for name in names])
    return name


def _some(dice: random.Random) -> float:
    return dice.uniform(0.1, _LONGEST)


def _kill(rig: Rig, dice: random.Random) -> None:
    time.sleep(dice.uniform(0, 1))
    rig.kill("after a kill")
    rig.bridge.start()


def _commit(rig: Rig, dice: random.Random) -> None:
    """Die at a commit; what ended before it, in order, has to be in order."""
    kind = dice.choice(sorted(_COMMITS))
    rig.kill("after a kill")
    die_at(rig, Boundary(kind, dice.choice(("before", "after")), dice.randint(1, _COMMITS[kind])))
    rig.bridge.start()


def _write(rig: Rig, dice: random.Random) -> None:
    rig.kill("after a kill")
    die_writing(rig, "-wal", dice.randint(1, _WRITES))
    rig.bridge.start()


def _freeze(rig: Rig, dice: random.Random) -> None:
    troubles.freeze_bridge(rig, _some(dice))
