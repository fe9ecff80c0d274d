"""The commands journal and quarantine."""

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO, Final, NamedTuple

import msgspec

from bridge import journal
from bridge.admin.client import OperationError
from bridge.cli.output import Progress, Table, count, json_line, line_width, plain, size, time
from bridge.cli.target import Reader, Target, report_errors
from bridge.journal import EVENTS_PER_PAGE, MESSAGES_PER_PAGE, ROWS_PER_VERIFY, JournalExtent, QuarantinedMessage, StoredEvent

DONE: Final = 0
DAMAGED: Final = 1

_SHOWN: Final = 20
"""Damaged stretches that are told one by one."""

_BEGINNING: Final = 200
"""Bytes of a malformed message that are shown in a table."""


class Wanted(NamedTuple):
    """Filter of an export; None lets all pass.

    Attributes:
        after: Only events after this sequence number.
        since: Only events received then or later.
        types: Only events of these types.
    """

    after: int = 0
    since: datetime | None = None
    types: frozenset[str] = frozenset()

    def has(self, event: StoredEvent) -> bool:
        """Return True if an event passes."""
        if self.since is not None and event.received < self.since:
            return False
        return not self.types or msgspec.json.decode(event.event, type=_Type).type in self.types


class _Type(msgspec.Struct):
    type: str


def verify(target: Target) -> int:
    """Look for damage, by SQLite's own check and by every row's checksum; return the exit status.

    Raises:
        OperationError: The journal can't be read.
    """
    with target.open_reader() as reader:
        stored = reader.extent()
        damage = reader.check()
        sound, lost = _verify_rows(reader, stored)
    for place, events in lost[:_SHOWN]:
        print(f"lost: {count(events, 'event')} from place {place} on")
    if len(lost) > _SHOWN:
        print(f"lost: {len(lost) - _SHOWN:,} more such stretches")
    if damage:
        print(f"the file itself is damaged: {plain(damage)}")
    total = sum(events for _, events in lost)
    places = f"places {stored.first} to {stored.next - 1}" if stored.first < stored.next else "nothing is stored"
    print(f"{count(sound, 'event')} sound, {total:,} lost; {places}, {_size(stored)}")
    half = not reader.running and journal.lacks_log(target.path)
    if half:
        print(
            f"{target.path.name}-wal is missing: this looks like half of a copy of a running bridge's journal", file=sys.stderr
        )
    elif damage or lost:
        print("damaged; `event-bridge journal export` saves what can be read", file=sys.stderr)
    return DAMAGED if half or damage or lost else DONE


def backup(target: Target, copy: Path) -> int:
    """Copy the journal of a running or stopped bridge into a new file, and verify that; return the exit status.

    Raises:
        OperationError: The journal can't be read, or the file not written.
    """
    with report_errors():
        journal.backup(target.path, copy)
    print(f"{copy}: ", end="", flush=True)
    return verify(Target(journal=copy))


def export(target: Target, wanted: Wanted, output: Path | None) -> int:
    """Write stored events as lines of JSON, as far as they can be read; return the exit status.

    Raises:
        OperationError: The journal can't be read, or the output not written.
        BrokenPipeError: The reader of the output is gone.
    """
    with target.open_reader() as reader, _written(output) as (file, live):
        stored = reader.extent()
        begin, end = max(wanted.after, stored.first - 1), stored.next - 1
        progress = Progress("export", max(0, end - begin), live=None if live else False)
        at, exported, damaged = begin, 0, 0
        while at < end:
            page = reader.events(at, EVENTS_PER_PAGE)
            if page.upto <= at:
                break
            # Events that were appended since are left out: the export would never end.
            events = [event for event in page.events if event.seq <= end and wanted.has(event)]
            lines = b"".join(bytes(event.event) + b"\n" for event in events)
            file.write(lines if output else json_line(lines))
            at, exported, damaged = page.upto, exported + len(events), damaged + page.damaged
            progress.at(min(at, end) - begin)
    progress.clear()
    place = f", places {begin + 1} to {end}" if end > begin else ""
    print(f"exported {count(exported, 'event')}{place}", file=sys.stderr)
    if damaged:
        print(f"damaged: {count(damaged, 'event')} could not be read", file=sys.stderr)
        return DAMAGED
    return DONE


def prune(target: Target) -> int:
    """Delete events that no sink needs; return the exit status.

    Raises:
        OperationError: The journal can't be changed.
    """
    with target.open_writer() as writer:
        freed = writer.prune_all()
    with target.open_reader() as reader:
        print(f"{size(freed)} became free, {_size(reader.extent())} are in use")
    return DONE


def quarantine(target: Target, *, as_json: bool) -> int:
    """Print the kept malformed messages, as a table or whole as lines of JSON; return the exit status.

    Raises:
        OperationError: The journal can't be read.
    """
    table, shown = Table([">ID", "STREAM", "RECEIVED", "REASON", ">BYTES", "BEGINNING"], line_width()), 0
    with target.open_reader() as reader:
        for page in _frames(reader):
            shown += len(page)
            print("\n".join(map(_json, page) if as_json else table.lines([_row(frame) for frame in page])))
    if not as_json:
        print(count(shown, "malformed message") if shown else "no malformed messages", file=sys.stderr)
    return DONE


def _size(stored: JournalExtent) -> str:
    return "an unknown size" if stored.bytes is None else size(stored.bytes)


def _verify_rows(reader: Reader, stored: JournalExtent) -> tuple[int, list[tuple[int, int]]]:
    begin, end = stored.first - 1, stored.next - 1
    progress = Progress("verify", max(0, end - begin))
    at, sound, lost = begin, 0, list[tuple[int, int]]()
    while at < end:
        page = reader.verify(at, ROWS_PER_VERIFY)
        if page.upto <= at:
            break
        at, sound = page.upto, sound + page.events
        lost += page.damaged
        progress.at(min(at, end) - begin)
    progress.clear()
    return sound, lost


@contextmanager
def _written(output: Path | None) -> Iterator[tuple[BinaryIO, bool]]:
    """Open the output of an export; the flag says that standard error may show a changing line meanwhile."""
    if output is None:
        yield sys.stdout.buffer, not sys.stdout.isatty()
        sys.stdout.buffer.flush()
        return
    try:
        # Events may hold what other users of the machine must not read.
        with open(output, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            if S_ISREG(os.fstat(file.fileno()).st_mode):
                os.fchmod(file.fileno(), 0o600)
            yield file, True
    except OSError as error:
        raise OperationError(f"{output}: {error.strerror}") from None


def _frames(reader: Reader) -> Iterator[list[QuarantinedMessage]]:
    after: int | None = 0
    while after is not None:
        page = reader.quarantine(after, MESSAGES_PER_PAGE)
        if page.quarantine:
            yield page.quarantine
        after = page.next


def _row(frame: QuarantinedMessage) -> list[str]:
    beginning = frame.frame[:_BEGINNING].decode(errors="replace")
    return [str(frame.id), frame.stream, time(frame.received), frame.reason, f"{len(frame.frame):,}", beginning]


def _json(frame: QuarantinedMessage) -> str:
    """Return a message with all kept bytes: as text if they are UTF-8, else as base64."""
    line = {"id": frame.id, "stream": frame.stream, "received": frame.received, "reason": frame.reason}
    content: dict[str, object] = {"base64": frame.frame}
    with contextlib.suppress(UnicodeDecodeError):
        content = {"text": frame.frame.decode()}
    return json_line(msgspec.json.encode(line | content)).decode()
