"""Cost of each stage by itself, in this process and one thread: microseconds per event."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import websocket

from benchmarks.events import NAMESPACE, canonical_events
from benchmarks.figures import Figure, Sizes, spread
from benchmarks.processes import sender
from bridge.event import Event, Reception, normalize
from bridge.frames import TEXT, FrameReader, encode
from bridge.journal import Batch, Journal, JournalSettings, Settlement
from bridge.sink import Entry
from sinks.stdout import StdoutSettings, StdoutSink
from tests.support.journal_work import read

_T = TypeVar("_T")

_READ_BYTES: Final = 1 << 18
_BATCH_EVENTS: Final = 730
"""Events of one read of a busy socket."""

_DELIVERY: Final = (1000, 1 << 20)
"""Events and bytes of one delivery, as by default."""


def stages(sizes: Sizes) -> list[Figure]:
    """Measure all stages."""
    few = max(_BATCH_EVENTS, sizes.stage_events // 50)
    runs: list[tuple[str, Callable[[], float]]] = [
        ("frames: take messages out of 256 KiB reads", lambda: _frames(sizes.stage_events)),
        ("for comparison: recv() of websocket-client", lambda: _library(sizes.stage_events)),
        ("normalize: canonical events", lambda: _normalize(canonical_events(sizes.stage_events))),
        ("normalize: events that must be rewritten", lambda: _normalize(_noncanonical_events(sizes.stage_events))),
        ("journal: append, 1 event per commit", lambda: _append(few, 1)),
        ("journal: append, 100 events per commit", lambda: _append(sizes.stage_events, 100)),
        (f"journal: append, {_BATCH_EVENTS} events per commit", lambda: _append(sizes.stage_events, _BATCH_EVENTS)),
        ("journal: read and settle", lambda: _read_and_settle(sizes.stage_events)),
        ("stdout sink, /dev/null", lambda: _deliver(sizes.stage_events)),
    ]
    return [Figure(f"Stage {name}, µs per event", spread([run() for _ in range(sizes.rounds)], 2)) for name, run in runs]


def _frames(count: int) -> float:
    data = b"".join(encode(TEXT, event) for event in canonical_events(count))
    pieces = [data[start : start + _READ_BYTES] for start in range(0, len(data), _READ_BYTES)]
    reader = FrameReader(1_000_000)
    began = time.perf_counter()
    taken = sum(len(reader.feed(piece).messages) for piece in pieces)
    return _microseconds(began, taken, count)


def _library(count: int) -> float:
    """Do the same by websocket-client, at its fastest: without its check of UTF-8. System calls are included."""
    with sender(f"--events={count}") as (source, url):
        web = websocket.create_connection(url, skip_utf8_validation=True, http_no_proxy=["127.0.0.1"])
        source.go()
        began = time.perf_counter()
        taken = sum(bool(web.recv()) for _ in range(count))
        microseconds = _microseconds(began, taken, count)
        web.close()
    return microseconds


def _normalize(events: Sequence[bytes]) -> float:
    began = time.perf_counter()
    good = 0
    for batch in _chunks(events, _BATCH_EVENTS):
        reception = _reception()
        good += sum(isinstance(normalize(event, reception, 1_000_000), Event) for event in batch)
    return _microseconds(began, good, len(events))


def _append(count: int, size: int) -> float:
    batches = _batches(count, size)
    with tempfile.TemporaryDirectory() as directory:
        journal = _journal(directory)
        began = time.perf_counter()
        accepted = sum(journal.append(batch).accepted for batch in batches)
        microseconds = _microseconds(began, accepted, count)
        journal.close()
    return microseconds


def _read_and_settle(count: int) -> float:
    with tempfile.TemporaryDirectory() as directory:
        journal = _journal(directory)
        for batch in _batches(count, _BATCH_EVENTS):
            journal.append(batch)
        began = time.perf_counter()
        got = 0
        while entries := read(journal, "sink", *_DELIVERY, 0.0):
            journal.settle("sink", Settlement(entries[0].seq, entries[-1].seq + 1, delivered=len(entries)))
            got += len(entries)
        microseconds = _microseconds(began, got, count)
        journal.close()
    return microseconds


def _deliver(count: int) -> float:
    now = time.time()
    entries = [Entry(seq, now, event.json) for seq, event in enumerate(_events(count))]
    with open(os.devnull, "wb") as output:  # noqa: PTH123 - a descriptor is what is needed
        sink = StdoutSink("stdout", StdoutSettings(), output.fileno())
        sink.open()
        began = time.perf_counter()
        failed = sum(len(sink.deliver(batch)) for batch in _chunks(entries, _DELIVERY[0]))
        microseconds = _microseconds(began, count - failed, count)
        sink.close()
    return microseconds


def _microseconds(began: float, done: int, expected: int) -> float:
    """Return the microseconds per event since `began`.

    Raises:
        RuntimeError: Not all events were processed, and the figure would mean nothing.
    """
    seconds = time.perf_counter() - began
    if done != expected:
        raise RuntimeError(f"{done} of {expected} events came through")
    return seconds / expected * 1e6


def _noncanonical_events(count: int) -> list[bytes]:
    """Return events as of 2015: with an offset instead of a Z."""
    return [event.replace(b'Z"}', b'+00:00"}') for event in canonical_events(count)]


def _events(count: int) -> list[Event]:
    reception = _reception()
    results = [normalize(event, reception, 1_000_000) for event in canonical_events(count)]
    return [result for result in results if isinstance(result, Event)]


def _batches(count: int, size: int) -> list[Batch]:
    now = time.time()
    return [Batch(NAMESPACE, now, list(events), []) for events in _chunks(_events(count), size)]


def _reception() -> Reception:
    return Reception.at(NAMESPACE, datetime.now(UTC))


def _journal(directory: str) -> Journal:
    journal = Journal(JournalSettings(path=Path(directory) / "journal.db"))
    journal.add_sink("sink", "earliest")
    return journal


def _chunks(items: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
