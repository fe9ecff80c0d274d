"""Kill the bridge a thousand times: while it starts, in full flow, and while it stops."""

import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from tests.faults.rig import Rig
from tests.faults.troubles import Trouble
from tests.support.waiting import until

MOMENTS: Final = {"starting": 15, "running": 75, "stopping": 10}
"""Work of the bridge when it is killed, and the share of each in percent."""

_MEAN_LIFE: Final = 1.0
_LONGEST_LIFE: Final = 6.0
_START: Final = 1.5
_STOP: Final = 0.5
_DRAIN: Final = 180.0
_FAULTY: Final = 0.1


def chaos(
    rig: Rig,
    kills: int,
    dice: random.Random,
    progress: Callable[[int], None] = lambda _: None,
    faults: Mapping[str, Trouble] | None = None,
) -> Counter[str]:
    """Kill it, look, start it again; in the end everything has to be in order.

    Args:
        rig: What it is done to.
        kills: How often.
        dice: Chance.
        progress: Told how many kills there were.
        faults: What else may happen to it in one of ten lives.

    Returns:
        How often it was killed at which moment.
    """
    rig.hook.be_difficult(random.Random(dice.random()))
    moments: Counter[str] = Counter()
    while rig.oracle.kills < kills and "progress" not in rig.oracle.broken:
        (moment,) = dice.choices(list(MOMENTS), list(MOMENTS.values()))
        rig.bridge.launch()
        try:
            stopped = _live(rig, moment, dice)
            if faults and moment == "running" and dice.random() < _FAULTY:
                name = dice.choice(sorted(faults))
                faults[name](rig, dice)
                moments[name] += 1
        except (AssertionError, OSError) as error:
            rig.oracle.violate("progress", f"while it is {moment}", f"{type(error).__name__}: {error}")
            break
        if not stopped:
            rig.kill(f"after kill {rig.oracle.kills + 1}, {moment}")
            moments[moment] += 1
            progress(rig.oracle.kills)
    else:
        rig.bridge.start()
    rig.finish(_DRAIN)
    return moments


def _live(rig: Rig, moment: str, dice: random.Random) -> bool:
    """Live until it is to be killed; return whether it has stopped by itself before, as it was asked to."""
    if moment == "starting":
        time.sleep(dice.uniform(0, _START))
        return False
    until(rig.bridge.answers, "the bridge answers")
    rig.scrape("while it runs")
    time.sleep(min(dice.expovariate(1 / _MEAN_LIFE), _LONGEST_LIFE))
    if moment == "stopping" and _stops_by_itself(rig, dice.uniform(0, _STOP)):
        rig.looked_at("after it stopped")
        return True
    return False


def _stops_by_itself(rig: Rig, seconds: float) -> bool:
    """Ask it to stop; return whether it is done with that before the time is up."""
    rig.bridge.signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        status = rig.bridge.wait(seconds)
        if status != 0:
            rig.oracle.violate("progress", "while it stops", f"the exit status is {status}")
        return True
    return False
