"""What is asked of a library that is played here; test_client.py and test_sink.py try it on brokers."""

from collections.abc import Collection

import pytest

from bridge.sink import Unavailable
from sinks.kafka.errors import MISSING, UNAUTHORIZED, Refusal
from sinks.kafka.metadata import Metadata
from sinks.kafka.settings import KafkaSettings


class Library:
    """The library's metadata, with brokers that answer at once."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.forbidden: set[str] = set()
        self.failure: Unavailable | None = None
        self.asked: list[set[str]] = []
        self.unauthorized_topics: set[str] = set()
        self._topics: set[str] = set()

    def ask(self, topics: Collection[str]) -> None:
        self._topics = self._topics | set(topics)
        self.asked.append(set(self._topics))
        if self.failure is not None:
            raise self.failure
        self.unauthorized_topics = self._topics & self.forbidden

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {0, 1, 2} if topic in self.there & self._topics else None


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setattr("sinks.kafka.metadata._PROPAGATION_SECONDS", 0.05)
    monkeypatch.setattr("sinks.kafka.metadata._PAUSE_SECONDS", 0.05)
    return Library()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metadata(library: Library, clock: Clock) -> Metadata:
    settings = KafkaSettings(bootstrap_servers=["kafka:9092"], topic="{type}", connect_timeout=0.5)
    return Metadata(settings, library, library.ask, clock)


def test_a_topic_that_is_known_is_not_asked_for_again(library: Library, metadata: Metadata) -> None:
    library.there = library._topics = {"a"}

    assert metadata.partitions({"a"}) == {"a": 3}
    assert library.asked == []


def test_a_topic_that_is_missing_is_asked_for_no_more_for_a_while_and_the_others_are(
    library: Library, metadata: Metadata
) -> None:
    assert metadata.partitions({"missing"}) == {"missing": Refusal(MISSING)}
    library.there = library._topics = {"a"}
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


def test_brokers_that_do_not_answer_have_not_said_that_a_topic_is_missing(library: Library, metadata: Metadata) -> None:
    library.failure = Unavailable("no answer")

    with pytest.raises(Unavailable, match="no answer"):
        metadata.partitions({"a"})


def test_a_topic_that_was_missing_is_looked_for_again_after_half_a_minute(
    library: Library, metadata: Metadata, clock: Clock
) -> None:
    metadata.partitions({"late"})
    library.there = {"late"}

    clock.now += 29
    assert metadata.partitions({"late"}) == {"late": Refusal(MISSING)}
    clock.now += 2
    assert metadata.partitions({"late"}) == {"late": 3}


def test_a_topic_that_is_still_missing_is_waited_for_once_and_counts_as_missing_again(
    library: Library, metadata: Metadata, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata.partitions({"late"})
    clock.now += 31
    monkeypatch.setattr("sinks.kafka.metadata._PROPAGATION_SECONDS", 60.0)
    assert metadata.partitions({"late"}) == {"late": Refusal(MISSING)}

    library.asked.clear()
    clock.now += 29
    assert metadata.partitions({"late"}) == {"late": Refusal(MISSING)}
    assert library.asked == []


def test_a_topic_that_was_found_is_not_missing_any_more(library: Library, metadata: Metadata, clock: Clock) -> None:
    metadata.partitions({"late"})
    library.there = {"late"}
    clock.now += 31
    metadata.partitions({"late"})
    library.there = set()
    library.asked.clear()

    assert metadata.partitions({"late"}) == {"late": Refusal(MISSING)}
    assert library.asked


def test_of_too_many_topics_those_looked_for_least_recently_are_forgotten(
    library: Library, metadata: Metadata, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinks.kafka.metadata._PROPAGATION_SECONDS", 0.0)
    for number in range(10_000):
        metadata.partitions({f"topic-{number}"})
    clock.now += 31
    metadata.partitions({"topic-0"})
    metadata.partitions({"one-more"})
    clock.now -= 31
    library.asked.clear()

    metadata.partitions({"topic-0", "topic-2"})
    assert library.asked == []

    monkeypatch.setattr("sinks.kafka.metadata._PROPAGATION_SECONDS", 0.01)
    metadata.partitions({"topic-1"})
    assert library.asked
