"""The harnesses of the sinks that come with the bridge: receivers under control, real ones where they can be had.

A new type of sink takes part by one `Harness` here and its name in `HARNESSES`.
"""

import fcntl
import os
import tempfile
import threading
import uuid
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar, Final
from unittest.mock import patch

import msgspec
import pytest

from bridge.sink import Entry, Sink
from sinks.kafka.settings import KafkaSettings
from sinks.kafka.sink import KafkaSink
from sinks.mqtt.settings import MqttSettings
from sinks.mqtt.sink import MqttSink
from sinks.stdout import StdoutSettings, StdoutSink
from sinks.webhook.settings import WebhookSettings
from sinks.webhook.sink import WebhookSink
from tests.contract.harness import Harness
from tests.contract.mqtt_broker import Broker, Publish
from tests.sinks.kafka import mock_kafka
from tests.support.servers import kafka_broker, mosquitto
from tests.support.servers.receiver import Receiver, Request, reply


class StdoutPipe(Harness):
    """A pipe of the smallest size with a reader."""

    abilities = frozenset({"withhold", "break", "stop"})

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._data = bytearray()
        self._lines = 0
        self._limit = 1 << 40
        self._closed = False
        self._reader, self._writer = self._pipe()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def make_sink(self) -> Sink:
        return StdoutSink("log", StdoutSettings(timeout=0.5), fd=self._writer)

    def arrived(self) -> list[bytes]:
        with self._lock:
            self._drain()
        whole, _, _ = self._data.rpartition(b"\n")
        return [bytes(line) for line in whole.split(b"\n") if line]

    def withhold(self) -> None:
        with self._lock:
            self._drain()
            self._limit = 0
            # What fills the pipe are empty lines, which `arrived` leaves out.
            filler = os.open(f"/proc/self/fd/{self._writer}", os.O_WRONLY | os.O_NONBLOCK)
            with suppress(BlockingIOError):
                while True:
                    os.write(filler, b"\n")
            os.close(filler)

    def break_off(self) -> None:
        with self._lock:
            os.close(self._reader)
            self._reader = -1

    def stop_after(self, count: int) -> None:
        with self._lock:
            self._limit = count

    def repair(self) -> None:
        with self._lock:
            self._limit = 1 << 40
            if self._reader < 0:
                self._reader, writer = self._pipe()
                os.dup2(writer, self._writer)
                os.close(writer)

    def close(self) -> None:
        self._closed = True
        self._thread.join(10)
        with self._lock:
            for fd in {self._reader, self._writer} - {-1}:
                os.close(fd)

    @staticmethod
    def _pipe() -> tuple[int, int]:
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(reader, False)
        return reader, writer

    def _read(self) -> None:
        pause = threading.Event()
        while not self._closed:
            with self._lock:
                self._drain()
            pause.wait(0.0005)

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while self._reader >= 0 and self._lines < self._limit:
                data = os.read(self._reader, 1 << 16)
                if not data:
                    return
                self._data += data
                self._lines += data.count(b"\n")


class StdoutFile(Harness):
    """A regular file."""

    abilities = frozenset()

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it

    def make_sink(self) -> Sink:
        return StdoutSink("log", StdoutSettings(), fd=self._file.fileno())

    def arrived(self) -> list[bytes]:
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).splitlines()

    def close(self) -> None:
        self._file.close()


class Webhook(Harness):
    """A receiver over HTTP that gets one event per request."""

    abilities = frozenset({"withhold", "break", "stop", "reject", "fail"})
    settings: ClassVar[dict[str, Any]] = {"format": "event"}

    def __init__(self) -> None:
        self._receiver = Receiver()
        self._receiver.answer = self._answer
        self._arrived: list[bytes] = []
        self._rejected: set[str] = set()
        self._failing: set[str] = set()
        self._limit = 1 << 40
        self._lock = threading.Lock()

    def make_sink(self) -> Sink:
        return WebhookSink("hook", WebhookSettings(url=self._receiver.url, timeout=20, **self.settings))

    def arrived(self) -> list[bytes]:
        with self._lock:
            return list(self._arrived)

    def withhold(self) -> None:
        self._receiver.gate.clear()

    def break_off(self) -> None:
        self._receiver.stop()

    def stop_after(self, count: int) -> None:
        self._limit = count

    def repair(self) -> None:
        self._limit = 1 << 40
        self._receiver.gate.set()
        if not self._receiver.running:
            self._receiver.start()

    def reject(self, entry: Entry) -> None:
        self._rejected.add(entry.fields.uuid)

    def fail(self, entry: Entry) -> None:
        self._failing.add(entry.fields.uuid)

    def close(self) -> None:
        self._receiver.stop()

    def _answer(self, request: Request) -> bytes:
        uuids = {msgspec.json.decode(event)["uuid"] for event in self._events(request)}
        with self._lock:
            if len(self._arrived) >= self._limit:
                return reply(503)
            if uuids & self._failing:
                return reply(500)
            if uuids & self._rejected:
                return reply(422)
            self._arrived += self._events(request)
        return reply(204)

    def _events(self, request: Request) -> Sequence[bytes]:
        return [request.body]


class WebhookBatch(Webhook):
    """The same with a JSON array of events per request."""

    settings: ClassVar[dict[str, Any]] = {"format": "batch", "batch": {"max_events": 10}}

    def _events(self, request: Request) -> Sequence[bytes]:
        return [bytes(event) for event in msgspec.json.decode(request.body, type=list[msgspec.Raw])]


class WebhookLines(Webhook):
    """The same with JSON lines."""

    settings: ClassVar[dict[str, Any]] = {"format": "lines", "batch": {"max_events": 10}}

    def _events(self, request: Request) -> Sequence[bytes]:
        return request.body.splitlines()


class Mqtt(Harness):
    """An MQTT broker that acknowledges each event."""

    abilities = frozenset({"withhold", "break", "stop", "reject", "fail", "notice"})
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self._broker = Broker(self.settings.get("protocol", "5"))
        self._broker.answer = self._answer
        self._codes: dict[bytes, int] = {}
        self._limit = 1 << 40

    def make_sink(self) -> Sink:
        return MqttSink("home", MqttSettings(url=self._broker.url, timeout=20, **self.settings))

    def arrived(self) -> list[bytes]:
        return [publish.payload for publish in list(self._broker.published)]

    def withhold(self) -> None:
        self._broker.gate.clear()

    def break_off(self) -> None:
        self._broker.stop()

    def stop_after(self, count: int) -> None:
        self._limit = count

    def repair(self) -> None:
        self._limit = 1 << 40
        self._broker.gate.set()
        if not self._broker.running:
            self._broker.start()

    def reject(self, entry: Entry) -> None:
        self._codes[entry.json] = 0x99

    def fail(self, entry: Entry) -> None:
        self._codes[entry.json] = 0x80

    def close(self) -> None:
        self._broker.stop()

    def _answer(self, publish: Publish) -> int:
        quota_exceeded = len(self._broker.published) >= self._limit
        return 0x97 if quota_exceeded else self._codes.get(publish.payload, 0)


class MqttTwice(Mqtt):
    """The same with QoS 2."""

    settings: ClassVar[dict[str, Any]] = {"qos": 2}


class MqttUnacknowledged(Mqtt):
    """The same with QoS 0."""

    abilities = frozenset({"withhold", "break", "notice"})
    settings: ClassVar[dict[str, Any]] = {"qos": 0}


class MqttOld(Mqtt):
    """The same with MQTT 3.1.1, which knows no reason codes."""

    abilities = frozenset({"withhold", "break", "notice"})
    settings: ClassVar[dict[str, Any]] = {"protocol": "3.1.1"}


class MqttAnybody(Harness):
    """A real broker, of whomever, and its own subscriber."""

    abilities = frozenset()

    def __init__(self) -> None:
        if reason := self._missing():
            pytest.skip(reason)
        self._closing = ExitStack()
        self._broker = self._closing.enter_context(self._start())
        self._subscriber = self._closing.enter_context(self._broker.listening(f"{self._broker.prefix}/acme/#"))

    def make_sink(self) -> Sink:
        return MqttSink("home", MqttSettings(**self._broker.settings, timeout=20))

    def arrived(self) -> list[bytes]:
        return self._subscriber.payloads()

    def close(self) -> None:
        self._closing.close()

    def _missing(self) -> str | None:
        return mosquitto.any_available()

    def _start(self) -> AbstractContextManager[mosquitto.Broker]:
        return mosquitto.anybody(Path(self._closing.enter_context(tempfile.TemporaryDirectory())))


class MqttMosquitto(MqttAnybody):
    """A broker of our own, which can be frozen and killed."""

    abilities = frozenset({"withhold", "break", "notice"})

    def __init__(self) -> None:
        super().__init__()
        self._hangs = False

    def withhold(self) -> None:
        self._own.hang()
        self._hangs = True

    def break_off(self) -> None:
        self._own.kill()

    def repair(self) -> None:
        if self._hangs:
            self._own.go_on()
        else:
            self._own.start()
            self._subscriber.sync()

    @property
    def _own(self) -> mosquitto.Mosquitto:
        assert isinstance(self._broker, mosquitto.Mosquitto)
        return self._broker

    def _missing(self) -> str | None:
        return mosquitto.available()

    def _start(self) -> AbstractContextManager[mosquitto.Broker]:
        return mosquitto.Mosquitto(Path(self._closing.enter_context(tempfile.TemporaryDirectory())))


class Kafka(Harness):
    """A topic of a real broker that can be frozen and killed, if it is our own."""

    abilities = frozenset({"withhold", "break", "notice"})
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        if reason := kafka_broker.any_available():
            pytest.skip(reason)
        self._address = kafka_broker.any_address()
        self._topic = f"contract-{uuid.uuid4().hex[:8]}"
        kafka_broker.create_topic(self._address, self._topic)

    def make_sink(self) -> Sink:
        settings = {"bootstrap_servers": self._address, "topic": self._topic, "delivery_timeout": 5, "connect_timeout": 5}
        return KafkaSink("kafka", KafkaSettings.model_validate(settings | self.settings), interval=0.5)

    def arrived(self) -> list[bytes]:
        return [value for _, value in kafka_broker.read_topic(self._address, self._topic)]

    def withhold(self) -> None:
        self._own.freeze()

    def break_off(self) -> None:
        self._own.kill()

    def repair(self) -> None:
        self._own.restore()

    def close(self) -> None:
        if not kafka_broker.GIVEN:
            self._own.restore()

    @property
    def _own(self) -> kafka_broker.Broker:
        if kafka_broker.GIVEN:
            pytest.skip("the broker of EVENT_BRIDGE_TEST_KAFKA is not ours to stop")
        return kafka_broker.shared()


class KafkaOneByOne(Kafka):
    """The same with a kafka-python whose inner parts are not those that are known, and with small batches."""

    abilities = frozenset({"withhold"})
    settings: ClassVar[dict[str, Any]] = {"record_batch_bytes": 20_000}

    def __init__(self) -> None:
        super().__init__()
        self._unknown = patch("sinks.kafka.client.looks_as_expected", lambda _: False)
        self._unknown.start()

    def close(self) -> None:
        self._unknown.stop()
        super().close()


class KafkaMock(Harness):
    """A topic of librdkafka's mock cluster, which needs no Java."""

    abilities = frozenset({"withhold", "break", "notice"})

    def __init__(self) -> None:
        if reason := mock_kafka.available():
            pytest.skip(reason)
        self._patch = pytest.MonkeyPatch()
        mock_kafka.speak_to_it(self._patch)
        self._mock = mock_kafka.MockKafka()
        self._mock.create_topic("events", 3)

    def make_sink(self) -> Sink:
        settings = {"bootstrap_servers": self._mock.address, "topic": "events", "delivery_timeout": 5, "connect_timeout": 2}
        return KafkaSink("kafka", KafkaSettings.model_validate(settings), interval=0.5)

    def arrived(self) -> list[bytes]:
        return [value for _, value in kafka_broker.read_topic(self._mock.address, "events")]

    def withhold(self) -> None:
        self._mock.delay(1)

    def break_off(self) -> None:
        self._mock.down()

    def repair(self) -> None:
        self._mock.delay(0)
        self._mock.up()

    def close(self) -> None:
        self._mock.__exit__()
        self._patch.undo()


class KafkaTopics(Harness):
    """Topics of a real broker, one per action, of which some are forbidden and some can't exist."""

    abilities = frozenset({"reject", "fail"})

    def __init__(self) -> None:
        if reason := kafka_broker.available():
            pytest.skip(reason)
        self._broker = kafka_broker.shared()
        self._prefix = f"contract-{uuid.uuid4().hex[:8]}"
        self._topics = [f"{self._prefix}-update", f"{self._prefix}-_"]
        for topic in self._topics:
            kafka_broker.create_topic(self._broker.address(), topic)
            self._broker.allow("alice", topic, "WRITE", "DESCRIBE")
        kafka_broker.create_topic(self._broker.address(), f"{self._prefix}-delete")

    def make_sink(self) -> Sink:
        where = {"bootstrap_servers": self._broker.address("SASL"), "topic": self._prefix + "-{action}"}
        login = {"sasl": "PLAIN", "username": "alice", "password": kafka_broker.USERS["alice"]}
        return KafkaSink("kafka", KafkaSettings.model_validate(where | login))

    def arrived(self) -> list[bytes]:
        address = self._broker.address()
        return [value for topic in self._topics for _, value in kafka_broker.read_topic(address, topic)]

    def reject(self, entry: Entry) -> None:
        entry.json = entry.json.replace(b'"action":"update"', b'"action":"%s"' % (b"x" * 250))

    def fail(self, entry: Entry) -> None:
        entry.json = entry.json.replace(b'"action":"update"', b'"action":"delete"')

    def close(self) -> None:
        """The broker is shared and stays."""


HARNESSES: Final[tuple[type[Harness], ...]] = (
    StdoutPipe,
    StdoutFile,
    Webhook,
    WebhookBatch,
    WebhookLines,
    Mqtt,
    MqttTwice,
    MqttUnacknowledged,
    MqttOld,
    MqttMosquitto,
    *([MqttAnybody] if mosquitto.given() else []),
    Kafka,
    KafkaOneByOne,
    KafkaMock,
    KafkaTopics,
)
