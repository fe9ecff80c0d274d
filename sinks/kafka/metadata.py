"""Ask the brokers about topics through kafka-python's metadata, remember missing topics, and check that brokers answer."""

import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from bridge.sink import Unavailable
from sinks.kafka.errors import INVALID, MISSING, UNAUTHORIZED, LogCapture, Refusal
from sinks.kafka.records import topic_problem
from sinks.kafka.settings import KafkaSettings

_PROPAGATION_SECONDS: Final = 1.0
"""An unknown topic counts as missing after this long: brokers learn of a new topic at different times."""
_PAUSE_SECONDS: Final = 0.1
_MISSING_SECONDS: Final = 30.0
"""A missing topic is not looked up again for this long."""
_MAX_MISSING_TOPICS: Final = 10_000
"""Beyond this many, the topic that was looked up least recently is forgotten."""
IDLE_SECONDS: Final = 10.0
"""An idle sink asks the brokers after this long."""

Answer = Callable[[], bool | None]
"""Poll a request: True if answered, False if it failed, None if pending."""


class Question:
    """A request to the brokers.

    Args:
        future: The library's.
        is_answered: True if a failure of the library is an answer of the brokers.
    """

    def __init__(self, future: Any, is_answered: Callable[[], bool] = lambda: False) -> None:
        self._future = future
        self._is_answered = is_answered
        self._done = threading.Event()
        future.add_both(lambda *_: self._done.set())

    def __call__(self) -> bool | None:
        """Poll: True if answered, False if it failed, None if pending."""
        return bool(self._future.succeeded()) or self._is_answered() if self._done.is_set() else None

    def wait(self, seconds: float) -> bool:
        """Wait; return True if it is answered in time."""
        self._done.wait(seconds)
        return bool(self())


class Metadata:
    """Looks topics up, and remembers those that are missing, so that not every delivery waits for them.

    Args:
        settings: The sink's settings.
        producer: The library's producer.
        log: Its captured log.
        unavailable: Makes the exception from the log, or from a message if nothing was logged.
        clock: Monotonic clock for what is remembered.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        producer: Any,
        log: LogCapture,
        unavailable: Callable[[str], Unavailable],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._producer = producer
        self._cluster = producer._metadata
        self._log = log
        self._unavailable = unavailable
        self._clock = clock
        # For each missing topic, least recent first: when it was looked up.
        self._missing: dict[str, float] = {}

    def ask(self) -> Question:
        """Ask for all topics that the library tracks, and do not wait."""
        # Older lines, about other topics, must not be taken for the cause.
        self._log.lines.clear()
        began = time.monotonic()
        future = self._cluster.request_update()
        self._producer._sender.wakeup()
        # The library calls it a failure, too, if the answer is that something is wrong with a topic.
        return Question(future, lambda: bool(self._cluster._last_successful_refresh_ms / 1000 >= began))

    def partitions(self, topics: Collection[str]) -> dict[str, int | Refusal]:
        """Return the number of partitions of each topic, or the refusal; ask for those that are not known.

        Raises:
            Unavailable: The brokers do not answer.
        """
        # The producer's public `partitions_for` waits a minute for a topic that is missing.
        result: dict[str, int | Refusal] = {}
        for topic in topics:
            if problem := topic_problem(topic):
                result[topic] = Refusal(INVALID, problem)
            elif self._clock() - self._missing.get(topic, float("-inf")) < _MISSING_SECONDS:
                result[topic] = Refusal(MISSING)
        began = time.monotonic()
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
            self._request(topics - result.keys())

    def _patience(self, topic: str) -> float:
        """Seconds to wait for a topic that the brokers do not know."""
        if topic in self._missing:
            return 0.3  # Long enough for one fresh answer.
        return self._settings.connect_timeout if self._settings.allow_auto_create_topics else _PROPAGATION_SECONDS

    def _request(self, topics: Collection[str]) -> None:
        """Ask about topics, and wait for the answer."""
        for topic in topics:
            self._producer._sender.add_topic(topic)
        if not self.ask().wait(self._settings.connect_timeout):
            raise self._unavailable(f"no answer within {self._settings.connect_timeout:g} s")
        known = [self._cluster.partitions_for_topic(topic) or topic in self._cluster.unauthorized_topics for topic in topics]
        if not all(known):
            time.sleep(_PAUSE_SECONDS)

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
        self._failed = False

    def is_gone(self) -> bool:
        """Poll the request, or send one when due; return True if no broker answers any more."""
        waited = self._clock() - self._since
        if self._answer is None:
            if waited >= self._interval:
                self._since = self._clock()
                self._answer = self._ask()
            return False
        match self._answer():
            case True:
                self.heard()
            case None:
                return waited >= self._patience
            case False if self._failed:
                return True
            case False:
                # Another broker may answer.
                self._failed = True
                self._answer = self._ask()
        return False
