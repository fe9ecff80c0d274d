"""Events per second from the socket through the journal until brokers acknowledge them: each by itself, and all at once.

The brokers are real and run on the same machine. If one can't be started, the figure says why.
"""

import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.events import NAMESPACE
from benchmarks.figures import Figure, Sizes, spread
from benchmarks.processes import DELIVERED, bridge, receiver, sender
from tests.support.servers import kafka_broker, mosquitto

_POLL_SECONDS: Final = 0.05
"""See `benchmarks.throughput`."""

_Sink = Mapping[str, object]


class _Brokers(NamedTuple):
    kafka: kafka_broker.Broker
    mqtt: mosquitto.Mosquitto


class _Rate(NamedTuple):
    events: float
    cpu_microseconds: float


def sinks(sizes: Sizes) -> list[Figure]:
    """Measure Kafka and MQTT each by itself, and all four kinds of sinks together."""
    runs = (
        ("Kafka, acks=all, keyed", _to_kafka, "≥ 50,000"),
        ("MQTT, QoS 1", _to_mqtt, "≥ 25,000"),
        ("Kafka, MQTT, webhook (batches) and /dev/null at once", _to_all, "≥ 10,000"),
    )
    missing = kafka_broker.available() or mosquitto.available()
    if missing:
        return [Figure(f"Stream → journal → {what}, events/s", f"not measured: {missing}", goal) for what, _, goal in runs]
    figures: list[Figure] = []
    with _brokers() as brokers:
        for what, run, goal in runs:
            rates = [run(sizes.sink_events, brokers) for _ in range(sizes.rounds)]
            figures += [
                Figure(f"Stream → journal → {what}, events/s", spread([rate.events for rate in rates]), goal),
                Figure("… CPU of the bridge per event, all threads, µs", spread([rate.cpu_microseconds for rate in rates], 2)),
            ]
    return figures


@contextmanager
def _brokers() -> Iterator[_Brokers]:
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        kafka = stack.enter_context(kafka_broker.Broker(folders[0]))
        yield _Brokers(kafka, stack.enter_context(mosquitto.Mosquitto(folders[1], "sys_interval 1")))


def _to_kafka(events: int, brokers: _Brokers) -> _Rate:
    with _kafka(events, brokers) as sink:
        return _run(events, {"kafka": sink})


def _to_mqtt(events: int, brokers: _Brokers) -> _Rate:
    with _mqtt(events, brokers) as sink:
        return _run(events, {"mqtt": sink})


def _to_all(events: int, brokers: _Brokers) -> _Rate:
    with _kafka(events, brokers) as kafka, _mqtt(events, brokers) as mqtt, _webhook(events) as webhook:
        return _run(events, {"kafka": kafka, "mqtt": mqtt, "webhook": webhook, "out": {"type": "stdout"}})


def _run(events: int, everywhere: Mapping[str, _Sink]) -> _Rate:
    """Send, and wait until every sink has delivered all events."""
    with (
        tempfile.TemporaryDirectory() as directory,
        sender(f"--events={events}") as (source, url),
        bridge(Path(directory), {NAMESPACE: {"url": url}}, everywhere) as running,
    ):
        running.wait_for("event_bridge_stream_connected", 1)
        running.wait_for("event_bridge_sink_up", len(everywhere))
        cpu = running.cpu_seconds()
        source.go()
        first = float(source.answer()["first"])
        last = running.wait_for(DELIVERED, events * len(everywhere), _POLL_SECONDS)
        used = running.cpu_seconds() - cpu
        _compare("the bridge", int(running.metrics()[DELIVERED]), events * len(everywhere))
    return _Rate(events / (last - first), used / events * 1e6)


@contextmanager
def _kafka(events: int, brokers: _Brokers) -> Iterator[_Sink]:
    """Yield a sink with its own topic; then check the number of records by offsets."""
    topic, address = f"bench-{uuid.uuid4().hex[:8]}", brokers.kafka.address()
    kafka_broker.create_topic(address, topic)
    yield {"type": "kafka", "bootstrap_servers": address, "topic": topic}
    _compare("Kafka", kafka_broker.count_records(address, topic), events)


@contextmanager
def _mqtt(events: int, brokers: _Brokers) -> Iterator[_Sink]:
    """Yield a sink that publishes only events; then check the broker's count."""
    before = _published(brokers.mqtt)
    yield {"type": "mqtt", "url": brokers.mqtt.url, "availability_topic": None}
    deadline = time.monotonic() + 30.0
    # The broker counts once a second.
    while (got := _published(brokers.mqtt) - before) < events and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    _compare("MQTT", got, events)


@contextmanager
def _webhook(events: int) -> Iterator[_Sink]:
    """Yield a sink for a receiver; then check that no event is missing."""
    with receiver("webhook", f"--events={events}") as hook:
        yield {"type": "webhook", "url": f"http://127.0.0.1:{hook.answer()['port']}/", "format": "batch"}
        hook.answer()


def _published(broker: mosquitto.Mosquitto) -> int:
    """Return the number of publications that a broker has received."""
    topic = "$SYS/broker/publish/messages/received"
    return int(broker.retained(topic)[topic]["payload"])


def _compare(who: str, count: int, events: int) -> None:
    """Check the number of events.

    Raises:
        RuntimeError: It is wrong, and the figure would mean nothing.
    """
    if count != events:
        raise RuntimeError(f"{who} has {count} events, it should have {events}")
