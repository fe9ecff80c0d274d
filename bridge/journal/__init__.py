"""The journal: the durable, ordered, duplicate-free log of events, with a cursor for every sink.

Invariants
    1. An event is stored, and its uuid is remembered, in one transaction; `append` returns after that transaction is on disk.
    2. Every accepted event has a sequence number (`seq`). Numbers grow by one, over all streams, and are never used twice.
    3. A sink has seen the outcome of every event before its cursor: delivered, filtered, dropped, a dead letter, or waiting in
       its retry queue. `settle` records outcomes and moves the cursor in one transaction.
    4. The counts are written in the transactions that they count, so they survive restarts, and they balance at any instant:
       `received = accepted + duplicate + malformed`; per sink
       `accepted + replayed + rewound = delivered + filtered + dead + dropped + pending` and
       `dead = dead_letters + replayed + discarded`.
    5. Nothing is deleted that a cursor has not passed, except by the policy `drop_oldest`: dead letters first, then events. The
       owner of a cursor counts what was dropped before it, when it is known what became of the events in delivery. No dead
       letter is deleted but by that policy, at its `max_age`, by `discard`, or when it is sent back.
    6. What waits in the retry queue lies before the cursor, and once: a dead letter of an event that waits is not sent back.
    7. Whatever bytes change on the disk, no event is delivered or shown as sound that was not stored.
    8. The files take `max_bytes`, SQLite's log included. Whoever makes them larger waits for room; what only moves a cursor
       does not.

Format
    One SQLite file in WAL mode (its tables: `bridge.journal.file`). One row holds all events of one committed batch, as lines
    of JSON with a checksum; a row per event would cost five times as much and grow with the dedup window. The batch's uuids
    are a row of another table: they are needed longer than the events (for `dedup.window`) or shorter (a sink is behind).
    Events in the retry queue and dead letters are copies, so that one failure does not keep a whole batch; each of those
    rows has a checksum over all its columns. A dead letter keeps its ordering key (the column `lane`) for a replay.
    This is format 3. Format 2 did not know of which namespace a uuid is; it is brought to format 3 in one transaction, and its
    uuids count in every namespace. A file of another format is refused.

Operations
    `append` is a group commit: the thread that gets the write lock commits all batches that wait, with one fsync. The first
    one waits until the dedup window is read; reading and settling do not.
    `settle` writes without an fsync of its own: the process may be killed and loses nothing; after a power failure the lost
    part of it means that some events are delivered again. The next `append` or the next `prune` makes it durable.
    `next_work` returns due retries and the events after a sink's cursor, and does not move it. `prune` deletes old rows.
    `replay` sends dead letters back to the retry queue, `discard` deletes them; both are one short transaction a call.
    `dead_letters`, `retries`, `quarantine`, `events` and `verify` look inside, in pages: each looks at a bounded part, and
    tells up to where, so that one goes on from there until nothing more was looked at. `JournalReader` does the same on the
    file of another process, running or dead, and changes nothing in it.
    Damaged rows are never delivered: a batch or a retry is dropped, counted and logged; a dead letter stays for inspection.
    When the disk fails, `append` and `settle` wait and try again. When the journal is full or little is left on the disk,
    `append` does, and a `settle` of events that failed; what is delivered makes room. `counters().last_error` says why.

Nothing outside this package knows that it is SQLite.
"""

from bridge.journal.file import DiskFullError, JournalError, UnknownSinkError, backup, lacks_log
from bridge.journal.journal import Journal
from bridge.journal.lock import check_access
from bridge.journal.model import (
    Appended,
    Batch,
    Closed,
    Counters,
    DeadLetter,
    DeathReason,
    Limits,
    Paused,
    Retry,
    Settlement,
    SinkCounters,
    StartAt,
    StreamCounters,
    Work,
)
from bridge.journal.pages import (
    DEAD_LETTERS_PER_PAGE,
    EVENTS_PER_PAGE,
    MESSAGES_PER_PAGE,
    RETRIES_PER_PAGE,
    ROWS_PER_VERIFY,
    DeadLetterPage,
    DeadLetterQuery,
    EventPage,
    JournalExtent,
    QuarantinedMessage,
    QuarantinePage,
    Replayed,
    RetryPage,
    Rewound,
    SeqOrId,
    SinkBacklog,
    StoredDeadLetter,
    StoredEvent,
    VerifyPage,
)
from bridge.journal.reader import Holder, JournalReader, holder
from bridge.journal.settings import JournalSettings

__all__ = ["DEAD_LETTERS_PER_PAGE", "EVENTS_PER_PAGE", "MESSAGES_PER_PAGE", "RETRIES_PER_PAGE", "ROWS_PER_VERIFY"]
__all__ += ["Appended", "Batch", "Closed", "Counters", "DeadLetter", "DeadLetterPage", "DeadLetterQuery", "DeathReason"]
__all__ += ["DiskFullError", "EventPage", "Holder", "Journal", "JournalError", "JournalExtent", "JournalReader"]
__all__ += ["JournalSettings", "Limits", "Paused", "QuarantinePage", "QuarantinedMessage", "Replayed", "Retry", "RetryPage"]
__all__ += ["Rewound", "SeqOrId", "Settlement", "SinkBacklog", "SinkCounters", "StartAt", "StoredDeadLetter", "StoredEvent"]
__all__ += ["StreamCounters", "UnknownSinkError", "VerifyPage", "Work", "backup", "check_access", "holder"]
__all__ += ["lacks_log"]
