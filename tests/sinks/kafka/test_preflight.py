"""What is left behind by asking brokers; what they tell is tried in test_kafka.py on real ones."""

import gc
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from sinks.kafka.preflight import describe
from sinks.kafka.remarks import About
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
