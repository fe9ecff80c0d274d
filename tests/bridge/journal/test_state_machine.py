"""The journal against a model of it in a few dictionaries: whatever happens in whatever order, crashes included."""

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bridge.event import Event, Malformed
from bridge.journal import (
    Appended,
    Batch,
    DeadLetter,
    Journal,
    JournalSettings,
    Retry,
    Settlement,
    SinkCounters,
    StreamCounters,
)
from tests.support.dead_letters import written
from tests.support.journal_samples import assert_balanced
from tests.support.journal_work import due_retries, read, waiting_keys

NOW = 1000.0
HORIZON = 5000.0
WAL_HEADER = 32
"""Bytes by which SQLite's log tells when it was begun anew (https://sqlite.org/fileformat2.html#walformat)."""
SINKS = ("a", "b", "c")
Fate = Literal["delivered", "filtered", "retry", "held", "dead"]
FATES: Sequence[Fate] = ("delivered", "filtered", "retry", "held", "dead")

numbers = st.lists(st.integers(0, 60), max_size=8)
streams = st.sampled_from(["s", "t"])
names = st.sampled_from(SINKS)
dues = st.sampled_from([0.0, NOW - 1, NOW, NOW + 1, HORIZON, HORIZON + 1])


def event(number: int) -> Event:
    return Event(number.to_bytes(16, "big"), f"event {number}".encode().ljust(10 + number % 7 * 20, b"."))


@dataclass
class ModelSink:
    start: int
    cursor: int
    delivered: int = 0
    filtered: int = 0
    dead: int = 0
    replayed: int = 0
    discarded: int = 0
    retries: dict[int, Retry] = field(default_factory=dict)

    def due(self) -> list[Retry]:
        heads = {retry.ordering_key: retry.due for _, retry in sorted(self.retries.items(), reverse=True)}
        ordering_keys = {ordering_key for ordering_key, due in heads.items() if due <= NOW or due > HORIZON}
        return [retry for _, retry in sorted(self.retries.items()) if retry.ordering_key in ordering_keys]


class JournalMachine(RuleBasedStateMachine):
    """The journal, and beside it what it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="journal-model-"))
        self.crashes = 0
        self.stored: list[Event] = []
        self.streams: dict[str, StreamCounters] = {}
        self.sinks: dict[str, ModelSink] = {}
        # Dead letters stay when a sink goes, so they are kept apart; by their ids.
        self.letters: dict[int, tuple[str, DeadLetter]] = {}
        self.letters_ever = 0

    @property
    def path(self) -> Path:
        return self.root / str(self.crashes) / "journal.db"

    @initialize()
    def open(self) -> None:
        self.journal = Journal(JournalSettings(path=self.path, durability="normal"), clock=lambda: NOW)
        for name in self.sinks:
            self.journal.add_sink(name, "latest")

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.root)

    @rule(stream=streams, numbers=numbers, malformed=st.integers(0, 2), position=st.none() | st.sampled_from(["1", "2"]))
    def append(self, stream: str, numbers: list[int], malformed: int, position: str | None) -> None:
        known = {event.key for event in self.stored}
        fresh = {event(number).key: event(number) for number in numbers if event(number).key not in known}
        frames = [Malformed("not_json", b"{")] * malformed
        appended = self.journal.append(Batch(stream, NOW, [event(number) for number in numbers], frames, position))
        assert appended == Appended(len(fresh), len(numbers) - len(fresh))
        self.stored += fresh.values()
        counters = self.streams.setdefault(stream, StreamCounters(malformed={}))
        counters.received += len(numbers) + malformed
        counters.accepted += appended.accepted
        counters.duplicate += appended.duplicate
        if malformed:
            counters.malformed["not_json"] = counters.malformed.get("not_json", 0) + malformed
        counters.position = position or counters.position

    @rule(name=names, start_at=st.sampled_from(["latest", "earliest"]))
    def add_sink(self, name: str, start_at: Literal["latest", "earliest"]) -> None:
        following = len(self.stored) + 1
        needed = min((sink.cursor for sink in self.sinks.values()), default=following)
        self.journal.add_sink(name, start_at)
        if name not in self.sinks:
            found = len(self._letters_of(name))
            start = following - self.journal.counters().sinks[name].accepted + found
            assert start == following if start_at == "latest" else start <= needed
            self.sinks[name] = ModelSink(start - found, start, dead=found)

    @rule(keep=st.sets(names, min_size=2))
    def forget_sinks(self, keep: set[str]) -> None:
        self.journal.forget_sinks_except(keep)
        self.sinks = {name: sink for name, sink in self.sinks.items() if name in keep}

    @precondition(lambda self: self.sinks)
    @rule(data=st.data(), limit=st.integers(1, 12), max_bytes=st.integers(1, 500))
    def deliver(self, data: st.DataObject, limit: int, max_bytes: int) -> None:
        name, sink = self._some_sink(data)
        entries = read(self.journal, name, limit, max_bytes, 0.0)
        expected = [event.json for event in self.stored[sink.cursor - 1 :]]
        assert [entry.json for entry in entries] == expected[: len(entries)]
        assert bool(entries) == bool(expected)
        if not entries:
            return
        assert entries[0].seq == sink.cursor
        fates = data.draw(st.lists(st.sampled_from(FATES), min_size=len(entries), max_size=len(entries)))
        retries = {
            entry.seq: Retry(
                entry.seq,
                entry.received,
                entry.json,
                data.draw(st.sampled_from(["x", "y"])),
                int(fate == "retry"),
                data.draw(dues) if fate == "retry" else 0.0,
                NOW,
                "timeout" if fate == "retry" else "held",
                "why",
            )
            for entry, fate in zip(entries, fates, strict=True)
            if fate in {"retry", "held"}
        }
        dead = [
            DeadLetter(entry.seq, entry.received, entry.json, "xy"[entry.seq % 2], 1, NOW, NOW, "rejected", "why")
            for entry, fate in zip(entries, fates, strict=True)
            if fate == "dead"
        ]
        outcome = Settlement(
            sink.cursor,
            sink.cursor + len(entries),
            delivered=fates.count("delivered"),
            filtered=fates.count("filtered"),
            retries=list(retries.values()),
            dead=dead,
        )
        self.journal.settle(name, outcome)
        sink.cursor += len(entries)
        sink.delivered += outcome.delivered
        sink.filtered += outcome.filtered
        sink.retries |= retries
        self._died(name, dead)

    @precondition(lambda self: any(sink.due() for sink in self.sinks.values()))
    @rule(data=st.data(), limit=st.integers(1, 5))
    def deliver_again(self, data: st.DataObject, limit: int) -> None:
        name, sink = self._some_sink(data)
        due = due_retries(self.journal, name, NOW, HORIZON, limit, 1 << 20)
        assert due == sink.due()[:limit]
        fates = data.draw(st.lists(st.sampled_from(["delivered", "retry", "dead"]), min_size=len(due), max_size=len(due)))
        chosen = list(zip(due, fates, strict=True))
        retries = [
            msgspec.structs.replace(retry, attempts=retry.attempts + 1, due=data.draw(dues))
            for retry, fate in chosen
            if fate == "retry"
        ]
        dead = [
            DeadLetter(r.seq, r.received, r.json, r.ordering_key, r.attempts, r.since, NOW, "too_old", "why")
            for r, fate in chosen
            if fate == "dead"
        ]
        resolved = [retry.seq for retry, fate in chosen if fate != "retry"]
        delivered = fates.count("delivered")
        self.journal.settle(name, Settlement(delivered=delivered, retries=retries, resolved=resolved, dead=dead))
        sink.delivered += delivered
        sink.retries = {seq: retry for seq, retry in sink.retries.items() if seq not in resolved}
        sink.retries |= {retry.seq: retry for retry in retries}
        self._died(name, dead)

    @precondition(lambda self: self.sinks and self.letters)
    @rule(data=st.data(), strangers=st.lists(st.integers(0, 200), max_size=2))
    def replay(self, data: st.DataObject, strangers: list[int]) -> None:
        name, sink = self._some_sink(data)
        ids = {*data.draw(st.sets(st.sampled_from(sorted(self.letters)))), *strangers}
        chosen = [id_ for id_ in sorted(ids) if id_ in self.letters and self.letters[id_][0] == name]
        added: dict[int, Retry] = {}
        for id_ in chosen:
            letter = self.letters.pop(id_)[1]
            if letter.seq < sink.cursor and letter.seq not in sink.retries | added:
                error = f"sent again after: {letter.error}"
                added[letter.seq] = Retry(
                    letter.seq, letter.received, letter.json, letter.ordering_key, 0, NOW, NOW, "held", error
                )
        assert self.journal.replay(name, list(ids)).replayed == len(added)
        sink.retries |= added
        sink.replayed += len(added)
        sink.discarded += len(chosen) - len(added)

    @precondition(lambda self: self.letters)
    @rule(data=st.data(), strangers=st.lists(st.integers(0, 200), max_size=2))
    def discard(self, data: st.DataObject, strangers: list[int]) -> None:
        ids = {*data.draw(st.sets(st.sampled_from(sorted(self.letters)))), *strangers}
        gone = [self.letters.pop(id_)[0] for id_ in ids if id_ in self.letters]
        assert self.journal.discard(list(ids)) == len(gone)
        for name, sink in self.sinks.items():
            sink.discarded += gone.count(name)

    @precondition(lambda self: self.sinks)
    @rule(data=st.data(), distance=st.integers(1, 5))
    def settle_too_late(self, data: st.DataObject, distance: int) -> None:
        name, sink = self._some_sink(data)
        first = max(0, sink.cursor - distance)
        self.journal.settle(name, Settlement(first, first + 1, delivered=1))

    @rule()
    def prune(self) -> None:
        self.journal.prune()

    @rule()
    def restart(self) -> None:
        self.journal.close()
        self.open()

    @rule()
    def crash(self) -> None:
        """Go on with what a process that is killed now would leave behind."""
        before, abandoned = self.path, self.journal
        self.crashes += 1
        self.path.parent.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{before}{suffix}", f"{self.path}{suffix}")
        self.open()
        abandoned.close()

    @invariant()
    def books_are_right_and_balance(self) -> None:
        counters, following = self.journal.counters(), len(self.stored) + 1
        assert counters.last_error is None
        assert counters.streams == self.streams
        assert counters.sinks == {
            name: SinkCounters(
                accepted=following - sink.start,
                delivered=sink.delivered,
                filtered=sink.filtered,
                dead=sink.dead,
                dropped=0,
                pending=following - sink.cursor + len(sink.retries),
                retrying=len(sink.retries),
                dead_letters=len(self._letters_of(name)),
                replayed=sink.replayed,
                discarded=sink.discarded,
            )
            for name, sink in self.sinks.items()
        }
        assert_balanced(counters)

    @invariant()
    def queues_are_right(self) -> None:
        for name, sink in self.sinks.items():
            assert waiting_keys(self.journal, name) == {retry.ordering_key for retry in sink.retries.values()}
            assert due_retries(self.journal, name, NOW, HORIZON, 1000, 1 << 20) == sink.due()
            assert written(self.journal, sink=name) == self._letters_of(name)

    def _letters_of(self, name: str) -> dict[int, DeadLetter]:
        return {id_: letter for id_, (sink, letter) in self.letters.items() if sink == name}

    def _died(self, name: str, dead: list[DeadLetter]) -> None:
        self.sinks[name].dead += len(dead)
        for letter in dead:
            self.letters_ever += 1
            self.letters[self.letters_ever] = (name, letter)

    def _some_sink(self, data: st.DataObject) -> tuple[str, ModelSink]:
        name = data.draw(st.sampled_from(sorted(self.sinks)))
        return name, self.sinks[name]


JournalMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestJournal = JournalMachine.TestCase


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.sampled_from(["append", "append", "settle", "prune"]), min_size=5, max_size=25),
    left=st.floats(0.0, 1.0),
)
def test_whatever_a_power_failure_takes_the_rest_is_a_state_that_was(steps: list[str], left: float) -> None:
    """What was written since the last sync may be lost; then the journal is as it was after some step."""
    with tempfile.TemporaryDirectory() as directory:
        path, copy = Path(directory) / "journal.db", Path(directory) / "copy" / "journal.db"
        copy.parent.mkdir()
        with closing(Journal(JournalSettings(path=path, durability="normal"))) as journal:
            journal.add_sink("a", "earliest")
            states, synced = [journal.counters()], b""
            for number, step in enumerate(steps):
                if step == "append":
                    journal.append(Batch("s", NOW, [event(2 * number), event(2 * number + 1)], []))
                elif step == "prune":
                    journal.prune()
                    synced = wal_of(path)[:WAL_HEADER]
                elif entries := read(journal, "a", 3, 1000, 0.0):
                    journal.settle("a", Settlement(entries[0].seq, entries[-1].seq + 1, delivered=len(entries)))
                states.append(journal.counters())
            shutil.copy(path, copy)
            wal = wal_of(path)
            # A log that was not begun anew since it was synced can't be lost.
            kept = len(wal) if wal[:WAL_HEADER] == synced else int(len(wal) * left)
            Path(f"{copy}-wal").write_bytes(wal[:kept])
        with closing(Journal(JournalSettings(path=copy, durability="normal"))) as journal:
            journal.add_sink("a", "earliest")
            counters = journal.counters()
            assert (counters.streams, counters.sinks) in [(state.streams, state.sinks) for state in states]
            assert_balanced(counters)
            assert len(read(journal, "a", 1000, 1 << 20, 0.0)) == counters.sinks["a"].pending
            following = counters.sinks["a"].accepted + 1
            assert journal.append(Batch("s", NOW, [event(100)], [])) == (1, 0)
            assert read(journal, "a", 1000, 1 << 20, 0.0)[-1].seq == following


def wal_of(path: Path) -> bytes:
    return Path(f"{path}-wal").read_bytes()
