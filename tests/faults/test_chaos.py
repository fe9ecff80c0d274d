"""The bridge with all four sinks is killed again and again, in the middle of everything."""

import random
from pathlib import Path

import pytest

from tests.faults.chaos import chaos
from tests.faults.rig import Rig


@pytest.mark.timeout(180)
def test_what_was_committed_arrives_everywhere_though_the_bridge_is_killed_again_and_again(tmp_path: Path) -> None:
    with Rig(tmp_path, rate=2000, seed=1) as rig:
        chaos(rig, kills=12, dice=random.Random(1))

    assert rig.oracle.violations == []
    assert rig.oracle.committed_count > 5000
    assert all(tally.arrived == rig.oracle.committed_count for tally in rig.oracle.tallies.values())
