"""What is asked of a library that is played here; test_client.py and test_sink.py try it on brokers."""

from collections.abc import Collection
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError  # type: ignore[import-untyped]
from kafka.future import Future  # type: ignore[import-untyped]

from bridge.sink import Unavailable
from sinks.kafka.errors import MISSING, UNAUTHORIZED, Refusal
from sinks.kafka.metadata import Liveness, Metadata
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


class Brokers:
    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[Any] = []
        self.pulse = Liveness(self.ask, patience=5, interval=10, clock=lambda: self.now)

    def ask(self) -> Any:
        self.asked.append(Future())
        return self.asked[-1]

    def is_gone_after(self, seconds: float) -> bool:
        self.now += seconds
        return self.pulse.is_gone()


@pytest.fixture
def brokers() -> Brokers:
    return Brokers()


def test_it_asks_every_interval_and_who_answers_is_there(brokers: Brokers) -> None:
    assert [brokers.is_gone_after(1) for _ in range(9)] == [False] * 9
    assert brokers.asked == []

    for turn in range(1, 4):
        assert not brokers.is_gone_after(10)
        assert len(brokers.asked) == turn
        brokers.asked[-1].success(None)
        assert not brokers.is_gone_after(1)


def test_who_does_not_answer_in_time_is_gone(brokers: Brokers) -> None:
    brokers.is_gone_after(10)

    assert not brokers.is_gone_after(4.9)
    assert brokers.is_gone_after(0.2)
    assert len(brokers.asked) == 1


def test_an_answer_counts_however_late_it_is_looked_for(brokers: Brokers) -> None:
    brokers.is_gone_after(10)
    brokers.asked[-1].success(None)

    assert not brokers.is_gone_after(60)


def test_when_all_brokers_failed_nobody_is_there(brokers: Brokers) -> None:
    brokers.is_gone_after(10)
    brokers.asked[-1].failure(KafkaConnectionError())

    assert brokers.is_gone_after(0.1)
    assert len(brokers.asked) == 1


def test_what_is_heard_meanwhile_makes_the_question_needless(brokers: Brokers) -> None:
    brokers.is_gone_after(10)
    brokers.pulse.heard()
    brokers.asked[-1].failure(KafkaConnectionError())

    assert not brokers.is_gone_after(9)
    assert len(brokers.asked) == 1
