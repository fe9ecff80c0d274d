"""How many events per second go from the socket through the journal to where they are acknowledged: brokers, and all at once.

The brokers are real and run on this machine, with everything else. Where one can't be started, the figure says why.
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
from benchmarks.processes import bridge, receiver, sender
from tests import kafka_broker, mosquitto

_DELIVERED: Final = "event_bridge_sink_events_delivered_total"
_POLL: Final = 0.05
"""See `benchmarks.throughput`."""
_PATIENCE: Final = 30.0

_Sinks = Mapping[str, Mapping[str, object]]


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
    sink = _kafka(brokers)
    rate = _run(events, {"kafka": sink})
    _compare("Kafka", kafka_broker.count_records(brokers.kafka.address(), str(sink["topic"])), events)
    return rate


def _to_mqtt(events: int, brokers: _Brokers) -> _Rate:
    before = _published(brokers.mqtt)
    rate = _run(events, {"mqtt": _mqtt(brokers)})
    deadline = time.monotonic() + _PATIENCE
    # It counts once a second.
    while (got := _published(brokers.mqtt) - before) < events and time.monotonic() < deadline:
        time.sleep(_POLL)
    _compare("MQTT", got, events)
    return rate


def _to_all(events: int, brokers: _Brokers) -> _Rate:
    with receiver("webhook", f"--events={events}") as hook:
        url = f"http://127.0.0.1:{hook.answer()['port']}/"
        webhook = {"type": "webhook", "url": url, "format": "batch"}
        everywhere = {"kafka": _kafka(brokers), "mqtt": _mqtt(brokers), "webhook": webhook, "out": {"type": "stdout"}}
        rate = _run(events, everywhere)
        hook.answer()  # It tells whether anything is missing.
    return rate


def _run(events: int, everywhere: _Sinks) -> _Rate:
    """Send, and wait until every sink says that all is acknowledged."""
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
        last = running.wait_for(_DELIVERED, events * len(everywhere), _POLL)
        used = running.cpu_seconds() - cpu
        _compare("the bridge", int(running.metrics()[_DELIVERED]), events * len(everywhere))
    return _Rate(events / (last - first), used / events * 1e6)


def _kafka(brokers: _Brokers) -> Mapping[str, object]:
    """A sink for a topic of its own."""
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    kafka_broker.create_topic(brokers.kafka.address(), topic)
    return {"type": "kafka", "bootstrap_servers": brokers.kafka.address(), "topic": topic}


def _mqtt(brokers: _Brokers) -> Mapping[str, object]:
    """A sink that publishes nothing but events, so that the broker's count can be compared."""
    return {"type": "mqtt", "url": brokers.mqtt.url, "availability_topic": None}


def _published(broker: mosquitto.Mosquitto) -> int:
    """How many publications a broker has received."""
    topic = "$SYS/broker/publish/messages/received"
    return int(broker.retained(topic)[topic]["payload"])


def _compare(who: str, count: int, events: int) -> None:
    """Make sure that everything is where it should be.

    Raises:
        RuntimeError: It is not, so that the figure would mean nothing.
    """
    if count != events:
        raise RuntimeError(f"{who} has {count} events, it should have {events}")
