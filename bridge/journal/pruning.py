"""Space in the journal: pruning, dropping the oldest when it is full, and stepping over damaged rows."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import structlog

from bridge.journal import queues, tables
from bridge.journal.cursor import Cursor
from bridge.journal.file import JournalError
from bridge.journal.settings import JournalSettings
from bridge.journal.writer import RESERVE, Store
from bridge.policy import Summary

log = structlog.get_logger(__name__)

_PRUNE_ROWS: Final = 256
"""Rows deleted in one transaction at most, so that other threads soon get the write lock."""

_DROP_ROWS: Final = 16
"""Batches dropped at a time, when the oldest have to go."""

_ENOUGH_SHARE: Final = 64
"""Part of the journal that has to be free before it takes events again, once it was full."""

_PATIENCE: Final = 1.0
"""Seconds for which a reader may keep SQLite's log from being emptied before that is said."""

_PINNED: Final = "a process that reads it (a backup, a sqlite3 shell) keeps SQLite's log from being emptied; new events wait"


class Space:
    """Makes room in the journal; every method belongs to the holder of the journal's write lock, and may raise `JournalError`.

    With `when_full: block`, all pending events and dead letters are kept. With `drop_oldest`, the oldest dead letters go, then
    the oldest events.

    Args:
        sinks: The journal's cursors, by the sinks' names; as it adds and forgets sinks, they change.
        clock: The time of day in seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        sinks: Mapping[str, Cursor],
        settings: JournalSettings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._sinks = sinks
        self._drops = settings.when_full == "drop_oldest"
        self._letters = settings.dead_letters
        self._retention = settings.retention
        self._clock = clock
        self._monotonic = monotonic
        self._began = clock() - monotonic()
        # Under constant overflow, these happen with every commit.
        self._expired, self._discarded, self._dropped = Summary(), Summary(), Summary()

    def share(self) -> None:
        """Give every sink an equal share of the bytes that retries and dead letters may take."""
        quarter = max(0, self._store.largest()) // 4
        for cursor in self._sinks.values():
            cursor.retries_limit = quarter // len(self._sinks)
            cursor.letters_limit = (self._letters.max_bytes or quarter) // len(self._sinks)

    def prune_some(self, oldest_seq: int, *, retained: bool = False) -> bool:
        """Delete some rows behind all cursors, out of the window, or too old; return whether there may be more.

        The uuids of events before `oldest_seq` are not remembered. Events that `retention` keeps go only if `retained`.
        """
        # A clock that was set forward makes nothing old.
        now = min(self._clock(), self._began + self._monotonic())
        deleted = 0
        with suppress(JournalError):
            if not self._store.empties_log():
                return False  # Every deletion is written to the log, and frees nothing.
            with self._store.write("prune") as db:
                # The table, not memory: sinks that are not added yet keep their events, too.
                passed = db.execute("SELECT min(cursor) FROM sinks").fetchone()[0] or tables.next_seq(db)
                if self._retention and not retained:
                    deleted = tables.delete_received(db, now - self._retention, passed, _PRUNE_ROWS)
                else:
                    deleted = tables.delete_batches(db, passed, _PRUNE_ROWS)
                forgotten = "SELECT first FROM seen WHERE first < ? ORDER BY first LIMIT ?"
                found = db.execute(f"DELETE FROM seen WHERE first IN ({forgotten})", (oldest_seq, _PRUNE_ROWS))
                deleted = max(deleted, found.rowcount)
            if self._letters.max_age is not None:
                oldest = queues.oldest_dead_letters(self._store.db, _PRUNE_ROWS)
                expired = [id_ for id_, _, died in oldest if died < now - self._letters.max_age]
                if gone := self._expired.add(self.discard(expired) if expired else {}, self._monotonic()):
                    log.warning("dead letters were discarded, they are older than max_age", dead_letters=gone)
                deleted = max(deleted, len(expired))
        return deleted == _PRUNE_ROWS

    def discard(self, ids: Sequence[int]) -> dict[str, int]:
        """Delete dead letters; return how many there were of each sink."""
        with self._store.write("dead letters") as db:
            gone = queues.delete_dead(db, ids)
            # The table, not memory: sinks that nobody has added yet count theirs, too.
            rows = {name: row for name, row in tables.sinks(db).items() if name in gone}
            after = {name: row._replace(discarded=row.discarded + gone[name].count) for name, row in rows.items()}
            db.executemany(tables.SAVE_SINK, [(name, *row) for name, row in after.items()])
        with self._store.changed:
            for name, row in after.items():
                if name in self._sinks:
                    self._sinks[name].row = row
                    self._sinks[name].dead_letters -= gone[name]
        return {name: letters.count for name, letters in gone.items()}

    def trim(self, sink: str) -> None:
        """Discard a sink's oldest dead letters if it has more than its share, and the policy is to drop the oldest."""
        cursor = self._sinks[sink]
        if self._drops and cursor.dead_letters.size > cursor.letters_limit:
            with suppress(JournalError):
                self._discard_oldest(lambda: cursor.dead_letters.size - cursor.letters_limit * 15 // 16, sink)

    def skip(self, sink: str, cursor: Cursor, next_seq: int) -> bool:
        """Step over a damaged or missing row, counting its events as dropped; return False if the disk fails.

        A row is missing because the oldest ones were dropped, or because it was lost with a damaged page.
        """
        operation = f"skip {sink}"
        with suppress(JournalError), self._store.report_errors(operation):
            seq = cursor.row.cursor
            row = cursor.row_at(seq)
            if row is not None and not row.damaged:
                return True
            damaged = row is not None or seq >= cursor.dropped_before
            # To where the next row begins: the length of a damaged one can't be believed.
            end = (tables.first_after(self._store.db, seq) or next_seq) if damaged else cursor.dropped_before
            after = cursor.row.dropping(end - seq)
            with self._store.write(operation) as db:
                db.execute(tables.SAVE_SINK, (sink, *after))
            with self._store.changed:
                cursor.row = after
            if damaged:
                log.error("stored events are damaged and were dropped", sink=sink, first=seq, events=end - seq)
            return True
        return False

    def drop_retries(self, sink: str, cursor: Cursor, rows: Sequence[int]) -> None:
        """Take damaged rows out of the retry queue, counting them as dropped."""
        after = cursor.row._replace(dropped=cursor.row.dropped + len(rows))
        with self._store.write(f"skip {sink}") as db:
            # By their row ids, since no other column is reliable.
            db.executemany("DELETE FROM retries WHERE rowid = ?", [(row,) for row in rows])
            db.execute(tables.SAVE_SINK, (sink, *after))
        with self._store.changed:
            cursor.row = after
            cursor.retrying -= len(rows)
            cursor.queue_version += 1
        log.error("events in the retry queue are damaged and were dropped", sink=sink, events=len(rows))

    def make_room(self, oldest_seq: int) -> bool:
        """Delete as `prune_some` does and the policy says; return whether the journal may take events again."""
        store = self._store
        if not store.empties_log():
            if store.pinned_since is not None and time.monotonic() - store.pinned_since > _PATIENCE:
                store.set_error("room", f"{store.path}: {_PINNED}")
            return False
        limit = store.limit() * 15 // 16
        # Well below it, so that a sink that is a little too slow does not make it full and not full all the time.
        enough = limit - limit // _ENOUGH_SHARE
        while store.used > enough and self.prune_some(oldest_seq, retained=True):
            pass
        if self._drops:
            # What a disk has left that others fill does not count: nothing would be gained.
            most = store.largest() * 225 // 256
            with suppress(JournalError):
                self._discard_oldest(lambda: store.used - most)
                self._drop_oldest(most)
        if store.used <= enough:
            store.set_error("room", None)
            return True
        store.set_error("room", f"{store.path}: {self._how_full()}; {self._whose_fault()}")
        return False

    def takes_copies(self, sink: str, oldest_seq: int) -> bool:
        """Return whether there is room for new retries and dead letters of a sink; those of one delivery may come on top."""
        store = self._store
        for _ in range(2):
            if store.empties_log() and store.used < store.limit() * 31 // 32:
                return True
            self.make_room(oldest_seq)
        waits = f"sink {sink} waits, since there is no room for events that failed"
        store.set_error(f"settle {sink}", f"{store.path}: {self._how_full()}; {waits}; {self._whose_fault()}")
        return False

    def _how_full(self) -> str:
        if self._store.limit() < self._store.largest():
            return f"the disk is full but for a reserve of {RESERVE >> 20} MiB"
        return f"full, journal.max_bytes is {self._store.max_bytes}"

    def _whose_fault(self) -> str:
        letters = {name: cursor.dead_letters.count for name, cursor in self._sinks.items()}
        name = max(letters, key=letters.__getitem__, default="")
        if not letters.get(name):
            return "a sink is behind"
        most = f"{name} has {letters[name]}"
        return f"a sink is behind, or has many dead letters: {most}; `event-bridge dead-letters` replays or drops them"

    def _discard_oldest(self, excess: Callable[[], int], sink: str | None = None) -> None:
        """Delete the oldest dead letters, of all sinks or of one, while there are too many bytes, or until none are left."""
        all_gone: Counter[str] = Counter()
        while (size := excess()) > 0:
            ids: list[int] = []
            for id_, length, _ in queues.oldest_dead_letters(self._store.db, _PRUNE_ROWS, sink):
                if size > 0:
                    ids.append(id_)
                size -= length
            if not ids:
                break
            all_gone.update(self.discard(ids))
        if gone := self._discarded.add(all_gone, self._monotonic()):
            log.error("there is no room, the oldest dead letters were discarded", dead_letters=gone)

    def _drop_oldest(self, enough: int) -> None:
        """Drop the oldest batches, which the slowest sinks have not delivered, until no more than enough is in use."""
        before = {name: cursor.gone for name, cursor in self._sinks.items()}
        while self._store.used > enough:
            oldest = f"SELECT first, count FROM batches ORDER BY first LIMIT {_DROP_ROWS}"
            (end,) = self._store.db.execute(f"SELECT max(first + count) FROM ({oldest})").fetchone()
            if end is None:
                break
            with self._store.write("drop") as db:
                tables.delete_batches(db, end, _DROP_ROWS)
            with self._store.changed:
                for cursor in self._sinks.values():
                    cursor.dropped_before = end
        dropped = {name: cursor.gone - before[name] for name, cursor in self._sinks.items()}
        if gone := self._dropped.add(dropped, self._monotonic()):
            log.error("the journal is full, the oldest undelivered events were dropped", events=gone)
