"""Changes that an operator asks for: dead letters sent back or deleted, a cursor set back, an event set aside."""

from collections.abc import Callable, Sequence
from datetime import datetime

from bridge.journal import file, queues, tables
from bridge.journal.appender import Appender
from bridge.journal.cursor import Cursor
from bridge.journal.model import DeadLetter, Settlement
from bridge.journal.pages import Replayed, Rewound
from bridge.journal.pruning import Space
from bridge.journal.reader import ConcurrentReader


class OperableReader(ConcurrentReader):
    """A reader that also changes what an operator may change. Its parts belong to the journal, which sets them."""

    _sinks: dict[str, Cursor]
    _space: Space
    _appender: Appender
    _clock: Callable[[], float]

    def replay(self, sink: str, ids: Sequence[int]) -> Replayed:
        """Send a sink's dead letters back to its retry queue, due at once, as far as there is room.

        The queue is filled to half of `max_pending`: at `max_pending`, live events would wait. Dead letters that are gone,
        damaged or another sink's are left alone. An event that waits already is not queued twice: its letter is discarded.

        Raises:
            Closed: The journal was closed.
            JournalError: It can't be recorded; `UnknownSinkError` if the sink is not configured.
        """
        with self._store.lock:
            if (cursor := self._sinks.get(sink)) is None:
                raise _unknown(sink)
            row, room = cursor.row, max(1, cursor.max_pending // 2)
            taken = list(ids[: max(0, room - cursor.retrying)])
            with self._store.write("dead letters") as db:
                found, moved = queues.replay(db, sink, taken, row.cursor, self._clock())
                letters = cursor.dead_letters - found
                row = row._replace(replayed=row.replayed + moved, discarded=row.discarded + found.count - moved)
                db.execute(tables.SAVE_SINK, (sink, *row))
            with self._store.changed:
                cursor.row, cursor.dead_letters = row, letters
                cursor.retrying += moved
                # After the count: a thread that sees this number sees that one.
                cursor.queue_version += 1
                self._store.changed.notify_all()
            return Replayed(len(taken), moved, cursor.retrying, room)

    def rewind(self, sink: str, to: int | datetime, *, dry_run: bool = False) -> Rewound:
        """Set a sink's cursor back, so that it gets stored events again, in order; `dry_run` only tells how many.

        Events of its retry queue after the new cursor leave the queue. Events that are not stored any more are left out.

        Args:
            sink: Whose.
            to: A sequence number, or a time of reception.
            dry_run: Change nothing.

        Raises:
            Closed: The journal was closed.
            JournalError: It can't be recorded; `UnknownSinkError` if the sink is not configured.
        """
        with self._store.lock:
            cursor = self._cursor(sink)
            seq = to if isinstance(to, int) else tables.seq_at(self._store.db, to.timestamp()) or cursor.row.cursor
            return cursor.rewind(self._store, seq, dry_run=dry_run)

    def skip(self, sink: str) -> int | None:
        """Make a dead letter of the event after a sink's cursor; return its sequence number, None if there is none.

        Raises as `rewind` does.
        """
        with self._store.lock:
            cursor, now = self._cursor(sink), self._clock()
            with cursor.reading:
                entries = cursor.read(self._appender.next_seq, 1, 1)
            for seq, received, json, key in [(e.seq, e.received, e.json, e.fields.resource_uri) for e in entries]:
                letter = DeadLetter(seq, received, json, key, 0, now, now, "skipped", "set aside by an operator")
                cursor.settle(self._store, Settlement(seq, seq + 1, dead=[letter]))
            return entries[0].seq if entries else None

    def _cursor(self, sink: str) -> Cursor:
        if sink not in self._sinks:
            raise _unknown(sink)
        return self._sinks[sink]

    def discard(self, ids: Sequence[int]) -> int:
        """Delete dead letters for ever, in one transaction; return how many were there. Raises as `replay` does."""
        with self._store.lock:
            return sum(self._space.discard(ids).values())


def _unknown(sink: str) -> file.UnknownSinkError:
    return file.UnknownSinkError(f"no sink {sink} is configured, so that nothing can be sent to it again")
