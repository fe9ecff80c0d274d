"""Asking brokers about topics, by way of kafka-python's own metadata, whose inner parts are the only ones that fit."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from bridge.sink import Unavailable
from sinks.kafka.errors import MISSING, UNAUTHORIZED, Refusal
from sinks.kafka.log import Overheard
from sinks.kafka.missing import Missing
from sinks.kafka.settings import KafkaSettings

_PROPAGATION: Final = 1.0
"""Seconds after which a topic that brokers do not know does not exist: a new one is not known to all of them at once."""
_ONCE_MORE: Final = 0.3
"""The same for a topic that was missing before: long enough for an answer that is newer than the question."""
_PAUSE: Final = 0.1


class Question:
    """A question to the brokers, about all topics that the library keeps in mind.

    Args:
        producer: The library's producer.
    """

    def __init__(self, producer: Any) -> None:
        self._cluster = producer._metadata
        self._began = time.monotonic()
        self._done = threading.Event()
        self._future = self._cluster.request_update()
        self._future.add_both(lambda *_: self._done.set())
        producer._sender.wakeup()

    def __call__(self) -> bool | None:
        """Whether it was answered: yes, no and never, or (None) not yet."""
        if not self._done.is_set():
            return None
        # The library calls it a failure, too, if the answer is that something is wrong with a topic.
        refreshed: float = self._cluster._last_successful_refresh_ms / 1000
        return bool(self._future.succeeded()) or refreshed >= self._began

    def wait(self, seconds: float) -> bool:
        """Whether it is answered within that time."""
        self._done.wait(seconds)
        return bool(self())


class Metadata:
    """What brokers tell about topics.

    Args:
        settings: The sink's settings.
        producer: The library's producer.
        overheard: What it logs.
        unavailable: Makes an exception of that and of words for the case that there was nothing.
    """

    def __init__(
        self, settings: KafkaSettings, producer: Any, overheard: Overheard, unavailable: Callable[[str], Unavailable]
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._overheard = overheard
        self._unavailable = unavailable
        self._missing = Missing()

    def ask(self) -> Question:
        """Ask, and do not wait."""
        # What was said before, of other topics, would count for more than what is wrong now.
        self._overheard.lines.clear()
        return Question(self._producer)

    def partitions(self, topics: Collection[str]) -> dict[str, int | Refusal]:
        """Tell how many partitions topics have, or why one can't be written to.

        Raises:
            Unavailable: The brokers do not tell.
        """
        # The producer's public `partitions_for` waits a minute for a topic that is missing.
        cluster = self._producer._metadata
        found: dict[str, int | Refusal] = {topic: Refusal(MISSING) for topic in topics if self._missing.is_certain(topic)}
        began = time.monotonic()
        while True:
            for topic in [topic for topic in topics if topic not in found]:
                if known := cluster.partitions_for_topic(topic):
                    found[topic] = len(known)
                    self._missing.forget(topic)
                elif topic in cluster.unauthorized_topics:
                    found[topic] = Refusal(UNAUTHORIZED)
                    _stop_asking(cluster, topic)
                elif time.monotonic() - began >= self._patience(topic):
                    found[topic] = Refusal(MISSING)
                    self._missing.note(topic)
                    _stop_asking(cluster, topic)
            if len(found) == len(topics):
                return found
            self._look_for([topic for topic in topics if topic not in found])

    def _patience(self, topic: str) -> float:
        """For how many seconds a topic that brokers do not know is waited for."""
        if self._missing.is_known(topic):
            return _ONCE_MORE
        return self._settings.connect_timeout if self._settings.allow_auto_create_topics else _PROPAGATION

    def _look_for(self, topics: Sequence[str]) -> None:
        """Ask about topics, and wait for the answer."""
        for topic in topics:
            self._producer._sender.add_topic(topic)
        if not self.ask().wait(self._settings.connect_timeout):
            raise self._unavailable(f"no answer within {self._settings.connect_timeout:g} s")
        cluster = self._producer._metadata
        if any(cluster.partitions_for_topic(topic) is None and topic not in cluster.unauthorized_topics for topic in topics):
            time.sleep(_PAUSE)


def _stop_asking(cluster: Any, topic: str) -> None:
    """Forget a topic that can't be written to; or the library would ask for it, and log that, with each of its refreshes."""
    # A new set, since the library's thread may be going through the old one.
    cluster._topics = cluster._topics - {topic}
    cluster.unauthorized_topics.discard(topic)
