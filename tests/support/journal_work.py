"""Parts of the answer of `Journal.next_work`, each by itself."""

import math
from collections.abc import Set as AbstractSet

from bridge.journal import Journal, Limits, Retry, Work
from bridge.sink import Entry


def read(journal: Journal, sink: str, limit: int, max_bytes: int, timeout: float) -> list[Entry]:
    """Return new events, whatever waits in the retry queue."""
    limits = Limits(limit, max_bytes, 1 << 60, math.inf)
    return journal.next_work(sink, -math.inf, limits, new_first=True, timeout=timeout).entries


def due_retries(  # noqa: PLR0917 - short calls
    journal: Journal, sink: str, now: float, horizon: float, limit: int, max_bytes: int
) -> list[Retry]:
    """Return the retries that are due."""
    return journal.next_work(sink, now, Limits(limit, max_bytes, 0, horizon)).due


def next_due(journal: Journal, sink: str) -> float | None:
    """Return when the next retry is due."""
    return _queue(journal, sink).next_due


def waiting_keys(journal: Journal, sink: str) -> AbstractSet[str]:
    """Return the ordering keys of the retry queue."""
    return _queue(journal, sink).waiting_keys


def _queue(journal: Journal, sink: str) -> Work:
    return journal.next_work(sink, -math.inf, Limits(1, 1, 0, math.inf))
