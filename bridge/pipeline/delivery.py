"""The events of one delivery, and what can be recorded of them while it goes on and at its end. No I/O."""

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import takewhile

from bridge.journal import DeadLetter, Limits, Retry, Settlement
from bridge.sink import Entry, Failure

Decide = Callable[[Iterable[tuple[Retry, Failure]]], tuple[list[Retry], list[DeadLetter]]]
"""Divides failed events into those that are tried again and dead letters."""


def is_full(entries: Sequence[Entry], limits: Limits) -> bool:
    """Return True if one more event would be too many, or one that is as large as the largest."""
    sizes = [len(entry.json) for entry in entries]
    return len(entries) >= limits.max_events or sum(sizes) + max(sizes) > limits.max_bytes


class NewEvents:
    """A delivery of events after the cursor.

    Args:
        entries: All events from the cursor on, in order.
        unwanted: The sequence numbers of those that the filter leaves out.
        behind: The sequence numbers of those that wait for an earlier event of their resource.
        acknowledged: The sequence numbers of those that were acknowledged before.
        enter: Returns an event as it enters the retry queue.

    Attributes:
        offered: The events that the sink gets.
        received: When the oldest one was received, in seconds since the epoch.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        unwanted: AbstractSet[int],
        behind: AbstractSet[int],
        acknowledged: AbstractSet[int],
        enter: Callable[[Entry], Retry],
    ) -> None:
        self.received = entries[0].received
        self._left = entries
        self._unwanted = unwanted
        self._behind = behind
        self._enter = enter
        self._known = unwanted | behind | acknowledged
        self.offered = [entry for entry in entries if entry.seq not in self._known] if self._known else entries

    def progress(self, delivered: Container[int]) -> Settlement | None:
        """Settle, once each, the events up to the first one without an outcome; None if there are none.

        `delivered` are the sequence numbers of the events that the sink has acknowledged.
        """
        known = self._known
        return self._settle(sum(1 for _ in takewhile(lambda e: e.seq in delivered or e.seq in known, self._left)), {}, None)

    def end(self, failures: Iterable[Failure], decide: Decide) -> Settlement | None:
        """Settle all that is left. Events that are not among the failures were delivered."""
        return self._settle(len(self._left), {failure.seq: failure for failure in failures}, decide)

    def acknowledged(self, delivered: Collection[int]) -> AbstractSet[int]:
        """Return the sequence numbers of events that were acknowledged, now or before, and are not settled."""
        done = self._known - self._unwanted - self._behind | set(delivered)
        return {entry.seq for entry in self._left if entry.seq in done} if done else done

    def _settle(self, count: int, failures: Mapping[int, Failure], decide: Decide | None) -> Settlement | None:
        """Settle so many events."""
        if not count:
            return None
        part, self._left = self._left[:count], self._left[count:]
        filtered = sum(entry.seq in self._unwanted for entry in part) if self._unwanted else 0
        retries = [self._enter(entry) for entry in part if entry.seq in self._behind] if self._behind else []
        dead: list[DeadLetter] = []
        if failures and decide:
            known = self._known
            failed = [(self._enter(e), failures[e.seq]) for e in part if e.seq in failures and e.seq not in known]
            again, dead = decide(failed)
            retries += again
        delivered = count - filtered - len(retries) - len(dead)
        return Settlement(part[0].seq, part[-1].seq + 1, delivered, filtered, retries=retries, dead=dead)


class DueRetries:
    """A delivery of events from the retry queue; attributes and methods are those of `NewEvents`."""

    def __init__(self, due: Sequence[Retry]) -> None:
        self.received = due[0].received
        self.offered = [Entry(retry.seq, retry.received, retry.json) for retry in due]
        self._left = {retry.seq: retry for retry in due}

    def progress(self, delivered: Container[int]) -> Settlement | None:
        """Settle those that the sink has acknowledged, in any order."""
        done = [seq for seq in self._left if seq in delivered]
        for seq in done:
            del self._left[seq]
        return Settlement(delivered=len(done), resolved=done) if done else None

    def end(self, failures: Iterable[Failure], decide: Decide) -> Settlement | None:
        """Settle all that is left."""
        left, self._left = self._left, {}
        reasons = {failure.seq: failure for failure in failures}
        again, dead = decide((retry, reasons[seq]) for seq, retry in left.items() if seq in reasons)
        resolved = list(left.keys() - {retry.seq for retry in again})
        return Settlement(delivered=len(resolved) - len(dead), retries=again, resolved=resolved, dead=dead) if left else None
