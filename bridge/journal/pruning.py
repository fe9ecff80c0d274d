"""Space in the journal: pruning, dropping the oldest when it is full, and stepping over damaged rows."""

import threading
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import structlog

from bridge.journal import queues, tables
from bridge.journal.cursor import Cursor
from bridge.journal.dead_letters import DeadLetters
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
        when_full: "block" keeps all pending events; "drop_oldest" drops the oldest dead letters, then the oldest events.
    """

    def __init__(
        self,
        store: Store,
        sinks: Mapping[str, Cursor],
        changed: threading.Condition,
        letters: DeadLetters,
        when_full: Literal["block", "drop_oldest"],
    ) -> None:
        self._store = store
        self._sinks = sinks
        self._changed = changed
        self._letters = letters
        self._when_full = when_full

    def prune_some(self, oldest_seq: int) -> bool:
        """Delete some rows behind all cursors or out of the window; return whether there may be more.

        The uuids of events before `oldest_seq` are not remembered.
        """
        deleted = 0
        with self._store.swallow_errors("prune"), self._store.transaction(synced=False) as db:
            # The table, not memory: sinks that are not added yet keep their events, too.
            passed = tables.least_cursor(db) or tables.next_seq(db)
            deleted = max(tables.delete_batches(db, passed, _PRUNE_ROWS), tables.delete_seen(db, oldest_seq, _PRUNE_ROWS))
        return deleted == _PRUNE_ROWS

    def jump(self, sinks: Mapping[str, Cursor], end: int) -> None:
        """Move cursors to a sequence number and count the events that they jump over as dropped.

        Raises:
            sqlite3.Error: It can't be recorded; no cursor has moved.
        """
        after = {name: cursor.jumped(end) for name, cursor in sinks.items() if cursor.row.cursor < end}
        with self._store.transaction(synced=False) as db:
            for name, row in after.items():
                tables.save_sink(db, name, row)
        with self._changed:
            for name, row in after.items():
                sinks[name].row = row

    def skip(self, sink: str, cursor: Cursor, next_seq: int) -> bool:
        """Step over a damaged row, counting its events as dropped; return False if the disk fails.

        A row that is missing was dropped a moment ago (the cursor has moved by itself), or lost with a damaged page.
        """
        with self._store.swallow_errors(f"skip {sink}"):
            seq = cursor.row.cursor
            row = cursor.row_at(seq)
            if row is not None and not row.damaged:
                return True
            # To where the next row begins: the length of a damaged one can't be believed.
            end = tables.first_after(self._store.db, seq) or next_seq
            if end > seq:
                self.jump({sink: cursor}, end)
                log.error("stored events are damaged and were dropped", sink=sink, first=seq, events=end - seq)
            return True
        return False

    def drop_retries(self, sink: str, cursor: Cursor, rows: Sequence[int]) -> None:
        """Take damaged rows out of the retry queue, counting them as dropped.

        Raises:
            JournalError: It can't be recorded.
        """
        with self._store.report_errors(f"skip {sink}"):
            after = cursor.row._replace(dropped=cursor.row.dropped + len(rows))
            with self._store.transaction(synced=False) as db:
                queues.delete_damaged_retries(db, rows)
                tables.save_sink(db, sink, after)
            with self._changed:
                cursor.settled(after, -len(rows), 0)
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
            with store.swallow_errors("drop"):
                self._letters.discard_oldest(limit * 15 // 16)
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
        most = self._letters.most()
        if most is None:
            return "a sink is behind"
        name, count = most
        return (
            f"a sink is behind, or has many dead letters: {name} has {count}; `event-bridge dead-letters` replays or drops them"
        )

    def _drop_oldest(self, enough: int) -> None:
        """Drop the oldest batches, which the slowest sinks have not delivered, until no more than enough is in use."""
        before = {name: cursor.row.dropped for name, cursor in self._sinks.items()}
        while self._store.used > enough:
            end = tables.oldest_end(self._store.db, _DROP_ROWS)
            if end is None:
                break
            self.jump(self._sinks, end)
            with self._store.transaction(synced=False) as db:
                tables.delete_batches(db, end, _DROP_ROWS)
        dropped = {name: cursor.row.dropped - before[name] for name, cursor in self._sinks.items()}
        if any(dropped.values()):
            log.error("the journal is full, the oldest undelivered events were dropped", events=dropped)
