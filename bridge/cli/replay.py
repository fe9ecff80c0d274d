"""Sending many dead letters again without drowning their sinks: as many as there is room for, then the next."""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final

from bridge.admin.operations import LETTER_PAGE, NotConfiguredError, OperationError
from bridge.cli.output import Progress, count, plain
from bridge.cli.target import Writer
from bridge.journal import JournalError

INTERRUPTED: Final = 130

_SHORTEST: Final = 0.05
_LONGEST: Final = 1.0
"""Seconds until sinks that had no room are asked again: first soon, then ever later."""

_SAY_AFTER: Final = 3.0
"""Seconds without room after which one is told what it waits for."""


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
        sleep: Waits for some seconds.
        monotonic: Monotonic clock.
    """

    def __init__(
        self,
        writer: Writer,
        chosen: Mapping[str, Sequence[int]],
        *,
        patience: float,
        progress: Progress,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._writer = writer
        self._patience = patience
        self._progress = progress
        self._sleep = sleep
        self._monotonic = monotonic
        self._total = sum(map(len, chosen.values()))
        self._shares = {sink: _Share(ids, monotonic()) for sink, ids in chosen.items()}

    def run(self) -> int:
        """Do it, and tell what was done; return the exit status."""
        status, delay = 0, _SHORTEST
        try:
            while any(share.is_open for share in self._shares.values()):
                advanced = [self._advance(sink, share) for sink, share in self._shares.items() if share.is_open]
                if any(advanced):
                    delay = _SHORTEST
                elif any(share.is_open for share in self._shares.values()):
                    self._sleep(delay)
                    delay = min(_LONGEST, 2 * delay)
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
            done = self._writer.replay(sink, list(islice(share.left, LETTER_PAGE)))
        except NotConfiguredError as error:
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
        elif now - share.moved_at >= _SAY_AFTER and not share.told:
            share.told = True
            self._progress.say(f"{waiting} and takes no more until they are delivered; Ctrl-C leaves the rest as dead letters")


def replay_all(writer: Writer, chosen: Mapping[str, Sequence[int]], patience: float) -> int:
    """Replay what was chosen; see `Replay`."""
    progress = Progress("replay", sum(map(len, chosen.values())))
    return Replay(writer, chosen, patience=patience, progress=progress).run()


def _told(sink: str, share: _Share) -> str:
    done = f"{sink}: {count(share.replayed, 'dead letter')} sent again"
    if not share.left:
        return done
    return f"{done}, {len(share.left):,} left" + (f": {share.why}" if share.why else "")
