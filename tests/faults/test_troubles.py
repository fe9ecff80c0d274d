"""Each fault once, short: the bridge goes on by itself, and what was committed arrives, once if nothing explains more."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import troubles
from tests.faults.proxy import FAULTS
from tests.faults.report import summary
from tests.faults.rig import RESERVE, Rig

MEBIBYTE = 1 << 20


@pytest.mark.timeout(240)
def test_every_way_is_spoiled_once_and_everybody_frozen(tmp_path: Path) -> None:
    with Rig(tmp_path, rate=500, seed=4) as rig:
        rig.bridge.start()
        troubles.recovered(rig)
        for turn, way in enumerate(rig.proxies):
            for fault in FAULTS[turn::2]:
                troubles.spoil(rig, way, fault, 0.5)
        for sink in rig.proxies.keys() & rig.oracle.sinks:
            troubles.freeze_sink(rig, sink, 1.0)
        troubles.freeze_bridge(rig, 1.0)
        rig.finish()

    assert not rig.oracle.broken, summary(rig.oracle)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with troubles.small_disk(tmp_path / "disk", 128 * MEBIBYTE) as disk:
        yield disk


@pytest.mark.skipif(troubles.no_small_disk() is not None, reason=str(troubles.no_small_disk()))
@pytest.mark.timeout(240)
def test_a_disk_that_is_full_for_a_while_is_waited_for(tmp_path: Path, disk: Path) -> None:
    with Rig(tmp_path, rate=500, seed=5, sinks=("webhook", "stdout"), journal={"path": str(disk / "journal.db")}) as rig:
        rig.bridge.start()
        troubles.recovered(rig)
        for left in (RESERVE // 2, 0):
            troubles.fill_disk(rig, left, 1.5)
        rig.finish()

    assert not rig.oracle.broken, summary(rig.oracle)


@pytest.mark.skipif(troubles.no_clock() is not None, reason=str(troubles.no_clock()))
@pytest.mark.timeout(240)
def test_a_clock_that_jumps_an_hour_forth_and_back_confuses_nothing(tmp_path: Path) -> None:
    with Rig(tmp_path, rate=500, seed=6, sinks=("webhook", "stdout")) as rig:
        rig.hook.answer = lambda events: (500 if events[0]["uuid"] < "1" else 200, {})
        rig.bridge.variables = troubles.own_clock(tmp_path / "clock")
        rig.bridge.start()
        troubles.recovered(rig)
        troubles.jump_clock(rig, tmp_path / "clock", (1, -1), 1.0)
        rig.hook.answer = lambda _: (200, {})
        rig.finish()

    assert not rig.oracle.broken, summary(rig.oracle)


@pytest.mark.timeout(240)
def test_a_reader_that_pins_the_log_and_a_sink_that_rejects_while_another_is_away_break_no_bound(tmp_path: Path) -> None:
    with Rig(tmp_path, rate=2000, seed=7) as rig:
        rig.bridge.start()
        troubles.recovered(rig)
        troubles.pin_log(rig, 3.0)
        troubles.reject_while_away(rig, "mqtt" if rig.mqtt else "webhook", 2.0)
        rig.finish()

    assert not rig.oracle.broken, summary(rig.oracle)
