"""What is left behind by asking brokers; what they tell is tried in test_sink.py on real ones."""

import gc
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from sinks.kafka.preflight import About, describe, preflight
from sinks.kafka.settings import KafkaSettings, connection_options
from tests.support.ports import free_port
from tests.support.waiting import until


def options(address: str) -> dict[str, Any]:
    return connection_options(KafkaSettings(bootstrap_servers=[address], topic="events", connect_timeout=0.5))


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("wrong", [{}, {"no_such_option": 1}], ids=["nobody is there", "the library does not even begin"])
def test_asking_in_vain_tells_nothing_and_leaves_nothing_behind(
    caplog: pytest.LogCaptureFixture, wrong: dict[str, Any]
) -> None:
    # pytest keeps what is logged, and with it sockets that errors refer to.
    caplog.set_level(logging.CRITICAL, "kafka")
    asked = options(f"127.0.0.1:{free_port()}") | wrong
    threads, before = threading.active_count(), descriptors()

    assert describe(asked, "events") == About()

    assert threading.active_count() == threads
    until(lambda: descriptors() <= before)


ENOUGH = 1_001_024
FINE = About(exists=True, may_write=True, limit=ENOUGH)


def said(about: About, max_event_bytes: int = 1_000_000, **settings: Any) -> list[str]:
    base = {"bootstrap_servers": "kafka", "topic": "events"}
    return list(preflight(KafkaSettings.model_validate(base | settings), about, max_event_bytes))


def test_of_what_is_fine_it_is_said_that_it_is_there() -> None:
    assert said(FINE) == ["topic events exists, and we may write to it"]


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (FINE._replace(may_write=None), "topic events exists; whether we may write to it is not known"),
        (FINE._replace(exists=None), "whether topic events exists is not known"),
        (About(exists=False, limit=ENOUGH), "topic events does not exist; with `allow_auto_create_topics`"),
    ],
)
def test_what_is_not_known_is_said(about: About, words: str) -> None:
    assert said(about)[0].startswith(words)


def test_a_limit_is_compared_with_what_events_and_batches_may_have() -> None:
    assert len(said(FINE, max_event_bytes=1_000_001)) == 2
    assert "`max.message.bytes` is 1001024, and events may have 1000001 bytes" in said(FINE, max_event_bytes=1_000_001)[1]
    assert "set it to 1001025 or more, or `journal.max_event_bytes` to 1000000 or less" in said(FINE, 1_000_001)[1]
    assert said(FINE, record_batch_bytes=ENOUGH) == said(FINE)
    assert "set `record_batch_bytes` (1001025) to that or less" in said(FINE, record_batch_bytes=ENOUGH + 1)[1]


def test_a_compacted_topic_needs_keys() -> None:
    compacted = FINE._replace(compacted=True)

    assert said(compacted) == said(FINE)
    assert said(FINE, key="") == said(FINE)
    (line,) = said(compacted, key="")[1:]
    assert line.startswith("every event will become a dead letter: topic events's `cleanup.policy` is `compact`")


def test_records_may_become_as_old_as_retries_do() -> None:
    hour = FINE._replace(max_age_ms=3_600_000)

    (line,) = said(hour)[1:]
    assert "topic events's `message.timestamp.before.max.ms` is 3600000; set it to 259200000 (`retry.max_age`) or more" in line
    assert said(hour, timestamp="sent") == said(hour, retry={"max_age": "1h"}) == said(FINE)


def test_topics_that_are_not_there_yet_have_the_brokers_limit() -> None:
    for topic in ("events", "docker.{type}"):
        _, size = said(About(exists=False, limit=1000), topic=topic, record_batch_bytes=1000)
        assert "the brokers' `message.max.bytes`, which topics without their own limit have, is 1000" in size


def test_a_limit_that_can_not_be_read_is_said_with_what_it_should_be() -> None:
    assert "allow us DescribeConfigs there, or see to it that it is 1001024 or more" in said(FINE._replace(limit=None))[1]
