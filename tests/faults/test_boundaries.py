"""The bridge dies before, after and in the middle of each kind of commit; what it had committed arrives, and nothing else."""

from pathlib import Path

import pytest

from tests.faults.boundaries import boundaries, die_at, die_writing, no_strace
from tests.faults.report import summary
from tests.faults.rig import Rig

SINKS = ("webhook", "stdout")
NUMBERS = {"schema": (1,), "append": (1, 3), "settle": (2,), "prune": (1,), "checkpoint": (1,), "close": (1,)}


@pytest.mark.timeout(240)
def test_nothing_is_lost_whichever_commit_it_dies_at(tmp_path: Path) -> None:
    with Rig(tmp_path, rate=2000, seed=2, sinks=SINKS) as rig:
        for boundary in boundaries(NUMBERS):
            die_at(rig, boundary)
        rig.bridge.start()
        rig.finish()

    assert not rig.oracle.broken, summary(rig.oracle)
    assert rig.oracle.committed_count > 1000


@pytest.mark.skipif(no_strace() is not None, reason=str(no_strace()))
@pytest.mark.timeout(240)
def test_nothing_is_lost_if_it_dies_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    with Rig(tmp_path, rate=2000, seed=3, sinks=SINKS) as rig:
        rig.bridge.start()
        rig.kill("at first")
        for number in (1, 2, 5, 9):
            die_writing(rig, "-wal", number)
        rig.bridge.start()
        rig.finish()

    assert not rig.oracle.broken, summary(rig.oracle)
