"""The command dead-letters: list, show, replay and drop."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from bridge.admin.client import Client, OperationError
from bridge.cli.dead_letter_table import in_full, rows, table
from bridge.cli.output import Progress, count, json_line, plain
from bridge.cli.replay import Replay, follow, tell_what_is_down
from bridge.cli.target import Reader, Target
from bridge.journal import DEAD_LETTERS_PER_PAGE, DeadLetterQuery, StoredDeadLetter

DONE: Final = 0
NOT_DONE: Final = 1


class Refused(Exception):
    """The command needs another option."""


class Selection(NamedTuple):
    """The selected dead letters: those that fit the query; of these only `ids`, and not more than `limit`, if not None."""

    query: DeadLetterQuery
    ids: Sequence[int] | None = None
    limit: int | None = None


def show_list(target: Target, selection: Selection, *, as_json: bool) -> int:
    """Print dead letters, as a table or as lines of JSON; return the exit status.

    Raises:
        OperationError: They can't be read.
    """
    shown, listed = 0, table()
    with target.open_reader() as reader:
        for page in _pages(reader, selection):
            shown += len(page)
            print("\n".join(map(_json, page) if as_json else listed.lines(rows(page))))
    if not as_json:
        print(count(shown, "dead letter") if shown else "no dead letters", file=sys.stderr)
    return DONE


def _json(letter: StoredDeadLetter) -> str:
    return json_line(msgspec.json.encode(letter)).decode()


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
                print(separator + (_json(letter) if as_json else in_full(letter, now)))
                found += 1
    if not found and not by_id:
        print(f"there is no dead letter of event {key}", file=sys.stderr)
    return DONE if found else NOT_DONE


def replay(target: Target, selection: Selection, *, dry_run: bool, patience: float, wait: bool = False) -> int:
    """Queue dead letters for their sinks again, or only list them; return the exit status.

    Args:
        target: The journal.
        selection: The dead letters.
        dry_run: Change nothing.
        patience: Time in seconds after which a sink is given up that takes none of them.
        wait: Follow them until each is delivered or a dead letter again.

    Raises:
        OperationError: Nothing could be done.
    """
    chosen = _chosen(target, selection, dry_run=dry_run)
    if chosen.damaged:
        print(f"damaged, and can't be queued: {_by_sink(chosen.damaged)}", file=sys.stderr)
    if not chosen.ids:
        return NOT_DONE if chosen.damaged else _nothing()
    if dry_run:
        print(f"would be queued: {_by_sink(chosen.ids)}; nothing was changed", file=sys.stderr)
        return DONE
    with target.open_writer() as writer:
        if wait and not isinstance(writer, Client):
            raise OperationError("--wait: no bridge runs on this journal, so that nothing would be delivered")
        replayed = Replay(writer, chosen.ids, patience=patience, progress=_progress("replay", chosen.ids))
        status = replayed.run()
        if isinstance(writer, Client) and status <= NOT_DONE:
            queued = {sink: {id_: chosen.ids[sink][id_] for id_ in ids} for sink, ids in replayed.queued().items()}
            if wait:
                status = follow(writer, queued, patience=patience, progress=_progress("deliver", queued)) or status
            else:
                tell_what_is_down(writer, queued)
    return status or (NOT_DONE if chosen.damaged else DONE)


def _progress(name: str, ids: Mapping[str, Collection[int]]) -> Progress:
    return Progress(name, sum(map(len, ids.values())))


def drop(target: Target, selection: Selection, *, dry_run: bool, yes: bool, ask: Callable[[str], bool] | None) -> int:
    """Delete dead letters, or only list them; return the exit status.

    `ask` asks the person at the terminal, unless `yes` makes that needless; it is None without a terminal.

    Raises:
        OperationError: They can't be read or deleted.
        Refused: There is no confirmation and no terminal.
    """
    if not (dry_run or yes or ask):
        raise Refused("drop: deletes for ever; say --yes to have it done without being asked, or --dry-run to see which")
    chosen = _chosen(target, selection, dry_run=dry_run)
    if not chosen.ids and not chosen.damaged:
        return _nothing()
    every = {sink: [*chosen.ids.get(sink, ()), *chosen.damaged.get(sink, ())] for sink in {**chosen.ids, **chosen.damaged}}
    if dry_run:
        print(f"would be deleted: {_by_sink(every)}; nothing was changed", file=sys.stderr)
        return DONE
    if not yes and ask and not ask(f"Delete for ever: {_by_sink(every)}? [y/N] "):
        print("nothing was changed", file=sys.stderr)
        return NOT_DONE
    ids = sorted(id_ for ids in every.values() for id_ in ids)
    progress, dropped = Progress("drop", len(ids)), 0
    with target.open_writer() as writer:
        for begin in range(0, len(ids), DEAD_LETTERS_PER_PAGE):
            dropped += writer.discard(ids[begin : begin + DEAD_LETTERS_PER_PAGE])
            progress.at(dropped)
    progress.clear()
    print(f"deleted {count(dropped, 'dead letter')}")
    return DONE


class _Chosen(NamedTuple):
    """By sink, the sequence number of each selected dead letter by its id; damaged ones apart: they can only be deleted."""

    ids: dict[str, dict[int, int]]
    damaged: dict[str, dict[int, int]]


def _chosen(target: Target, selection: Selection, *, dry_run: bool) -> _Chosen:
    """Select before anything changes: an event that dies again meanwhile is not selected."""
    chosen = _Chosen({}, {})
    listed = table() if dry_run else None
    with target.open_reader() as reader:
        for page in _pages(reader, selection):
            for letter in page:
                (chosen.damaged if letter.damaged else chosen.ids).setdefault(letter.sink, {})[letter.id] = letter.seq or 0
            if listed:
                print("\n".join(listed.lines(rows(page))))
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
        page = reader.dead_letters(
            selection.query, after, DEAD_LETTERS_PER_PAGE if left is None else min(left, DEAD_LETTERS_PER_PAGE)
        )
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


def _by_sink(ids: Mapping[str, Collection[int]]) -> str:
    return ", ".join(f"{count(len(its), 'dead letter')} of {plain(sink)}" for sink, its in sorted(ids.items()))


def _nothing() -> int:
    print("no dead letters", file=sys.stderr)
    return DONE
