"""Decisions without sockets, threads, clocks or dice: backoff, keepalive, retries, log lines, filters.

Time comes in as seconds of a monotonic clock, chance as a function like `random.uniform`.
"""

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, Literal

from bridge.event import Fields

Uniform = Callable[[float, float], float]
"""Something like `random.uniform`."""


def backoff(first: float, ceiling: float, uniform: Uniform) -> Iterator[float]:
    """Yield delays in seconds for ever: exponential with full jitter. To reset, throw it away and make another.

    Full jitter (uniform between 0 and the exponential) spreads many clients best; the original clients had no delay at
    all, which pegged CPUs and locked accounts.
    """
    highest = first
    while True:
        yield uniform(0, highest)
        highest = min(ceiling, highest * 2)


def obey(asked: float, ceiling: float, uniform: Uniform) -> float:
    """Return the seconds to wait when the receiver asked for `asked` (`Retry-After`): never less, up to `ceiling`.

    A little longer at random, since all clients got the same answer.
    """
    return min(ceiling, asked * uniform(1.0, 1.1))


def retry_delay(attempts: int, first: float, ceiling: float, asked: float | None, uniform: Uniform) -> float:
    """Seconds until an event that failed `attempts` times (at least 1) is due again.

    Exponential from `first` to `ceiling` with full jitter, unless the receiver asked for a time. It may have asked for none at
    all, or for one that has passed by its clock: it is not hammered then, half of the first delay is kept in any case.
    """
    if asked is None:
        return uniform(0, min(ceiling, first * 2.0 ** min(attempts - 1, 60)))
    shortest = min(ceiling, first)
    return max(uniform(shortest / 2, shortest), obey(asked, ceiling, uniform))


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Read a `Retry-After` header in either form, seconds or HTTP date; None if there is none that makes sense."""
    text = (value or "").strip()
    if text.isdecimal() and text.isascii():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


class Keepalive:
    """Decides when to ping a peer and when to call it dead; any frame counts as life.

    A half-open connection is found in at most `interval + timeout` seconds.

    Args:
        interval: Seconds of silence after which a ping is due.
        timeout: Seconds after a ping within which something must arrive.
        idle_timeout: Seconds without an event after which the stream is called idle; None means never.
        now: The monotonic time at which the session opened.
    """

    def __init__(self, interval: float, timeout: float, idle_timeout: float | None, now: float) -> None:
        self._interval = interval
        self._timeout = timeout
        self._idle_timeout = idle_timeout
        self._life = now
        self._event = now
        self._pinged: float | None = None

    def heard(self, now: float, *, event: bool) -> None:
        """Note that something arrived; `event` is False for a control frame."""
        self._life = now
        self._pinged = None
        if event:
            self._event = now

    def due(self, now: float) -> Literal["ping", "dead", "idle"] | None:
        """Return the action that is due now; a returned "ping" counts as sent."""
        if self._idle_timeout is not None and now - self._event >= self._idle_timeout:
            return "idle"
        if self._pinged is not None:
            return "dead" if now - self._pinged >= self._timeout else None
        if now - self._life >= self._interval:
            self._pinged = now
            return "ping"
        return None

    def wait(self, now: float) -> float:
        """Seconds until `due` may answer something else; 0 if it may already."""
        next_due = self._life + self._interval if self._pinged is None else self._pinged + self._timeout
        if self._idle_timeout is not None:
            next_due = min(next_due, self._event + self._idle_timeout)
        return max(0.0, next_due - now)


class Brake:
    """Decides when a sink gets no new events because too many wait for a retry.

    A sink that takes nothing gets none beyond `max_pending`, except now and then, to see whether it takes others. A sink that
    takes others goes on up to ten times as many: some events may fail for ever, and hold back others of their resource.

    Args:
        max_pending: Events in the retry queue.
        pause: Seconds between two tries of new events while the sink takes nothing.
        now: Monotonic time.
    """

    def __init__(self, max_pending: int, pause: float, now: float) -> None:
        self._max_pending = max_pending
        self._pause = pause
        self._try_at = now + pause
        # New events that failed since the last success. At the start, nothing is known of the sink.
        self._in_vain = max_pending

    def tried(self, delivered: int, failed: int, now: float, *, new: bool) -> None:
        """Note a delivery: how many events succeeded and failed, and whether they were new."""
        if delivered:
            self._in_vain = 0
        elif new:
            self._in_vain += failed
            if now >= self._try_at:
                self._try_at = now + self._pause

    def limit(self, now: float) -> int:
        """Return the size of the retry queue at which no new events are to be read now."""
        return self._max_pending if self.takes_nothing and now < self._try_at else 10 * self._max_pending

    def paused_at(self, retrying: int) -> int | None:
        """Return the limit that the retry queue has reached; None if the sink gets new events."""
        limit = self._max_pending if self.takes_nothing else 10 * self._max_pending
        return limit if retrying >= limit else None

    @property
    def takes_nothing(self) -> bool:
        """True if as many new events failed in a row."""
        return self._in_vain >= self._max_pending


class LossTracker:
    """Finds an event at which the receiver ends the connection, among those that are offered together.

    Attributes:
        limit: How many events are to be offered; None without a suspicion. One at first, and then twice as many each time.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self._first = -1
        self._losses = 0

    def lost(self, first: int, offered: int) -> bool:
        """Note a loss of the connection before the event `first` was acknowledged; return True if that event is to blame.

        After three losses at the same event it is offered alone, and after five it is to blame.
        """
        self._losses = self._losses + 1 if first == self._first else 1
        self._first = first
        if self._losses > 2 or self.limit is not None:
            self.limit = 1
        return offered == 1 and self._losses >= 5

    def delivered(self) -> None:
        """Note a delivery that did not lose the connection."""
        if self.limit is not None:
            self.limit = 2 * self.limit if self.limit < 1 << 20 else None


class Summary:
    """Decides when something that happens again and again is logged: at once, and then as a sum at intervals that double."""

    _FIRST_SECONDS: Final = 10.0
    _LONGEST_SECONDS: Final = 3600.0

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._next = -math.inf
        self._pause = self._FIRST_SECONDS

    def add(self, counts: Mapping[str, int], now: float) -> dict[str, int]:
        """Count by names, at monotonic time `now`; return the sums to be logged now, empty if none are."""
        self._counts += Counter(counts)
        if not self._counts or now < self._next:
            return {}
        if now - self._next > self._pause:
            self._pause = self._FIRST_SECONDS
        sums, self._counts = dict(self._counts), Counter()
        self._next, self._pause = now + self._pause, min(self._LONGEST_SECONDS, 2 * self._pause)
        return sums


FILTER_FIELDS: Final = ("type", "action", "state", "resource_uri", "parents", "namespace")

Rule = Mapping[str, Sequence[str]]
"""Field name to shell patterns: every field must match, by any of its patterns."""


class Filter:
    """Accepts an event if some `match` rule fits (or there is none), and no `drop` rule fits.

    Patterns are those of a shell (`*`, `?`, `[...]`), compared without regard to case, since the original service wrote
    `Not Running` here and `Not running` there. `parents` fits if any parent does.
    """

    def __init__(self, match: Sequence[Rule], drop: Sequence[Rule]) -> None:
        self._match = [_compile(rule) for rule in match]
        self._drop = [_compile(rule) for rule in drop]

    def __bool__(self) -> bool:
        return bool(self._match or self._drop)

    def accepts(self, fields: Fields) -> bool:
        """Tell whether the event passes."""
        if self._match and not any(_fits(rule, fields) for rule in self._match):
            return False
        return not any(_fits(rule, fields) for rule in self._drop)


_CompiledRule = list[tuple[str, re.Pattern[str]]]

_NOTHING: Final = "(?!)"
"""A regular expression that nothing fits."""


def _compile(rule: Rule) -> _CompiledRule:
    return [
        (field, re.compile("|".join(map(fnmatch.translate, patterns)) or _NOTHING, re.IGNORECASE))
        for field, patterns in rule.items()
    ]


def _fits(rule: _CompiledRule, fields: Fields) -> bool:
    return all(any(pattern.match(value) for value in _values(fields, field)) for field, pattern in rule)


def _values(fields: Fields, field: str) -> Sequence[str]:
    if field == "parents":
        return fields.parents
    value: str = getattr(fields, field)
    return (value,)
