"""Changes of dead letters: back to the retry queue, or deleted; both are counted."""

import threading
from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from bridge.journal import queues, tables
from bridge.journal.cursor import Cursor
from bridge.journal.model import DeadLetter, Retry
from bridge.journal.pages import Replayed
from bridge.journal.writer import Store

log = structlog.get_logger(__name__)

_ROWS: Final = 256
"""Dead letters deleted at a time at most, when the oldest have to go."""


class DeadLetters:
    """Moves and deletes dead letters, without state of its own. Call every method with the journal's write lock held.

    Every method raises `sqlite3.Error` if the disk fails; then nothing has changed.

    Args:
        store: The journal's file.
        sinks: The journal's cursors, by the sinks' names; as it adds and forgets sinks, they change.
        changed: The journal's lock under which counts change.
    """

    def __init__(self, store: Store, sinks: Mapping[str, Cursor], changed: threading.Condition) -> None:
        self._store = store
        self._sinks = sinks
        self._changed = changed

    def replay(self, sink: str, ids: Sequence[int], now: float) -> Replayed:
        """Send a sink's dead letters back to its retry queue, due at once, as far as there is room.

        The queue is filled to half of `max_pending`: at `max_pending`, live events would wait. Dead letters that are gone,
        damaged or another sink's are left alone. An event that waits already, in the retry queue or after the cursor, is not
        queued twice (a sink that left and came back may have both): its dead letter is discarded.
        """
        cursor = self._sinks[sink]
        room = max(1, cursor.max_pending // 2)
        taken = list(ids[: max(0, room - cursor.retrying)])
        replayed = self._move(sink, cursor, taken, now) if taken else 0
        return Replayed(len(taken), replayed, cursor.retrying, room)

    def _move(self, sink: str, cursor: Cursor, ids: Sequence[int], now: float) -> int:
        with self._store.transaction(synced=False) as db:
            found = queues.dead_letters_of(db, sink, ids)
            if not found:
                return 0
            passed = [_retry(one, now) for one in found.values() if one.seq < cursor.row.cursor]
            added = queues.add_retries(db, sink, passed)
            queues.delete_dead(db, list(found))
            row = cursor.row
            after = row._replace(replayed=row.replayed + added, discarded=row.discarded + len(found) - added)
            tables.save_sink(db, sink, after)
        with self._changed:
            cursor.row = after
            cursor.dead_letters -= len(found)
            cursor.queue_grew(added)
            self._changed.notify_all()
        return added

    def discard(self, ids: Sequence[int]) -> dict[str, int]:
        """Delete dead letters; return how many there were of each sink."""
        with self._store.transaction(synced=False) as db:
            gone = queues.delete_dead(db, ids)
            # The table, not memory: sinks that nobody has added yet count theirs, too.
            rows = {name: row for name, row in tables.sinks(db).items() if gone.get(name)}
            after = {name: row._replace(discarded=row.discarded + gone[name]) for name, row in rows.items()}
            for name, row in after.items():
                tables.save_sink(db, name, row)
        with self._changed:
            for name, row in after.items():
                if name in self._sinks:
                    self._sinks[name].row = row
                    self._sinks[name].dead_letters -= gone[name]
        return gone

    def discard_oldest(self, enough: int) -> None:
        """Delete the oldest dead letters until no more than `enough` bytes of the journal are in use, or none are left."""
        all_gone: dict[str, int] = {}
        while (size := self._store.used - enough) > 0:
            ids = queues.oldest_dead_letters(self._store.db, _ROWS, size)
            if not ids:
                break
            for name, count in self.discard(ids).items():
                all_gone[name] = all_gone.get(name, 0) + count
        if all_gone:
            log.error("the journal is full, the oldest dead letters were discarded", dead_letters=all_gone)

    def most(self) -> tuple[str, int] | None:
        """Return the sink with most dead letters, and their number; None if there are none."""
        counts = queues.count_dead_letters(self._store.db)
        return max(counts.items(), key=lambda its: its[1], default=None)


def _retry(dead: DeadLetter, now: float) -> Retry:
    """Return a dead letter as it enters the retry queue: as if it had never been tried."""
    error = f"sent again after: {dead.error}"
    return Retry(dead.seq, dead.received, dead.json, dead.ordering_key, 0, now, now, "held", error)
