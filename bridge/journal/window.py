"""The dedup window: which uuids were seen lately. No I/O."""

from collections.abc import Iterable

from bridge.event import Event


class Window:
    """Remembers uuids for at least `seconds`, but no more than `max_events` of them (and those of one commit).

    Two generations make expiry free: new uuids go into the current one; when it is full or old it becomes the previous one,
    and what was the previous one is forgotten as a whole. Evicting one by one costs a hundred times as much.

    Args:
        seconds: How long uuids are remembered.
        max_events: How many of them.
        now: The monotonic time.
        first: The place of the first event that will be remembered.

    Attributes:
        floor: The place in the journal before which nothing is remembered, so that its uuids need not be kept on disk.
    """

    def __init__(self, seconds: float, max_events: int, now: float, first: int = 0) -> None:
        self.floor = first
        self._seconds = seconds
        self._half = max(1, max_events // 2)
        self._current: dict[bytes, None] = {}
        self._previous: dict[bytes, None] = {}
        self._began = now
        self._began_at = first

    def __len__(self) -> int:
        return len(self._current) + len(self._previous)

    def unseen(self, events: Iterable[Event], taken: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """Of these events, those that are neither remembered nor among `taken`: uuid to JSON, in order."""
        current, previous = self._current, self._previous
        if taken:
            return {
                event.key: event.json
                for event in events
                if event.key not in current and event.key not in previous and event.key not in taken
            }
        return {event.key: event.json for event in events if event.key not in current and event.key not in previous}

    def remember(self, keys: Iterable[bytes], first: int, now: float) -> None:
        """Remember uuids of events that were stored from place `first` on, at monotonic time `now`."""
        if len(self._current) >= self._half or now - self._began > self._seconds:
            self._previous, self._current = self._current, {}
            self.floor, self._began_at, self._began = self._began_at, first, now
        self._current.update(dict.fromkeys(keys))
