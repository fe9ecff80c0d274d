"""What is asked of a library that is played here; test_kafka_client.py and test_kafka.py try it on brokers."""

import time
from typing import Any

import pytest
from kafka.errors import (  # type: ignore[import-untyped]
    KafkaConnectionError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
)
from kafka.future import Future  # type: ignore[import-untyped]

from bridge.sink import Unavailable
from sinks.kafka.errors import MISSING, UNAUTHORIZED, Refusal
from sinks.kafka.log import Overheard
from sinks.kafka.metadata import Metadata
from sinks.kafka.settings import KafkaSettings


class Library:
    """A producer, its sender and its metadata in one, with brokers that answer at once."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.forbidden: set[str] = set()
        self.failure: Exception | None = None
        self.asked: list[set[str]] = []
        self.unauthorized_topics: set[str] = set()
        self._topics: set[str] = set()
        self._last_successful_refresh_ms = 0.0
        self._metadata = self._sender = self

    def add_topic(self, topic: str) -> None:
        self._topics.add(topic)

    def wakeup(self) -> None:
        """It is awake."""

    def request_update(self) -> Any:
        self.asked.append(set(self._topics))
        if isinstance(self.failure, UnknownTopicOrPartitionError) or self.failure is None:
            self._last_successful_refresh_ms = time.monotonic() * 1000
            self.unauthorized_topics = self._topics & self.forbidden
        return Future().success(self) if self.failure is None else Future().failure(self.failure)

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {0, 1, 2} if topic in self.there & self._topics else None


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setattr("sinks.kafka.metadata._PROPAGATION", 0.05)
    monkeypatch.setattr("sinks.kafka.metadata._PAUSE", 0.05)
    return Library()


@pytest.fixture
def metadata(library: Library) -> Metadata:
    settings = KafkaSettings(bootstrap_servers=["kafka:9092"], topic="{type}", connect_timeout=0.5)
    return Metadata(settings, library, Overheard(), Unavailable)


def test_a_topic_that_is_known_is_not_asked_for_again(library: Library, metadata: Metadata) -> None:
    library.there = {"a"}
    library.add_topic("a")

    assert metadata.partitions({"a"}) == {"a": 3}
    assert library.asked == []


def test_a_topic_that_is_missing_is_asked_for_no_more_for_a_while_and_the_others_are(
    library: Library, metadata: Metadata
) -> None:
    assert metadata.partitions({"missing"}) == {"missing": Refusal(MISSING)}
    library.there = {"a"}
    library.add_topic("a")
    library.asked.clear()

    for _ in range(3):
        assert metadata.partitions({"a", "missing"}) == {"a": 3, "missing": Refusal(MISSING)}

    assert library.asked == []


def test_a_topic_that_we_may_not_see_is_kept_in_mind_by_nobody(library: Library, metadata: Metadata) -> None:
    library.forbidden = {"a"}

    assert metadata.partitions({"a"}) == {"a": Refusal(UNAUTHORIZED)}
    assert library.unauthorized_topics == set()
    assert library._topics == set()

    library.there, library.forbidden = {"a"}, set()
    assert metadata.partitions({"a"}) == {"a": 3}


@pytest.mark.parametrize("failure", [KafkaConnectionError(), RequestTimedOutError()])
def test_brokers_that_do_not_answer_have_not_said_that_a_topic_is_missing(
    library: Library, metadata: Metadata, failure: Exception
) -> None:
    library.failure = failure

    with pytest.raises(Unavailable, match=r"no answer within 0\.5 s"):
        metadata.partitions({"a"})
    assert metadata.ask()() is False


def test_that_something_is_wrong_with_a_topic_is_an_answer(library: Library, metadata: Metadata) -> None:
    library.failure = UnknownTopicOrPartitionError("a")

    assert metadata.ask()() is True
    assert metadata.ask().wait(0)
