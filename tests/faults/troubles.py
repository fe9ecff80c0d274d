"""The faults besides death: each is done to the rig, goes on for a while, is taken back, and has to leave no trace.

Where a fault can make a sink say nothing about what it got, the oracle is told what was in flight while it went on: from the
sink's cursor before it to the one after it, and a delivery beyond. It may come again any number of times. Where a fault gives
no reason to repeat anything (latency, a full disk, a clock that jumps, the stream's own trouble), nothing may.
"""

import functools
import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.e2e.harness import value
from tests.faults.proxy import Fault
from tests.faults.rig import DELIVERY, Rig
from tests.support.waiting import until

_RECOVERY: Final = 60.0
_NEWS: Final = 30.0
_PAGE: Final = 4096

Trouble = Callable[[Rig, random.Random], None]
"""What is done to the rig, by chance."""


@contextmanager
def disturbed(rig: Rig, *sinks: str) -> Iterator[None]:
    """Something is wrong with these sinks; in the end everything has to go on by itself."""
    before = rig.looked_at("before a fault")
    yield
    end = rig.looked_at("at the end of a fault").next_seq
    recovered(rig)
    try:
        # What was under way at the end has to come to its own end, too: a broker may need a moment to find itself.
        until(lambda: _is_past(rig, sinks, end), "what was pending at the end of the fault is delivered", _RECOVERY)
    except AssertionError as error:
        rig.oracle.violate("progress", "after a fault", str(error))
    after = rig.looked_at("after a fault")
    for sink in sinks:
        seqs = range(before.sinks[sink]["cursor"], after.sinks[sink]["cursor"] + DELIVERY)
        rig.oracle.in_flight(sink, seqs, math.inf)
        for look in (before, after):
            rig.oracle.in_flight(sink, look.retrying.get(sink, ()), math.inf)
    rig.oracle.classify()
    rig.scrape("after a fault")


def _is_past(rig: Rig, sinks: Sequence[str], end: int) -> bool:
    now = rig.looked_at("after a fault")
    return all(now.sinks[sink]["cursor"] >= end for sink in sinks)


def recovered(rig: Rig) -> None:
    """Wait until everything is connected, and new events arrive everywhere."""
    try:
        until(rig.settled_down, "everything is connected again", _RECOVERY)
        now = {sink: tally.arrived for sink, tally in rig.oracle.tallies.items()}
        for sink, before in now.items():
            until(lambda s=sink, b=before: rig.oracle.tallies[s].arrived > b, f"{sink} goes on", _NEWS)  # type: ignore[misc]
    except AssertionError as error:
        rig.oracle.violate("progress", "after a fault", str(error))


def spoil(rig: Rig, way: str, fault: Fault, seconds: float) -> None:
    """Spoil the way to the stream or to a sink."""
    repeats = way in rig.oracle.sinks and fault != "latency"
    with disturbed(rig, *([way] if repeats else [])):
        rig.proxies[way].fault = fault
        time.sleep(seconds)
        rig.proxies[way].fault = None


def freeze_bridge(rig: Rig, seconds: float) -> None:
    """SIGSTOP and SIGCONT; whoever waited for it meanwhile may have given up."""
    with disturbed(rig, *rig.oracle.sinks):
        rig.bridge.signal(signal.SIGSTOP)
        time.sleep(seconds)
        rig.bridge.signal(signal.SIGCONT)


def freeze_sink(rig: Rig, sink: str, seconds: float) -> None:
    """SIGSTOP and SIGCONT for a broker; a receiver of ours hangs in the same way."""
    with disturbed(rig, sink):
        if sink == "kafka" and rig.kafka:
            rig.kafka.freeze()
        elif sink == "mqtt" and rig.mqtt:
            rig.mqtt.hang()
        else:
            rig.hook.hang.set()
        time.sleep(seconds)
        if sink == "kafka" and rig.kafka:
            rig.kafka.thaw()
        elif sink == "mqtt" and rig.mqtt:
            rig.mqtt.go_on()
        else:
            rig.hook.hang.clear()


@functools.cache
def no_small_disk() -> str | None:
    """Why no disk can be made small here; None if one can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder) / "disk", 1 << 20):
                return None
        except (OSError, subprocess.CalledProcessError):
            return "a tmpfs can't be mounted; that takes root"


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "event-bridge-test", str(path)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill_disk(rig: Rig, left: int, seconds: float) -> None:
    """Leave so many bytes of the journal's disk; it says so, takes nothing, loses nothing, and goes on when there is space."""
    with disturbed(rig):
        filler = rig.journal.with_name("filler")
        try:
            _fill(filler, left)
            accepted = _accepted_at_rest(rig)
            ready, why = rig.bridge.get("/readyz")
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                # Whatever is freed meanwhile, by a checkpoint for example, is taken at once.
                _fill(filler, left)
                rig.scrape("on a full disk")
                time.sleep(min(0.2, seconds))
            # Shortly after a start it has not come to try it yet.
            if ready != 503 or not ("disk" in why or "still reads" in why):
                rig.oracle.violate("progress", "on a full disk", f"/readyz says {ready} {why}")
            if value(rig.bridge.metrics(), "events_accepted_total") != accepted:
                rig.oracle.violate("progress", "on a full disk", "events were accepted")
        finally:
            filler.unlink()
        until(lambda: rig.bridge.get("/readyz")[0] == 200, "it is ready again", _RECOVERY)


def pin_log(rig: Rig, seconds: float) -> None:
    """Read the journal in one long transaction, as a backup does: SQLite's log can't be emptied, and must not grow for ever."""
    with disturbed(rig), closing(sqlite3.connect(f"file:{rig.journal}?mode=ro", uri=True)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM sinks").fetchone()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            rig.looked_at("while a reader pins the log")
            time.sleep(min(0.2, seconds))


def reject_while_away(rig: Rig, away: str, seconds: float) -> None:
    """The webhook rejects everything while another sink is away: dead letters grow, and nothing is pruned."""
    with disturbed(rig, away, "webhook"):
        rig.proxies[away].fault = "cut"
        rig.hook.rejects_all = True
        time.sleep(seconds)
        rig.hook.rejects_all = False
        rig.proxies[away].fault = None


def _fill(filler: Path, left: int) -> None:
    with filler.open("ab") as file:
        share = 1
        while (size := _free(filler) - left) >= share * _PAGE:
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size // share)
                continue
            share *= 2  # The bridge was faster.


def _free(path: Path) -> int:
    disk = os.statvfs(path)
    return disk.f_bavail * disk.f_frsize


def _accepted_at_rest(rig: Rig) -> float:
    """Wait until nothing is accepted any more, and tell how much was."""
    until(lambda: rig.bridge.get("/readyz")[0] == 503, "it is not ready", _RECOVERY)
    return value(rig.bridge.metrics(), "events_accepted_total")


def jump_clock(rig: Rig, clock: Path, hours: Sequence[float], seconds: float) -> None:
    """Set the bridge's clock, if it was started with one of its own; nothing may be repeated or wait for an hour."""
    with disturbed(rig):
        for offset in hours:
            clock.write_text(f"{offset * 3600:+g}\n")
            recovered(rig)
            time.sleep(seconds)
            _check_clock(rig, offset)
        clock.write_text("+0\n")


def _check_clock(rig: Rig, hours: float) -> None:
    with rig.bridge.output.open("rb") as file:
        file.seek(-10_000, os.SEEK_END)
        event = json.loads(file.read().splitlines()[-2])
    ahead = (datetime.fromisoformat(event["received_at"]) - datetime.now(UTC)).total_seconds() / 3600
    assert abs(ahead - hours) < 1 / 60, f"the bridge's clock is {ahead:g} h ahead, and should be {hours:g} h"


_FAKETIME: Final = tuple(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def no_clock() -> str | None:
    """Why the bridge can't have a clock of its own here; None if it can."""
    return None if _FAKETIME else "not installed: libfaketime"


def own_clock(clock: Path) -> dict[str, str]:
    """The variables that give the bridge a clock that a file sets. Only the time of day: other clocks are never set."""
    clock.write_text("+0\n")
    return {
        "LD_PRELOAD": str(_FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
