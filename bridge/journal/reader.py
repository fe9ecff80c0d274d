"""Looking into a journal, in pages, so that nobody waits long: one's own, or one that another process has or left behind."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from bridge.event import fields_of
from bridge.journal import file, queues, scan, tables
from bridge.journal.model import (
    Counters,
    DeadLetterQuery,
    DeadLetters,
    Extent,
    Extract,
    Quarantined,
    StoredDeadLetter,
    Verified,
)
from bridge.journal.writer import used_bytes
from bridge.sink import Entry

_LOOKED_AT: Final = 10_000
"""Dead letters that one page looks at, at most, however few of them are asked for."""

_PAGE_BYTES: Final = 8 << 20
"""Bytes of events in one page of dead letters, at most; but at least one."""

_LAST: Final = 2**63 - 2
"""The greatest place or id that there can be, but one."""


class JournalReader:
    """Reads a journal's file and changes nothing: nothing is set aside or made. For one thread at a time.

    The file may be damaged, and may be in use: what each method returns is of one instant. Every
    method goes as far as it can on a damaged file, and never returns an event that was not scan.

    Beside a write-ahead log that a killed process left, SQLite makes its `-shm` file if that is missing.

    Args:
        path: The file.

    Raises:
        JournalError: By every method, too: it can't be read, or is no journal, or is of another format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db = file.connect_to_any(path)
        self._checking: sqlite3.Connection | None = None

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def dead_letters(self, query: DeadLetterQuery, after: int = 0, limit: int = 1000) -> DeadLetters:
        """One page of the dead letters that a query asks for, of any sink, from the one after id `after` on.

        A page may be empty although there are more: go on with its `upto`, until that is the `after` of the question.
        """
        with self._looking() as db:
            page = DeadLetters([], after)
            upto, left = after, _PAGE_BYTES
            for letter in queues.dead_letters(db, _within(after), _LOOKED_AT):
                if fits(query, letter):
                    left -= len(letter.letter.json)
                    if page.found and (left < 0 or len(page.found) >= limit):
                        break
                    page.found.append(letter)
                upto = letter.id
            return DeadLetters(page.found, upto)

    def quarantine(self, after: int = 0, limit: int = 250) -> list[Quarantined]:
        """The malformed messages that are kept (their beginnings), by id, from the one after `after` on."""
        with self._looking() as db:
            return tables.quarantine(db, _within(after), limit)

    def extent(self) -> Extent:
        """Where what is stored begins and ends."""
        with self._looking() as db:
            return scan.extent(db)

    def events(self, after: int, limit: int, max_bytes: int) -> Extract:
        """One page of the stored events after a place, in order: about `max_bytes`, at least one if there is any."""
        with self._looking() as db:
            entries: list[Entry] = []
            upto, damaged = after, 0
            for stretch in scan.stretches(db, _within(after) + 1, scan.extent(db).next):
                if not stretch.lines:
                    upto, damaged = stretch.end - 1, damaged + stretch.end - stretch.first
                    limit -= 1
                for seq, line in enumerate(stretch.lines, stretch.first):
                    max_bytes -= len(line)
                    if entries and (max_bytes < 0 or len(entries) >= limit):
                        return Extract(entries, upto, damaged)
                    entries.append(Entry(seq, stretch.received, line))
                    upto = seq
                if len(entries) >= limit:
                    break
            return Extract(entries, upto, damaged)

    def verify(self, after: int, rows: int) -> Verified:
        """Check the checksums and the counts of at most so many rows after a place."""
        with self._looking() as db:
            upto, events = after, 0
            damaged: list[tuple[int, int]] = []
            for stretch in scan.stretches(db, _within(after) + 1, scan.extent(db).next):
                upto = stretch.end - 1
                events += len(stretch.lines)
                if not stretch.lines:
                    damaged.append((stretch.first, stretch.end - stretch.first))
                rows -= 1
                if rows <= 0:
                    break
            return Verified(upto, events, damaged)

    def check(self) -> str | None:
        """SQLite's own check of the whole file: what is wrong with it; None if nothing is. May take seconds.

        It has a connection of its own, and may run beside everything else.
        """
        try:
            with closing(file.connect_to_any(self._path)) as db:
                self._checking = db
                return file.damage(db)
        except sqlite3.Error as error:
            raise file.JournalError(f"{self._path}: {error}") from error

    def interrupt(self) -> None:
        """End a check that is running, with an error; from any thread."""
        with suppress(sqlite3.Error):
            if self._checking is not None:
                self._checking.interrupt()

    def counters(self) -> Counters:
        """All counts at one instant, of every sink that the journal knows."""
        with self._looking() as db:
            following = tables.next_seq(db)
            retrying, letters = queues.count_retries(db), queues.count_dead_letters(db)
            sinks = {
                name: row.balanced(following, *waits).counters(following, *waits)
                for name, row in tables.sinks(db).items()
                for waits in [(retrying.get(name, 0), letters.get(name, 0))]
            }
            return Counters(tables.stream_counters(db), sinks, used_bytes(db), None)

    def event_at(self, seq: int) -> bytes | None:
        """The JSON of the event at a place; None if it is gone or damaged."""
        with self._looking() as db:
            row = tables.load_row(db, seq)
            return None if row is None or row.damaged else row.lines[seq - row.first]

    def oldest_retry(self, sink: str) -> bytes | None:
        """The JSON of the first event in a sink's retry queue; None if there is none, or it is damaged."""
        with self._looking() as db:
            return queues.oldest_retry(db, sink)

    @contextmanager
    def _looking(self) -> Iterator[sqlite3.Connection]:
        """Look at one instant."""
        try:
            self._db.execute("BEGIN")
            try:
                yield self._db
            finally:
                self._db.execute("ROLLBACK")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise file.JournalError(f"{self._path}: {error}") from error


def fits(query: DeadLetterQuery, stored_letter: StoredDeadLetter) -> bool:
    """Whether a dead letter is one of those that a query asks for."""
    letter = stored_letter.letter
    if query.sink is not None and query.sink != stored_letter.sink:
        return False
    if query.reason is not None and query.reason != letter.reason:
        return False
    if query.since is not None and letter.died < query.since:
        return False
    if query.uuid is None and query.type is None:
        return True
    try:
        fields = fields_of(letter.json)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return query.uuid in {None, fields.uuid} and query.type in {None, fields.type} and not stored_letter.damaged


def _within(place: int) -> int:
    """A place or id of whoever asks, as SQLite takes it."""
    return max(0, min(place, _LAST))
