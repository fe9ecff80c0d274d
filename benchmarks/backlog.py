"""Journals that are made in advance, with events that a sink has not delivered."""

import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.events import NAMESPACE, canonical_events
from bridge.event import Event, Reception, normalize
from bridge.journal import Batch, Journal, JournalOptions

_COMMIT: Final = 100
_CHUNK: Final = 10_000
"""Events that are made at once."""


def fill(path: Path, events: int, *, behind: str, done: Sequence[str] = ()) -> None:
    """Leave a journal with so many events that one sink has not delivered, and the others have."""
    with closing(Journal(JournalOptions(path, durability="normal", max_bytes=4 << 30))) as journal:
        journal.add_sink(behind, "earliest")
        left = events
        while left:
            reception = Reception.at(NAMESPACE, datetime.now(UTC))
            results = [normalize(event, reception, 1_000_000) for event in canonical_events(min(left, _CHUNK))]
            made = [result for result in results if isinstance(result, Event)]
            for start in range(0, len(made), _COMMIT):
                journal.append(Batch(NAMESPACE, time.time(), made[start : start + _COMMIT], []))
            left -= len(made)
        for sink in done:
            journal.add_sink(sink, "latest")
