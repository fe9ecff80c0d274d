"""Space in the journal: pruning, dropping the oldest when it is full, and stepping over damaged rows."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Literal

import structlog

from bridge.journal import queues, tables
from bridge.journal.cursor import Cursor
from bridge.journal.file import JournalError
from bridge.journal.writer import RESERVE, Store

log = structlog.get_logger(__name__)

_PRUNE_ROWS: Final = 256
"""Rows deleted in one transaction at most, so that other threads soon get the write lock."""

_DROP_ROWS: Final = 16
"""Batches dropped at a time, when the oldest have to go."""

_ENOUGH_SHARE: Final = 64
"""Part of the journal that has to be free before it takes events again, once it was full."""


class Space:
    """Makes room in the journal. It has no state of its own; every method belongs to the holder of the journal's write lock.

    Args:
        sinks: The journal's cursors, by the sinks' names; as it adds and forgets sinks, they change.
        when_full: "block" keeps all pending events; "drop_oldest" drops the oldest dead letters, then the oldest events.
    """

    def __init__(self, store: Store, sinks: Mapping[str, Cursor], when_full: Literal["block", "drop_oldest"]) -> None:
        self._store = store
        self._sinks = sinks
        self._when_full = when_full

    def prune_some(self, oldest_seq: int) -> bool:
        """Delete some rows behind all cursors or out of the window; return whether there may be more.

        The uuids of events before `oldest_seq` are not remembered.
        """
        deleted = 0
        with suppress(JournalError), self._store.write("prune") as db:
            # The table, not memory: sinks that are not added yet keep their events, too.
            passed = tables.least_cursor(db) or tables.next_seq(db)
            deleted = max(tables.delete_batches(db, passed, _PRUNE_ROWS), tables.delete_seen(db, oldest_seq, _PRUNE_ROWS))
        return deleted == _PRUNE_ROWS

    def discard(self, ids: Sequence[int]) -> dict[str, int]:
        """Delete dead letters; return how many there were of each sink.

        Raises:
            JournalError: It can't be recorded.
        """
        with self._store.write("dead letters") as db:
            gone = queues.delete_dead(db, ids)
            # The table, not memory: sinks that nobody has added yet count theirs, too.
            rows = {name: row for name, row in tables.sinks(db).items() if gone.get(name)}
            after = {name: row._replace(discarded=row.discarded + gone[name]) for name, row in rows.items()}
            db.executemany(tables.SAVE_SINK, [(name, *row) for name, row in after.items()])
        with self._store.changed:
            for name, row in after.items():
                if name in self._sinks:
                    self._sinks[name].row = row
                    self._sinks[name].dead_letters -= gone[name]
        return gone

    def jump(self, sinks: Mapping[str, Cursor], end: int, operation: str = "drop") -> None:
        """Move cursors to a sequence number and count the events that they jump over as dropped.

        Raises:
            JournalError: It can't be recorded; no cursor has moved.
        """
        after = {name: cursor.jumped(end) for name, cursor in sinks.items() if cursor.row.cursor < end}
        with self._store.write(operation) as db:
            db.executemany(tables.SAVE_SINK, [(name, *row) for name, row in after.items()])
        with self._store.changed:
            for name, row in after.items():
                sinks[name].row = row

    def skip(self, sink: str, cursor: Cursor, next_seq: int) -> bool:
        """Step over a damaged row, counting its events as dropped; return False if the disk fails.

        A row that is missing was dropped a moment ago (the cursor has moved by itself), or lost with a damaged page.
        """
        operation = f"skip {sink}"
        with suppress(JournalError), self._store.report_errors(operation):
            seq = cursor.row.cursor
            row = cursor.row_at(seq)
            if row is not None and not row.damaged:
                return True
            # To where the next row begins: the length of a damaged one can't be believed.
            end = tables.first_after(self._store.db, seq) or next_seq
            if end > seq:
                self.jump({sink: cursor}, end, operation)
                log.error("stored events are damaged and were dropped", sink=sink, first=seq, events=end - seq)
            return True
        return False

    def drop_retries(self, sink: str, cursor: Cursor, rows: Sequence[int]) -> None:
        """Take damaged rows out of the retry queue, counting them as dropped.

        Raises:
            JournalError: It can't be recorded.
        """
        after = cursor.row._replace(dropped=cursor.row.dropped + len(rows))
        with self._store.write(f"skip {sink}") as db:
            queues.delete_damaged_retries(db, rows)
            db.execute(tables.SAVE_SINK, (sink, *after))
        with self._store.changed:
            cursor.row = after
            cursor.retrying -= len(rows)
            cursor.queue_version += 1
        log.error("events in the retry queue are damaged and were dropped", sink=sink, events=len(rows))

    def make_room(self, oldest_seq: int) -> bool:
        """Delete as `prune_some` does and `when_full` says; return whether the journal may take events again."""
        store = self._store
        limit = store.limit()
        # Well below it, so that a sink that is a little too slow does not make it full and not full all the time.
        enough = limit - limit // _ENOUGH_SHARE
        while store.used > enough and self.prune_some(oldest_seq):
            pass
        if self._when_full == "drop_oldest":
            with suppress(JournalError), store.report_errors("drop"):
                self._discard_oldest(limit * 15 // 16)
                self._drop_oldest(limit * 15 // 16)
        if store.used <= enough:
            store.set_error("room", None)
            return True
        store.set_error("room", f"{store.path}: {self._how_full(limit)}; {self._whose_fault()}")
        return False

    def _how_full(self, limit: int) -> str:
        if limit < self._store.max_bytes:
            return f"the disk is full but for a reserve of {RESERVE >> 20} MiB"
        return f"full, journal.max_bytes is {limit}"

    def _whose_fault(self) -> str:
        name, count = max(queues.count_dead_letters(self._store.db).items(), key=lambda its: its[1], default=("", 0))
        if not count:
            return "a sink is behind"
        return (
            f"a sink is behind, or has many dead letters: {name} has {count}; `event-bridge dead-letters` replays or drops them"
        )

    def _discard_oldest(self, enough: int) -> None:
        """Delete the oldest dead letters until no more than `enough` bytes of the journal are in use, or none are left."""
        all_gone: dict[str, int] = {}
        while (size := self._store.used - enough) > 0:
            ids = queues.oldest_dead_letters(self._store.db, _PRUNE_ROWS, size)
            if not ids:
                break
            for name, count in self.discard(ids).items():
                all_gone[name] = all_gone.get(name, 0) + count
        if all_gone:
            log.error("the journal is full, the oldest dead letters were discarded", dead_letters=all_gone)

    def _drop_oldest(self, enough: int) -> None:
        """Drop the oldest batches, which the slowest sinks have not delivered, until no more than enough is in use."""
        before = {name: cursor.row.dropped for name, cursor in self._sinks.items()}
        while self._store.used > enough:
            end = tables.oldest_end(self._store.db, _DROP_ROWS)
            if end is None:
                break
            self.jump(self._sinks, end)
            with self._store.write("drop") as db:
                tables.delete_batches(db, end, _DROP_ROWS)
        dropped = {name: cursor.row.dropped - before[name] for name, cursor in self._sinks.items()}
        if any(dropped.values()):
            log.error("the journal is full, the oldest undelivered events were dropped", events=dropped)
