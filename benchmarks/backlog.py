"""Journals that are made in advance, with events that a sink has not delivered."""

import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.events import NAMESPACE, canonical_events
from bridge.event import Event, Reception, normalize
from bridge.journal import Journal, JournalSettings, file, tables

_CHUNK: Final = 10_000
"""Events that are made at once."""


def fill(path: Path, events: int, *, behind: str, done: Sequence[str] = ()) -> None:
    """Leave a journal with so many events that one sink has not delivered, and the others have.

    Each event is in a batch of its own, as when few come. By the journal's own statements: so many commits through its
    interface would take minutes.
    """
    with closing(Journal(JournalSettings(path=path))) as journal:
        journal.add_sink(behind, "earliest")
    with closing(file.prepare(path)) as db:
        for start in range(1, events + 1, _CHUNK):
            reception = Reception.at(NAMESPACE, datetime.now(UTC))
            bodies = canonical_events(min(_CHUNK, events + 1 - start))
            results = [normalize(body, reception, 1_000_000) for body in bodies]
            db.execute("BEGIN")
            for place, event in enumerate(results, start):
                if isinstance(event, Event):
                    tables.insert_batch(db, place, time.time(), {event.key: event.json})
            tables.add_counts(db, NAMESPACE, (len(results), len(results), 0), None)
            db.execute("COMMIT")
    with closing(Journal(JournalSettings(path=path))) as journal:
        for sink in done:
            journal.add_sink(sink, "latest")
