"""A cluster of brokers that fails on demand: librdkafka's, with errors that no real broker gives when asked.

librdkafka calls this interface experimental; the version of confluent-kafka, which brings it, is pinned. It understands the
requests of older clients only (`speak_to_it`).
"""

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest

_PRODUCE = 0


def available() -> str | None:
    """Why there is none; None if there is one."""
    return None if importlib.util.find_spec("confluent_kafka") else "confluent-kafka is not installed"


def speak_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers newer requests for its versions in a way that kafka-python can't read."""
    monkeypatch.setattr("kafka.net.connection.ApiVersionsRequest.max_version", 2)


def _library() -> ctypes.CDLL:
    import confluent_kafka  # noqa: PLC0415 - it may be missing, and tests are skipped then

    folder = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
    return ctypes.CDLL(str(next(folder.glob("librdkafka-*.so*"))))


class MockKafka:
    """A cluster, as a context manager.

    Args:
        brokers: How many brokers it has; their numbers begin with 1.

    Attributes:
        address: The addresses of all brokers, with commas.
    """

    def __init__(self, brokers: int = 1) -> None:
        self._library = _library()
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        problem = ctypes.create_string_buffer(512)
        self._client = self._call("rd_kafka_new", pointer, 0, self._call("rd_kafka_conf_new", pointer), problem, 512)
        assert self._client, problem.value
        self._cluster = self._call("rd_kafka_mock_cluster_new", pointer, self._client, brokers)
        self.address: str = self._call("rd_kafka_mock_cluster_bootstraps", text, self._cluster).decode()

    def create_topic(self, name: str, partitions: int = 1, replicas: int = 1) -> None:
        self._call("rd_kafka_mock_topic_create", ctypes.c_int, self._cluster, name.encode(), partitions, replicas)

    def refuse_topic(self, name: str, code: int) -> None:
        """Answer questions about a topic with this error; 0 is none."""
        self._call("rd_kafka_mock_topic_set_error", None, self._cluster, name.encode(), code)

    def answer(self, codes: Sequence[int]) -> None:
        """Answer the next requests to store records with these errors; 0 is none."""
        array = (ctypes.c_int * len(codes))(*codes)
        self._call("rd_kafka_mock_push_request_errors_array", None, self._cluster, _PRODUCE, len(codes), array)

    def answer_well(self) -> None:
        """Forget the errors that were not given yet."""
        self._call("rd_kafka_mock_clear_request_errors", None, self._cluster, _PRODUCE)

    def delay(self, seconds: float) -> None:
        """Take so long for every answer."""
        self._call("rd_kafka_mock_broker_set_rtt", ctypes.c_int, self._cluster, -1, int(seconds * 1000))

    def down(self, broker: int = -1) -> None:
        """Break all connections of a broker, or of all brokers, and refuse new ones."""
        self._call("rd_kafka_mock_broker_set_down", ctypes.c_int, self._cluster, broker)

    def up(self, broker: int = -1) -> None:
        """Accept connections again."""
        self._call("rd_kafka_mock_broker_set_up", ctypes.c_int, self._cluster, broker)

    def lead(self, topic: str, partition: int, broker: int) -> None:
        """Make a broker the leader of a partition; -1: it has none."""
        self._call("rd_kafka_mock_partition_set_leader", ctypes.c_int, self._cluster, topic.encode(), partition, broker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._call("rd_kafka_mock_cluster_destroy", None, self._cluster)
        self._call("rd_kafka_destroy", None, self._client)

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._library, name)
        function.restype = result
        # A pointer that is passed as a plain number would be cut to 32 bits.
        return function(*[ctypes.c_void_p(it) if isinstance(it, int) and it > 1 << 31 else it for it in arguments])
