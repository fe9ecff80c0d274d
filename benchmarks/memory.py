"""How much memory the bridge takes: idle, and with a dedup window that is full; and how long that one takes to start."""

import os
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks.events import NAMESPACE
from benchmarks.figures import Figure, Sizes, spread
from benchmarks.processes import bridge, sender
from bridge.journal import Journal, JournalSettings, file, tables

_STREAMS: Final = 10
_MEBIBYTE: Final = 1 << 20
_COMMIT: Final = 10_000
_ACCEPTED: Final = "event_bridge_events_accepted_total"
_SETTLED: Final = 2.0
"""Seconds that an idle bridge is given before its memory is looked at."""


def memory(sizes: Sizes) -> list[Figure]:
    """Measure both."""
    return [*_idle(), *_full_window(sizes)]


def _idle() -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory, sender("--events=0") as (_, url):
        streams = {f"namespace-{number}": {"url": url} for number in range(_STREAMS)}
        with bridge(Path(directory), streams, {"out": {"type": "stdout"}}) as running:
            running.wait_for("event_bridge_stream_connected", _STREAMS)
            time.sleep(_SETTLED)
            mebibytes = running.resident_bytes() / _MEBIBYTE
            return [
                Figure(f"Memory, idle with {_STREAMS} streams, MiB", f"{mebibytes:.0f}", "< 60"),
                Figure("Start, empty journal, s", f"{running.startup:.2f}"),
            ]


def _full_window(sizes: Sizes) -> list[Figure]:
    starts: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        _fill(Path(directory) / "journal.db", sizes.window)
        for count in range(1, sizes.rounds + 1):
            with sender("--events=1") as (source, url):
                source.go()
                began = time.monotonic()
                with bridge(Path(directory), {NAMESPACE: {"url": url}}, {"out": {"type": "stdout"}}) as running:
                    starts.append(running.wait_for(_ACCEPTED, sizes.window + count) - began)
                    now, peak = running.resident_bytes() / _MEBIBYTE, running.peak_bytes() / _MEBIBYTE
    return [
        Figure(f"Memory, {sizes.window:,} uuids in the dedup window (at the peak), MiB", f"{now:.0f} ({peak:.0f})", "< 250"),
        Figure("Start with that window, until an event is committed, s", spread(starts, 2)),
    ]


def _fill(path: Path, uuids: int) -> None:
    """Leave a journal with so many uuids to be remembered, each from a commit of its own, and no event to be delivered.

    By the journal's own statements: so many commits through its interface would take a quarter of an hour.
    """
    Journal(JournalSettings(path=path)).close()
    now = time.time()
    with closing(file.prepare(path)) as db:
        for start in range(1, uuids + 1, _COMMIT):
            end = min(start + _COMMIT, uuids + 1)
            db.execute("BEGIN")
            for place in range(start, end):
                tables.insert_batch(db, place, now, {os.urandom(16): b"{}"})
            tables.delete_batches(db, end, _COMMIT)
            tables.add_counts(db, NAMESPACE, (end - start, end - start, 0), None)
            db.execute("COMMIT")
