"""Journals made in advance, with events that one sink has not delivered."""

import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks.events import NAMESPACE, canonical_events
from bridge.event import Event, Reception, normalize
from bridge.journal import Journal, JournalSettings, appender, file

_CHUNK_EVENTS: Final = 10_000


def fill(path: Path, events: int, *, behind: str, done: Sequence[str] = ()) -> None:
    """Make a journal with events that the sink `behind` has not delivered; the sinks `done` have delivered all.

    Each event is a batch of its own, as at low rates. The rows are written by the journal's own statements, because one
    commit per event takes minutes.
    """
    with closing(Journal(JournalSettings(path=path))) as journal:
        journal.add_sink(behind, "earliest")
    with closing(file.prepare(path)) as db:
        for start in range(1, events + 1, _CHUNK_EVENTS):
            reception = Reception.at(NAMESPACE, datetime.now(UTC))
            bodies = canonical_events(min(_CHUNK_EVENTS, events + 1 - start))
            results = [normalize(body, reception, 1_000_000) for body in bodies]
            db.execute("BEGIN")
            for seq, event in enumerate(results, start):
                if isinstance(event, Event):
                    appender.insert_batch(db, seq, time.time(), {event.key: event.json})
            appender.add_counts(db, NAMESPACE, (len(results), len(results), 0), None)
            db.execute("COMMIT")
    with closing(Journal(JournalSettings(path=path))) as journal:
        for sink in done:
            journal.add_sink(sink, "latest")
