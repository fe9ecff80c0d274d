"""Ask the brokers about topics through kafka-python's metadata, remember missing topics, and check that brokers answer."""

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from bridge.sink import Unavailable
from sinks.kafka.errors import MISSING, UNAUTHORIZED, LogCapture, Refusal
from sinks.kafka.settings import KafkaSettings

_PROPAGATION_SECONDS: Final = 1.0
"""An unknown topic counts as missing after this long: brokers learn of a new topic at different times."""
_REPEAT_SECONDS: Final = 0.3
"""The same for a topic that was missing before: long enough for one fresh answer."""
_PAUSE_SECONDS: Final = 0.1
_MISSING_SECONDS: Final = 30.0
"""A missing topic is not looked up again for this long."""
_MAX_MISSING_TOPICS: Final = 10_000
"""Beyond this many, the topic that was looked up least recently is forgotten."""
Answer = Callable[[], bool | None]
"""Poll a request: True if answered, False if it failed, None if pending."""

IDLE_SECONDS: Final = 10.0
"""An idle sink asks the brokers after this long."""
_MAX_FAILURES: Final = 2
"""Consecutive failures before the brokers count as gone: after one, another broker may answer."""


class Question:
    """A metadata request for all topics that the library tracks.

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
        """Poll: True if answered, False if it failed, None if pending."""
        if not self._done.is_set():
            return None
        # The library calls it a failure, too, if the answer is that something is wrong with a topic.
        refreshed: float = self._cluster._last_successful_refresh_ms / 1000
        return bool(self._future.succeeded()) or refreshed >= self._began

    def wait(self, seconds: float) -> bool:
        """Wait; return True if it is answered in time."""
        self._done.wait(seconds)
        return bool(self())


class Metadata:
    """Looks topics up.

    Args:
        settings: The sink's settings.
        producer: The library's producer.
        log: Its captured log.
        unavailable: Makes the exception from the log, or from a message if nothing was logged.
    """

    def __init__(
        self, settings: KafkaSettings, producer: Any, log: LogCapture, unavailable: Callable[[str], Unavailable]
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._log = log
        self._unavailable = unavailable
        self._missing = MissingTopics()

    def ask(self) -> Question:
        """Send a request and do not wait."""
        # Older lines, about other topics, must not be taken for the cause.
        self._log.lines.clear()
        return Question(self._producer)

    def partitions(self, topics: Collection[str]) -> dict[str, int | Refusal]:
        """Return the number of partitions of each topic, or the refusal.

        Raises:
            Unavailable: The brokers do not answer.
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
        """Seconds to wait for a topic that the brokers do not know."""
        if self._missing.is_known(topic):
            return _REPEAT_SECONDS
        return self._settings.connect_timeout if self._settings.allow_auto_create_topics else _PROPAGATION_SECONDS

    def _look_for(self, topics: Sequence[str]) -> None:
        """Ask about topics, and wait for the answer."""
        for topic in topics:
            self._producer._sender.add_topic(topic)
        if not self.ask().wait(self._settings.connect_timeout):
            raise self._unavailable(f"no answer within {self._settings.connect_timeout:g} s")
        cluster = self._producer._metadata
        if any(cluster.partitions_for_topic(topic) is None and topic not in cluster.unauthorized_topics for topic in topics):
            time.sleep(_PAUSE_SECONDS)


def _stop_asking(cluster: Any, topic: str) -> None:
    """Forget a topic that can't be written to; or the library would ask for it, and log that, with each of its refreshes."""
    # A new set, since the library's thread may be going through the old one.
    cluster._topics = cluster._topics - {topic}
    cluster.unauthorized_topics.discard(topic)


class MissingTopics:
    """Cache of missing topics, so that not every delivery waits for them.

    Args:
        clock: Monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_for: dict[str, float] = {}

    def note(self, topic: str) -> None:
        """Remember a topic as missing."""
        self._looked_for.pop(topic, None)
        self._looked_for[topic] = self._clock()
        if len(self._looked_for) > _MAX_MISSING_TOPICS:
            del self._looked_for[next(iter(self._looked_for))]

    def forget(self, topic: str) -> None:
        """Remove a topic that exists."""
        self._looked_for.pop(topic, None)

    def is_known(self, topic: str) -> bool:
        """Return True if the last look-up of a topic failed, however long ago."""
        return topic in self._looked_for

    def is_certain(self, topic: str) -> bool:
        """Return True if a look-up failed so recently that it need not be repeated."""
        looked_for = self._looked_for.get(topic)
        return looked_for is not None and self._clock() - looked_for < _MISSING_SECONDS


class Liveness:
    """Checks that the brokers still answer, without waiting for them.

    Args:
        ask: Sends a request and does not wait.
        patience: Seconds that an answer may take.
        interval: Seconds between the last answer and the next request.
        clock: Monotonic clock.
    """

    def __init__(
        self, ask: Callable[[], Answer], patience: float, interval: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._patience = patience
        self._interval = interval
        self._clock = clock
        self.heard()

    def heard(self) -> None:
        """Note that a broker answered."""
        self._since = self._clock()
        self._answer: Answer | None = None
        self._failures = 0

    def is_gone(self) -> bool:
        """Poll the request, or send one when due; return True if no broker answers any more."""
        waited = self._clock() - self._since
        if self._answer is None:
            if waited >= self._interval:
                self._since = self._clock()
                self._answer = self._ask()
            return False
        answered = self._answer()
        if answered:
            self.heard()
            return False
        if answered is None:
            return waited >= self._patience
        self._failures += 1
        if self._failures < _MAX_FAILURES:
            self._answer = self._ask()
        return self._failures >= _MAX_FAILURES
