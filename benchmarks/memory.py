"""Memory of the bridge when idle and with a full dedup window; time of its start with that window."""

import os
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks.events import NAMESPACE
from benchmarks.figures import Figure, Sizes, spread
from benchmarks.processes import ACCEPTED, bridge, sender
from bridge.field_types import MEBIBYTE
from bridge.journal import Journal, JournalSettings, appender, file, tables

_STREAMS: Final = 10
_COMMIT_EVENTS: Final = 10_000


def memory(sizes: Sizes) -> list[Figure]:
    """Measure both."""
    return [*_idle(), *_full_window(sizes)]


def _idle() -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory, sender("--events=0") as (_, url):
        streams = {f"namespace-{number}": {"url": url} for number in range(_STREAMS)}
        with bridge(Path(directory), streams, {"out": {"type": "stdout"}}) as running:
            running.wait_for("event_bridge_stream_connected", _STREAMS)
            time.sleep(2.0)  # Until an idle bridge has stopped allocating.
            mebibytes = running.resident_bytes() / MEBIBYTE
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
                    starts.append(running.wait_for(ACCEPTED, sizes.window + count) - began)
                    now, peak = running.resident_bytes() / MEBIBYTE, running.peak_bytes() / MEBIBYTE
    return [
        Figure(f"Memory, {sizes.window:,} uuids in the dedup window (at the peak), MiB", f"{now:.0f} ({peak:.0f})", "< 250"),
        Figure("Start with that window, until an event is committed, s", spread(starts, 2)),
    ]


def _fill(path: Path, uuids: int) -> None:
    """Make a journal with uuids in its dedup window, each a batch of its own, and no event to deliver.

    The rows are written by the journal's own statements, because one commit per uuid takes a quarter of an hour.
    """
    Journal(JournalSettings(path=path)).close()
    now = time.time()
    with closing(file.prepare(path)) as db:
        for start in range(1, uuids + 1, _COMMIT_EVENTS):
            end = min(start + _COMMIT_EVENTS, uuids + 1)
            db.execute("BEGIN")
            for seq in range(start, end):
                appender.insert_batch(db, seq, now, {os.urandom(16): b"{}"})
            tables.delete_batches(db, end, _COMMIT_EVENTS)
            appender.add_counts(db, NAMESPACE, (end - start, end - start, 0), None)
            db.execute("COMMIT")
