"""Kafka brokers; a consumer that is not ours counts what arrives."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.peers.peer import Peer, Running
from tests.support.servers import kafka_broker


@contextlib.contextmanager
def _kafka(directory: Path, _: str) -> Iterator[Running]:
    if reason := kafka_broker.available():
        raise RuntimeError(reason)
    with kafka_broker.Broker(directory) as broker:
        address = broker.address()
        kafka_broker.create_topic(address, "docker")
        yield Running(
            {"type": "kafka", "bootstrap_servers": address, "topic": "docker"},
            lambda: kafka_broker.count_records(address, "docker"),
        )


PEERS = [Peer(f"Apache Kafka {kafka_broker.VERSION}, KRaft", _kafka, ["java", "mvn"])]
