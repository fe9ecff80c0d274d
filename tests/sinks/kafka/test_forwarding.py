"""The Kafka sink behind a forwarder: topics that refuse everything do not keep events from the others."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bridge.journal import Batch, Journal
from bridge.metrics import Metrics, SinkMetrics
from bridge.pipeline.forwarder import Forwarder
from bridge.sink import RetrySettings
from sinks.kafka.settings import KafkaSettings
from sinks.kafka.sink import KafkaSink
from tests.sinks.kafka import mock_kafka
from tests.sinks.kafka.mock_kafka import MockKafka
from tests.support.forwarding import event
from tests.support.journal_samples import journal_settings
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(mock_kafka.available() is not None, reason=str(mock_kafka.available()))


@pytest.fixture
def mock(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockKafka]:
    mock_kafka.speak_to_it(monkeypatch)
    with MockKafka() as mock:
        yield mock


@pytest.mark.parametrize("code", [29, 3], ids=["forbidden", "missing"])
def test_thousands_of_events_that_one_topic_refuses_do_not_stop_the_others(mock: MockKafka, tmp_path: Path, code: int) -> None:
    for topic in ("allowed", "refused"):
        mock.create_topic(topic)
    mock.refuse_topic("refused", code)
    settings = KafkaSettings(bootstrap_servers=[mock.address], topic="{state}", retry=RetrySettings(first_delay=5))
    sink = KafkaSink("kafka", settings)
    with closing(Journal(journal_settings(tmp_path / "journal.db"))) as journal, closing(sink):
        journal.add_sink("kafka", "earliest", settings.retry.max_pending)
        for start in range(0, 12_000, 1000):
            events = [
                event(number, f"/resource/{number}/", "refused" if number % 3 == 0 else "allowed")
                for number in range(start, start + 1000)
            ]
            journal.append(Batch("s", 1_700_000_000.0, events, []))
        forwarder = Forwarder("kafka", sink, settings, journal, metrics=SinkMetrics(Metrics("test"), "kafka"))

        def all_delivered() -> bool:
            forwarder.step()
            return journal.counters().sinks["kafka"].delivered == 8000

        until(all_delivered, "the other topic has everything")
        assert journal.counters().sinks["kafka"].pending == 4000
        assert forwarder.status.up
