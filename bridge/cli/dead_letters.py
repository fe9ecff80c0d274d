"""The command dead-letters: list, show, replay and drop."""

import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from time import monotonic as monotonic_time
from time import sleep
from typing import Final, NamedTuple

import msgspec

from bridge.admin.client import OperationError
from bridge.cli.dead_letter_table import in_full, rows, table
from bridge.cli.output import Progress, count, plain
from bridge.cli.target import Reader, Target, Writer
from bridge.journal import DEAD_LETTERS_PER_PAGE, DeadLetterQuery, JournalError, StoredDeadLetter, UnknownSinkError

INTERRUPTED: Final = 130
DONE: Final = 0
NOT_DONE: Final = 1

_SHORTEST_SECONDS: Final = 0.05
_LONGEST_SECONDS: Final = 1.0
"""Wait until sinks that had no room are asked again: first short, then ever longer."""

_SAY_AFTER_SECONDS: Final = 3.0
"""Time without room after which a line says what the replay waits for."""


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
            lines = [msgspec.json.encode(letter).decode() for letter in page] if as_json else listed.lines(rows(page))
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
                print(separator + (msgspec.json.encode(letter).decode() if as_json else in_full(letter, now)))
                found += 1
    if not found and not by_id:
        print(f"there is no dead letter of event {key}", file=sys.stderr)
    return DONE if found else NOT_DONE


def replay(target: Target, selection: Selection, *, dry_run: bool, patience: float) -> int:
    """Send dead letters to their sinks again, or only list them; return the exit status.

    `patience` is the time in seconds after which a sink is given up that takes none of them.

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
        progress = Progress("replay", sum(map(len, chosen.ids.values())))
        return Replay(writer, chosen.ids, patience=patience, progress=progress).run() or (NOT_DONE if chosen.damaged else DONE)


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
        for begin in range(0, len(ids), DEAD_LETTERS_PER_PAGE):
            dropped += writer.discard(ids[begin : begin + DEAD_LETTERS_PER_PAGE])
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
    chosen = _Chosen({}, {})
    listed = table() if dry_run else None
    with target.open_reader() as reader:
        for page in _pages(reader, selection):
            for letter in page:
                (chosen.damaged if letter.damaged else chosen.ids).setdefault(letter.sink, []).append(letter.id)
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


class _Share:
    """One sink's part: what is left of it, and why it is not going on, if so."""

    def __init__(self, ids: Sequence[int], now: float) -> None:
        self.left = deque(ids)
        self.replayed = 0
        self.least = sys.maxsize
        self.moved_at = now
        self.told = False
        self.why: str | None = None

    @property
    def is_open(self) -> bool:
        return bool(self.left) and self.why is None


class Replay:
    """Replays what was chosen, sink by sink in turn, so that none waits for another.

    Args:
        operations: Where.
        chosen: The numbers of dead letters, by sink.
        patience: Seconds for which a sink's retry queue may stand still before it is given up.
        progress: Tells how far it is.
        pause: Waits for some seconds.
        monotonic: Monotonic clock.
    """

    def __init__(
        self,
        writer: Writer,
        chosen: Mapping[str, Sequence[int]],
        *,
        patience: float,
        progress: Progress,
        pause: Callable[[float], None] = sleep,
        monotonic: Callable[[], float] = monotonic_time,
    ) -> None:
        self._writer = writer
        self._patience = patience
        self._progress = progress
        self._pause = pause
        self._monotonic = monotonic
        self._total = sum(map(len, chosen.values()))
        self._shares = {sink: _Share(ids, monotonic()) for sink, ids in chosen.items()}

    def run(self) -> int:
        """Do it, and tell what was done; return the exit status."""
        status, delay = 0, _SHORTEST_SECONDS
        try:
            while any(share.is_open for share in self._shares.values()):
                advanced = [self._advance(sink, share) for sink, share in self._shares.items() if share.is_open]
                if any(advanced):
                    delay = _SHORTEST_SECONDS
                elif any(share.is_open for share in self._shares.values()):
                    self._pause(delay)
                    delay = min(_LONGEST_SECONDS, 2 * delay)
        except (OperationError, JournalError) as error:
            self._progress.say(f"event-bridge: {error}")
            status = 1
        except KeyboardInterrupt:
            status = INTERRUPTED
        self._progress.clear()
        for sink, share in self._shares.items():
            print(_told(plain(sink), share), file=sys.stderr if share.why else sys.stdout)
        return status or int(any(share.left for share in self._shares.values()))

    def _advance(self, sink: str, share: _Share) -> bool:
        """Send what there is room for; tell whether there was any."""
        try:
            done = self._writer.replay(sink, list(islice(share.left, DEAD_LETTERS_PER_PAGE)))
        except UnknownSinkError as error:
            share.why = str(error)
            return False
        for _ in range(done.taken):
            share.left.popleft()
        share.replayed += done.replayed
        now = self._monotonic()
        if done.taken or done.retrying < share.least:
            share.least, share.moved_at, share.told = done.retrying, now, False
        self._progress.at(self._total - sum(len(each.left) for each in self._shares.values()))
        if share.left and not done.taken:
            self._wait_or_give_up(sink, share, done.retrying, now)
        return done.taken > 0

    def _wait_or_give_up(self, sink: str, share: _Share, retrying: int, now: float) -> None:
        waiting = f"{plain(sink)} has {count(retrying, 'event')} waiting for a retry"
        if not self._writer.running:
            share.why = f"{waiting} and takes no more now; replay the rest while the bridge runs"
        elif now - share.moved_at >= self._patience:
            share.why = (
                f"{waiting}, and none was delivered for {self._patience:g} s; see what is wrong with it, then replay the rest"
            )
        elif now - share.moved_at >= _SAY_AFTER_SECONDS and not share.told:
            share.told = True
            self._progress.say(f"{waiting} and takes no more until they are delivered; Ctrl-C leaves the rest as dead letters")


def _told(sink: str, share: _Share) -> str:
    done = f"{sink}: {count(share.replayed, 'dead letter')} sent again"
    if not share.left:
        return done
    return f"{done}, {len(share.left):,} left" + (f": {share.why}" if share.why else "")


def _by_sink(ids: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{count(len(its), 'dead letter')} of {plain(sink)}" for sink, its in sorted(ids.items()))


def _nothing() -> int:
    print("no dead letters", file=sys.stderr)
    return DONE
