"""The bridge with all four sinks is killed again and again, in the middle of everything."""

import random
from pathlib import Path

import pytest

from tests.faults.chaos import chaos
from tests.faults.report import summary
from tests.faults.rig import Rig


@pytest.mark.timeout(240)
def test_what_was_committed_arrives_everywhere_though_the_bridge_is_killed_again_and_again(tmp_path: Path) -> None:
    with Rig(tmp_path, rate=2000, seed=1) as rig:
        moments = chaos(rig, kills=8, dice=random.Random(25))

    assert not rig.oracle.broken, summary(rig.oracle)
    assert moments.keys() >= {"starting", "running"}
    assert rig.oracle.committed_count > 2000
    assert all(tally.arrived + len(tally.dead) == rig.oracle.committed_count for tally in rig.oracle.tallies.values())


def test_a_process_that_ends_by_itself_is_noticed(tmp_path: Path) -> None:
    with Rig(tmp_path, rate=2000, seed=1, sinks=("stdout",)) as rig:
        rig.bridge.command = ["false"]
        chaos(rig, kills=3, dice=random.Random(25))

    assert set(rig.oracle.broken) == {"progress"}
