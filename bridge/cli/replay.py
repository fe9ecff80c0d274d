"""Sending dead letters again: into the retry queues as there is room, then, if asked for, to the end of each."""

import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping
from itertools import islice
from time import monotonic as monotonic_time
from time import sleep
from typing import Final

from bridge.admin.client import Client, OperationError
from bridge.cli.output import Progress, count, plain
from bridge.cli.target import Writer
from bridge.journal import DEAD_LETTERS_PER_PAGE, RETRIES_PER_PAGE, DeadLetterQuery, JournalError, UnknownSinkError

INTERRUPTED: Final = 130

_SHORTEST_SECONDS: Final = 0.05
_LONGEST_SECONDS: Final = 1.0
"""Wait until sinks that had no room are asked again: first short, then ever longer."""

_LOOK_SECONDS: Final = 0.25
"""Time between two looks at what became of queued events."""

_SAY_AFTER_SECONDS: Final = 3.0
"""Time without room after which a line says what the replay waits for."""


class _Share:
    """One sink's part: what is left of it, and why it is not going on, if so."""

    def __init__(self, ids: Collection[int], now: float) -> None:
        self.left = deque(ids)
        self.taken: list[int] = []
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
        writer: The journal.
        chosen: The numbers of dead letters, by sink.
        patience: Seconds for which a sink's retry queue may stand still before it is given up.
        progress: Tells how far it is.
        pause: Waits for some seconds.
        monotonic: Monotonic clock.
    """

    def __init__(
        self,
        writer: Writer,
        chosen: Mapping[str, Collection[int]],
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

    def queued(self) -> dict[str, list[int]]:
        """Return the numbers of the dead letters that were sent, by sink."""
        return {sink: share.taken for sink, share in self._shares.items() if share.taken}

    def _advance(self, sink: str, share: _Share) -> bool:
        """Send what there is room for; tell whether there was any."""
        try:
            done = self._writer.replay(sink, list(islice(share.left, DEAD_LETTERS_PER_PAGE)))
        except UnknownSinkError as error:
            share.why = str(error)
            return False
        share.taken += [share.left.popleft() for _ in range(done.taken)]
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
    done = f"{sink}: {count(share.replayed, 'dead letter')} queued"
    if not share.left:
        return done
    return f"{done}, {len(share.left):,} left" + (f": {share.why}" if share.why else "")


class _Followed:
    """The queued events of one sink by sequence number, and the last dead letter that was looked at."""

    def __init__(self, letters: Mapping[int, int]) -> None:
        self.seqs = self.waiting = frozenset(letters.values())
        self.dead: frozenset[int] = frozenset()
        self._last_id = max(letters)

    def look(self, client: Client, sink: str) -> None:
        """Find out which still wait, and which are dead letters again."""
        # The queue first: what is not in it any more has its outcome in the journal by then.
        waiting: set[int] = set()
        after: int | None = min(self.seqs) - 1
        while after is not None:
            page = client.retries(sink, after, RETRIES_PER_PAGE)
            waiting.update(page.retries)
            after = page.next
        self.waiting = self.seqs & waiting
        after = self._last_id
        while after is not None:
            letters = client.dead_letters(DeadLetterQuery(sink=sink), after, DEAD_LETTERS_PER_PAGE)
            self.dead |= self.seqs & {letter.seq for letter in letters.dead_letters}
            self._last_id = max([self._last_id, letters.next or 0, *(letter.id for letter in letters.dead_letters)])
            after = letters.next

    @property
    def delivered(self) -> int:
        return len(self.seqs) - len(self.waiting | self.dead)

    def __str__(self) -> str:
        dead = f", {count(len(self.dead), 'dead letter')} again" if self.dead else ""
        return f"{self.delivered:,} delivered{dead}" + (f", {len(self.waiting):,} waiting" if self.waiting else "")


def follow(
    client: Client,
    queued: Mapping[str, Mapping[int, int]],
    *,
    patience: float,
    progress: Progress,
    pause: Callable[[float], None] = sleep,
    monotonic: Callable[[], float] = monotonic_time,
) -> int:
    """Follow replayed events until each is delivered or a dead letter again, as the journal has it.

    Args:
        client: The running bridge.
        queued: By sink, the sequence number of each event by the id of its former dead letter.
        patience: Seconds without an outcome after which this ends.
        progress: Tells how far it is.
        pause: Waits for some seconds.
        monotonic: Monotonic clock.

    Returns:
        The exit status: 0 only if all were delivered.
    """
    followed = {sink: _Followed(letters) for sink, letters in queued.items()}
    total = sum(len(events.seqs) for events in followed.values())
    status, left, moved_at = 0, total, monotonic()
    try:
        while left and monotonic() - moved_at < patience:
            for sink, events in followed.items():
                events.look(client, sink)
            now_left = sum(len(events.waiting) for events in followed.values())
            left, moved_at = now_left, monotonic() if now_left < left else moved_at
            progress.at(total - left, "; ".join(f"{plain(sink)}: {events}" for sink, events in followed.items()))
            if left:
                pause(_LOOK_SECONDS)
        if left:
            progress.say(f"none was delivered for {patience:g} s")
            tell_what_is_down(client, [sink for sink, events in followed.items() if events.waiting])
    except OperationError as error:
        progress.say(f"event-bridge: {error}")
        status = 1
    except KeyboardInterrupt:
        status = INTERRUPTED
    progress.clear()
    for sink, events in followed.items():
        print(f"{plain(sink)}: {events}")
    return status or int(any(events.delivered < len(events.seqs) for events in followed.values()))


def tell_what_is_down(client: Client, sinks: Collection[str]) -> None:
    """Print which of some sinks are down, and why.

    Raises:
        OperationError: The bridge can't be asked.
    """
    for name, state in client.backlog().items():
        if name in sinks and state.up is False:
            print(f"{plain(name)} is down and delivers when it is back: {plain(state.error or '')}", file=sys.stderr)
