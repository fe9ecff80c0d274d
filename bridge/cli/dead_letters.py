"""The command dead-letters: list, show, replay and drop."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from bridge.admin.operations import LETTER_PAGE, OperationError
from bridge.cli.output import Progress, Table, age, block, count, line_width, plain, time
from bridge.cli.replay import replay_all
from bridge.cli.target import Reader, Target
from bridge.journal import DeadLetterQuery, StoredDeadLetter

DONE: Final = 0
NOT_DONE: Final = 1

_SHORT_ID: Final = 8
"""Characters of a resource's id that are shown in a table."""


class Refused(Exception):
    """The command needs another option."""


class Selection(NamedTuple):
    """The selected dead letters.

    Attributes:
        query: A filter.
        ids: Only these; all that fit if None.
        limit: At most so many; all if None.
    """

    query: DeadLetterQuery
    ids: Sequence[int] | None = None
    limit: int | None = None


def show_list(target: Target, selection: Selection, *, as_json: bool) -> int:
    """Print dead letters, as a table or as lines of JSON; return the exit status.

    Raises:
        OperationError: They can't be read.
    """
    table, shown = _table(), 0
    with target.open_reader() as reader:
        for page in _pages(reader, selection):
            shown += len(page)
            lines = [msgspec.json.encode(letter).decode() for letter in page] if as_json else table.lines(_rows(page))
            print("\n".join(lines))
    if not as_json:
        print(count(shown, "dead letter") if shown else "no dead letters", file=sys.stderr)
    return DONE


def show_one(target: Target, key: str, *, as_json: bool) -> int:
    """Print everything about a dead letter, by its number, or about those of an event, by its uuid; return the exit status.

    Raises:
        OperationError: It can't be read.
    """
    by_id = key.isdecimal()
    selection = Selection(DeadLetterQuery() if by_id else DeadLetterQuery(uuid=key), [int(key)] if by_id else None)
    now, found = datetime.now(UTC), 0
    with target.open_reader() as reader:
        for page in _pages(reader, selection):
            for letter in page:
                separator = "\n" if found and not as_json else ""
                print(separator + (msgspec.json.encode(letter).decode() if as_json else _in_full(letter, now)))
                found += 1
    if not found and not by_id:
        print(f"there is no dead letter of event {key}", file=sys.stderr)
    return DONE if found else NOT_DONE


def replay(target: Target, selection: Selection, *, dry_run: bool, patience: float) -> int:
    """Send dead letters to their sinks again; return the exit status.

    Args:
        target: The journal.
        selection: The dead letters.
        dry_run: Only list them.
        patience: Seconds after which a sink is given up that takes none of them.

    Raises:
        OperationError: Nothing could be done.
    """
    chosen = _chosen(target, selection, dry_run=dry_run)
    if chosen.damaged:
        print(f"damaged, and can't be sent again: {_by_sink(chosen.damaged)}", file=sys.stderr)
    if not chosen.ids:
        return NOT_DONE if chosen.damaged else _nothing()
    if dry_run:
        print(f"would be sent again: {_by_sink(chosen.ids)}; nothing was changed", file=sys.stderr)
        return DONE
    with target.open_writer() as writer:
        return replay_all(writer, chosen.ids, patience) or (NOT_DONE if chosen.damaged else DONE)


def drop(target: Target, selection: Selection, *, dry_run: bool, yes: bool, ask: Callable[[str], bool] | None) -> int:
    """Delete dead letters; return the exit status.

    Args:
        target: The journal.
        selection: The dead letters.
        dry_run: Only list them.
        yes: Delete without confirmation.
        ask: Asks the person at the terminal; None without a terminal.

    Raises:
        OperationError: They can't be read or deleted.
        Refused: There is no confirmation and no terminal.
    """
    if not (dry_run or yes or ask):
        raise Refused("drop: deletes for ever; say --yes to have it done without being asked, or --dry-run to see which")
    chosen = _chosen(target, selection, dry_run=dry_run)
    if not chosen.ids and not chosen.damaged:
        return _nothing()
    every = {sink: [*chosen.ids.get(sink, []), *chosen.damaged.get(sink, [])] for sink in {**chosen.ids, **chosen.damaged}}
    if dry_run:
        print(f"would be deleted: {_by_sink(every)}; nothing was changed", file=sys.stderr)
        return DONE
    if not yes and ask and not ask(f"Delete for ever: {_by_sink(every)}? [y/N] "):
        print("nothing was changed", file=sys.stderr)
        return NOT_DONE
    ids = sorted(id_ for ids in every.values() for id_ in ids)
    progress, dropped = Progress("drop", len(ids)), 0
    with target.open_writer() as writer:
        for begin in range(0, len(ids), LETTER_PAGE):
            dropped += writer.drop(ids[begin : begin + LETTER_PAGE])
            progress.at(dropped)
    progress.clear()
    print(f"deleted {count(dropped, 'dead letter')}")
    return DONE


class _Chosen(NamedTuple):
    """The ids of the selected dead letters, by sink; damaged ones apart, since they can only be deleted."""

    ids: dict[str, list[int]]
    damaged: dict[str, list[int]]


def _chosen(target: Target, selection: Selection, *, dry_run: bool) -> _Chosen:
    """Select before anything changes: an event that dies again meanwhile is not selected."""
    chosen, table = _Chosen({}, {}), _table()
    with target.open_reader() as reader:
        for page in _pages(reader, selection):
            for letter in page:
                (chosen.damaged if letter.damaged else chosen.ids).setdefault(letter.sink, []).append(letter.id)
            if dry_run:
                print("\n".join(table.lines(_rows(page))))
    return chosen


def _pages(reader: Reader, selection: Selection) -> Iterator[list[StoredDeadLetter]]:
    """Yield pages of dead letters, none of them empty.

    Raises:
        OperationError: There are none, and the sink is unknown.
    """
    if selection.ids is not None:
        yield from _by_id(reader, selection.ids)
        return
    after: int | None = 0
    left, is_any = selection.limit, False
    while after is not None and (left is None or left > 0):
        page = reader.dead_letters(selection.query, after, LETTER_PAGE if left is None else min(left, LETTER_PAGE))
        if page.dead_letters:
            is_any = True
            yield page.dead_letters
        left = None if left is None else left - len(page.dead_letters)
        after = page.next
    if not is_any and (sink := selection.query.sink) and sink not in (known := reader.backlog()):
        raise OperationError(f"there is no sink {plain(sink)}, nor a dead letter of it; sinks are {', '.join(known) or 'none'}")


def _by_id(reader: Reader, ids: Sequence[int]) -> Iterator[list[StoredDeadLetter]]:
    for id_ in sorted(set(ids)):
        found = reader.dead_letters(DeadLetterQuery(), id_ - 1, 1).dead_letters if id_ > 0 else []
        if found and found[0].id == id_:
            yield found
        else:
            print(f"there is no dead letter {id_}", file=sys.stderr)


class _Shown(msgspec.Struct):
    """The fields of an event that a row shows."""

    type: str = ""
    action: str = ""
    resource_uri: str = ""


def _table() -> Table:
    return Table([">ID", "SINK", "DIED", "REASON", ">TRIES", "EVENT", "RESOURCE", "ERROR"], line_width())


def _rows(letters: Sequence[StoredDeadLetter]) -> list[list[str]]:
    """Return a row for each: short ones for a terminal, whole ones otherwise."""
    now = None if line_width() is None else datetime.now(UTC)
    return [_row(letter, now) for letter in letters]


def _row(letter: StoredDeadLetter, now: datetime | None) -> list[str]:
    try:
        event = msgspec.json.decode(letter.event, type=_Shown)
    except msgspec.MsgspecError:
        event = _Shown()
    died, resource = time(letter.died), event.resource_uri
    if now is not None:
        died = died if letter.died is None else f"{age((now - letter.died).total_seconds())} ago"
        resource = resource.rstrip("/").rpartition("/")[2][:_SHORT_ID]
    what = f"{event.type}/{event.action}" if event.type else "-"
    return [str(letter.id), letter.sink, died, letter.reason, str(letter.attempts), what, resource or "-", letter.error]


def _in_full(letter: StoredDeadLetter, now: datetime) -> str:
    def when(moment: datetime | None) -> str:
        return "-" if moment is None else f"{moment.isoformat()} ({age((now - moment).total_seconds())} ago)"

    facts = {
        "sink": letter.sink,
        "reason": letter.reason,
        "error": letter.error,
        "attempts": str(letter.attempts),
        "received": when(letter.received),
        "first failed": when(letter.first_failed),
        "died": when(letter.died),
        "place": "-" if letter.seq is None else str(letter.seq),
    }
    lines = [f"dead letter {letter.id}", *(f"  {name:<13} {plain(text)}" for name, text in facts.items())]
    return "\n".join(lines) + "\n" + block(msgspec.json.format(bytes(letter.event), indent=2).decode(errors="replace"))


def _by_sink(ids: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{count(len(its), 'dead letter')} of {plain(sink)}" for sink, its in sorted(ids.items()))


def _nothing() -> int:
    print("no dead letters", file=sys.stderr)
    return DONE
