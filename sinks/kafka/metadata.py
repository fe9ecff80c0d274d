"""Look-ups of topics, and a memory of those that are missing."""

import time
from collections.abc import Callable, Collection
from typing import Any, Final

from sinks.kafka.errors import INVALID, MISSING, UNAUTHORIZED, Refusal
from sinks.kafka.records import topic_problem
from sinks.kafka.settings import KafkaSettings

_PROPAGATION_SECONDS: Final = 1.0
"""An unknown topic counts as missing after this long: brokers learn of a new topic at different times."""
_PAUSE_SECONDS: Final = 0.1
_MISSING_SECONDS: Final = 30.0
"""A missing topic is not looked up again for this long."""
_MAX_MISSING_TOPICS: Final = 10_000
"""Beyond this many, the topic that was looked up least recently is forgotten."""


class Metadata:
    """Looks topics up, and remembers those that are missing, so that not every delivery waits for them.

    Args:
        settings: The sink's settings.
        cluster: The library's metadata.
        ask: Asks the brokers about topics and waits; raises Unavailable if they do not answer.
        clock: Monotonic clock for what is remembered.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        cluster: Any,
        ask: Callable[[Collection[str]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._ask = ask
        self._clock = clock
        # For each missing topic, least recent first: when it was looked up.
        self._missing: dict[str, float] = {}

    def partitions(self, topics: Collection[str]) -> dict[str, int | Refusal]:
        """Return the number of partitions of each topic, or the refusal; ask for those that are not known.

        Raises:
            Unavailable: The brokers do not answer.
        """
        # The producer's public `partitions_for` waits a minute for a topic that is missing.
        result: dict[str, int | Refusal] = {topic: refusal for topic in topics if (refusal := self._remembered(topic))}
        began, asked = time.monotonic(), False
        while True:
            for topic in topics - result.keys():
                if known := self._cluster.partitions_for_topic(topic):
                    result[topic] = len(known)
                    self._missing.pop(topic, None)
                elif topic in self._cluster.unauthorized_topics:
                    result[topic] = self._give_up(topic, UNAUTHORIZED)
                elif time.monotonic() - began >= self._patience(topic):
                    result[topic] = self._give_up(topic, MISSING)
            if len(result) == len(topics):
                return result
            if asked:
                time.sleep(_PAUSE_SECONDS)
            self._ask(topics - result.keys())
            asked = True

    def _remembered(self, topic: str) -> Refusal | None:
        if problem := topic_problem(topic):
            return Refusal(INVALID, problem)
        recently = self._clock() - self._missing.get(topic, float("-inf")) < _MISSING_SECONDS
        return Refusal(MISSING) if recently else None

    def _patience(self, topic: str) -> float:
        """Seconds to wait for a topic that the brokers do not know."""
        if topic in self._missing:
            return 0.3  # Long enough for one fresh answer.
        return self._settings.connect_timeout if self._settings.allow_auto_create_topics else _PROPAGATION_SECONDS

    def _give_up(self, topic: str, code: int) -> Refusal:
        """Forget a topic that can't be written to, or the library would ask for it, and log that, with each refresh."""
        if code == MISSING:
            self._missing.pop(topic, None)
            self._missing[topic] = self._clock()
            if len(self._missing) > _MAX_MISSING_TOPICS:
                del self._missing[next(iter(self._missing))]
        # A new set, since the library's thread may be going through the old one.
        self._cluster._topics = self._cluster._topics - {topic}
        self._cluster.unauthorized_topics.discard(topic)
        return Refusal(code)
