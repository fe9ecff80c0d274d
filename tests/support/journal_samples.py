"""Journals with something in them: events, dead letters, malformed messages."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from bridge.event import Event, Malformed, Reception, normalize
from bridge.journal import Batch, Counters, DeadLetter, DeathReason, Journal, JournalSettings, Settlement

RECEIVED = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)


def uuid(number: int) -> str:
    return str(UUID(int=number))


def event(number: int, type_: str = "container") -> Event:
    """The event with this number; two in a row are of one resource."""
    resource = f"/api/app/v1/acme/{type_}/{uuid(number // 2)}/"
    frame = (
        f'{{"type":"{type_}","action":"update","state":"Running","resource_uri":"{resource}","parents":[],'
        f'"uuid":"{uuid(number)}","datetime":"2026-11-23T10:00:00Z"}}'
    )
    found = normalize(frame.encode(), Reception.at("acme", RECEIVED), 10_000)
    assert isinstance(found, Event)
    return found


def journal_settings(
    path: Path, *, window: float | None = None, window_events: int | None = None, **changes: Any
) -> JournalSettings:
    """Settings of a journal that may also be smaller than users may have it."""
    settings = JournalSettings(path=path)
    dedup = {name: value for name, value in (("window", window), ("max_events", window_events)) if value is not None}
    return settings.model_copy(update={"dedup": settings.dedup.model_copy(update=dedup), **changes})


@contextmanager
def opened(path: Path, *sinks: str) -> Iterator[Journal]:
    """A journal with these sinks."""
    with closing(Journal(JournalSettings(path=path, durability="normal"))) as journal:
        for sink in sinks:
            journal.add_sink(sink, "earliest")
        yield journal


def append(journal: Journal, events: Sequence[Event], malformed: Sequence[Malformed] = ()) -> None:
    journal.append(Batch("acme", RECEIVED.timestamp(), list(events), list(malformed)))


def bury(
    journal: Journal, sink: str, first: int, events: Sequence[Event], *, reason: DeathReason = "rejected", died: float = 0.0
) -> None:
    """Let a sink's next events die, of which the first one has place `first`."""
    dead = [
        DeadLetter(first + i, RECEIVED.timestamp(), each.json, "lane", 3, died, died, reason, "answered 400 \x1b[31mBad")
        for i, each in enumerate(events)
    ]
    journal.settle(sink, Settlement(first_seq=first, next_seq=first + len(events), dead=dead))


def damage(path: Path, statement: str) -> None:
    """Change a closed journal behind its back."""
    with closing(sqlite3.connect(path)) as db, db:
        assert db.execute(statement).rowcount


def assert_balanced(counters: Counters) -> None:
    for stream in counters.streams.values():
        assert stream.received == stream.accepted + stream.duplicate + sum(stream.malformed.values())
    for sink in counters.sinks.values():
        assert (
            sink.accepted + sink.replayed + sink.rewound
            == sink.delivered + sink.filtered + sink.dead + sink.dropped + sink.pending
        )
        assert sink.dead == sink.dead_letters + sink.replayed + sink.discarded
