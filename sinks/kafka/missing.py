"""Topics that were looked for in vain: remembered for a while, so that they are not waited for in each delivery; pure."""

import time
from collections.abc import Callable
from typing import Final

_REMEMBERED: Final = 30.0
"""Seconds for which a topic that is missing is not looked for again."""
_NAMES: Final = 10_000
"""Topics that are remembered at most; beyond that, the one is forgotten that was looked for least recently."""


class Missing:
    """Topics that are missing, as far as we know.

    Args:
        clock: Tells the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_for: dict[str, float] = {}

    def note(self, topic: str) -> None:
        """A topic was looked for in vain."""
        self._looked_for.pop(topic, None)
        self._looked_for[topic] = self._clock()
        if len(self._looked_for) > _NAMES:
            del self._looked_for[next(iter(self._looked_for))]

    def forget(self, topic: str) -> None:
        """A topic is there."""
        self._looked_for.pop(topic, None)

    def is_known(self, topic: str) -> bool:
        """Whether a topic was missing when it was looked for last, however long ago."""
        return topic in self._looked_for

    def is_certain(self, topic: str) -> bool:
        """Whether a topic was missing so lately that it is not worth looking."""
        looked_for = self._looked_for.get(topic)
        return looked_for is not None and self._clock() - looked_for < _REMEMBERED
