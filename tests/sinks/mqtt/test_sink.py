"""The MQTT sink against a broker that does as it is told; what a real one does is in test_mqtt_client.py."""

import contextlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import structlog

from bridge.sink import Entry, Failure, Unavailable
from sinks.mqtt.settings import MqttSettings
from sinks.mqtt.sink import MqttSink
from tests.contract.harness import make_entries, make_entry
from tests.contract.mqtt_broker import Answer, Broker, Publish
from tests.support.failures import outcomes
from tests.support.waiting import until

MakeSink = Callable[..., MqttSink]


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.stop()


@pytest.fixture
def old_broker() -> Iterator[Broker]:
    broker = Broker("3.1.1")
    yield broker
    broker.stop()


@pytest.fixture
def make_sink() -> Iterator[MakeSink]:
    sinks: list[MqttSink] = []

    def make(broker: Broker, **settings: Any) -> MqttSink:
        sinks.append(MqttSink("home", MqttSettings(**{"url": broker.url, "timeout": 10.0, **settings})))
        return sinks[-1]

    yield make
    for sink in sinks:
        sink.close()


def connack(*properties: bytes) -> bytes:
    joined = b"".join(properties)
    return b"\x00\x00" + bytes((len(joined),)) + joined


def refuse(code: int, wanted: Callable[[Publish], bool]) -> Callable[[Publish], Answer]:
    return lambda publish: code if wanted(publish) else 0


def wait_until_gone(sink: MqttSink) -> Unavailable:
    """Look, without an event, until the connection is gone; return why."""
    errors: list[Unavailable] = []

    def is_gone() -> bool:
        try:
            sink.check_connection()
        except Unavailable as error:
            errors.append(error)
        return bool(errors)

    until(is_gone, "it is noticed", 10)
    return errors[0]


def forward(sink: MqttSink, entries: Sequence[Entry], attempts: int = 20) -> tuple[Sequence[Failure], list[Unavailable]]:
    """Offer entries until the sink takes them, as the forwarder does it."""
    left = list(entries)
    unavailable: list[Unavailable] = []
    for _ in range(attempts):
        try:
            sink.open()
            return sink.deliver(left), unavailable
        except Unavailable as error:
            unavailable.append(error)
            left = [entry for entry in left if entry.seq not in error.delivered]
            sink.close()
    raise AssertionError(f"not delivered: {unavailable[-1]}")


@pytest.mark.parametrize("qos", [1, 2])
def test_a_topic_that_is_denied_stops_nothing_but_its_own_resources(broker: Broker, make_sink: MakeSink, qos: int) -> None:
    entries = [make_entry(seq, f"web-{seq % 3}", type="service" if seq % 3 == 0 else "container") for seq in range(1, 13)]
    broker.answer = refuse(0x87, lambda publish: "/service/" in publish.topic)
    sink = make_sink(broker, qos=qos)
    sink.open()

    failures = sink.deliver(entries)

    assert outcomes(failures) == {
        3: ("retry", "unauthorized"),
        **dict.fromkeys((6, 9, 12), ("held", "held")),
    }
    assert "docker/acme/service/update: not authorized" in next(failure.error for failure in failures if failure.seq == 3)
    assert len(broker.published) == 8
    assert len(broker.tried) == 9


def test_a_second_half_of_qos_2_that_fails_is_no_delivery(broker: Broker, make_sink: MakeSink) -> None:
    broker.complete = 0x92
    sink = make_sink(broker, qos=2)
    sink.open()

    assert outcomes(sink.deliver([make_entry(1)])) == {1: ("retry", "server_error")}


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0x80, ("retry", "server_error")),
        (0x83, ("retry", "server_error")),
        (0x90, ("rejected", "rejected")),
        (0x95, ("rejected", "too_large")),
        (0x99, ("rejected", "rejected")),
        (0xC7, ("retry", "server_error")),
    ],
)
def test_a_reason_code_decides_what_becomes_of_an_event(
    broker: Broker, make_sink: MakeSink, code: int, outcome: tuple[str, str]
) -> None:
    broker.answer = lambda _: code
    sink = make_sink(broker)
    sink.open()

    assert outcomes(sink.deliver([make_entry(1)])) == {1: outcome}


def test_no_subscriber_is_no_failure(broker: Broker, make_sink: MakeSink) -> None:
    broker.answer = lambda _: 0x10
    sink = make_sink(broker)
    sink.open()

    assert sink.deliver(make_entries(3)) == []


def test_a_quota_is_the_brokers_fault_and_what_was_taken_is_told(broker: Broker, make_sink: MakeSink) -> None:
    broker.answer = lambda _: 0x97 if len(broker.published) >= 5 else 0
    sink = make_sink(broker)
    sink.open()

    with pytest.raises(Unavailable, match="quota exceeded") as unavailable:
        sink.deliver(make_entries(50, resources=50))

    assert unavailable.value.reason == "throttled"
    assert len(unavailable.value.delivered) == 5


def test_an_event_is_not_sent_before_the_one_of_its_resource_before_it_is_acknowledged(
    broker: Broker, make_sink: MakeSink
) -> None:
    entries = [make_entry(1, "a"), make_entry(2, "a"), make_entry(3, "b"), make_entry(4, "b"), make_entry(5, "c")]
    broker.answer = lambda publish: None if publish.payload == entries[0].json else 0
    sink = make_sink(broker, timeout=0.3)
    sink.open()

    with pytest.raises(Unavailable) as unavailable:
        sink.deliver(entries)

    assert set(unavailable.value.delivered) == {3, 4, 5}
    assert entries[1].json not in [publish.payload for publish in broker.tried]


def test_without_order_nobody_waits_for_anybody(broker: Broker, make_sink: MakeSink) -> None:
    broker.answer = lambda _: None
    sink = make_sink(broker, ordering="none", timeout=0.3)
    sink.open()

    with pytest.raises(Unavailable):
        sink.deliver(make_entries(30, resources=1))

    assert len(broker.tried) == 30


@pytest.mark.parametrize("most", [1, 7])
def test_no_more_is_on_its_way_than_the_broker_wants(broker: Broker, make_sink: MakeSink, most: int) -> None:
    broker.connack = connack(b"\x21" + struct.pack(">H", most))
    broker.answer = lambda _: None
    sink = make_sink(broker, timeout=0.3)
    sink.open()

    with pytest.raises(Unavailable):
        sink.deliver(make_entries(50, resources=50))

    assert len(broker.tried) == most


@pytest.mark.parametrize("qos", [1, 2])
def test_a_broker_that_wants_one_at_a_time_gets_one_at_a_time(broker: Broker, make_sink: MakeSink, qos: int) -> None:
    entries = make_entries(50, resources=50)
    broker.connack = connack(b"\x21\x00\x01")
    sink = make_sink(broker, qos=qos, state_topic="state/{resource_uuid}")
    sink.open()

    assert sink.deliver(entries) == []

    assert [publish.payload for publish in broker.published] == [entry.json for entry in entries for _ in range(2)]


def test_no_more_is_on_its_way_than_we_want(old_broker: Broker, make_sink: MakeSink) -> None:
    old_broker.answer = lambda _: None
    sink = make_sink(old_broker, protocol="3.1.1", max_in_flight=3, timeout=0.3)
    sink.open()

    with pytest.raises(Unavailable):
        sink.deliver(make_entries(50, resources=50))

    assert len(old_broker.tried) == 3


def test_what_the_broker_would_not_take_is_not_sent(broker: Broker, make_sink: MakeSink) -> None:
    broker.connack = connack(b"\x27" + struct.pack(">I", 2000))
    sink = make_sink(broker)
    sink.open()
    entries = [make_entry(1, "a"), make_entry(2, "a", environment="x" * 2000), make_entry(3, "a")]

    failures = sink.deliver(entries)

    assert outcomes(failures) == {2: ("rejected", "too_large")}
    assert "the broker takes 2000 at most" in failures[0].error
    assert [publish.payload for publish in broker.tried] == [entries[0].json, entries[2].json]


def test_a_broker_that_falls_silent_is_a_timeout_and_is_left_without_a_goodbye(broker: Broker, make_sink: MakeSink) -> None:
    broker.answer = lambda _: 0 if len(broker.tried) <= 10 else None
    sink = make_sink(broker, timeout=0.3)
    sink.open()

    with pytest.raises(Unavailable, match=r"no acknowledgement within 0\.3 s") as unavailable:
        sink.deliver(make_entries(40, resources=40))
    sink.close()

    assert unavailable.value.reason == "timeout"
    assert len(unavailable.value.delivered) == 10
    assert broker.goodbyes == 0
    assert broker.availability == [b"online"]


def test_a_slow_broker_has_time_as_long_as_it_acknowledges_something(broker: Broker, make_sink: MakeSink) -> None:
    def answer(_: Publish) -> Answer:
        time.sleep(0.1)
        return 0

    broker.answer = answer
    sink = make_sink(broker, timeout=0.5)
    sink.open()

    assert sink.deliver(make_entries(8, resources=8)) == []


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("ends", [True, False], ids=["ends the connection", "never acknowledges"])
def test_an_event_that_breaks_every_connection_waits_and_all_others_arrive(
    broker: Broker, make_sink: MakeSink, qos: int, *, ends: bool
) -> None:
    entries = make_entries(40, resources=10)
    poison, same = entries[13], [entry for entry in entries if entry.seq % 10 == 4]

    def answer(publish: Publish) -> Answer:
        if publish.payload != poison.json:
            return 0
        broker.pong = ends
        return b"" if ends else None

    broker.answer = answer
    sink = make_sink(broker, qos=qos, timeout=10.0 if ends else 0.3)

    def reset_and_open() -> None:
        broker.pong = True
        MqttSink.open(sink)

    sink.open = reset_and_open  # type: ignore[method-assign]
    failures, unavailable = forward(sink, entries)

    arrived = {publish.payload for publish in broker.published}
    expected = {entry.json for entry in entries} - {poison.json}
    behind = {entry.json for entry in same[2:]}
    found = outcomes(failures)
    assert found.pop(poison.seq) == ("retry", "server_error")
    if qos:
        assert arrived == expected - behind
        assert found == dict.fromkeys((24, 34), ("held", "held"))
    assert expected - behind <= arrived
    assert len(unavailable) <= 5
    assert {error.reason for error in unavailable} == {"unreachable" if ends else "timeout"}


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("window", [1, 20])
def test_a_broker_that_closes_at_some_topics_takes_all_others_soon(make_sink: MakeSink, protocol: str, window: int) -> None:
    """nats-server 2.15.2 sends FIN at a space in a topic, aedes 1.2.0 at one that it does not authorize."""
    kinds = ("container", "service", "stack")
    entries = [
        make_entry(seq, f"web-{seq}", type=kinds[seq // 5 % 3], state="Not running" if seq % 5 == 4 else "Running")
        for seq in range(60)
    ]
    broker = Broker(protocol)
    broker.answer = lambda publish: b"" if " " in publish.topic else 0
    sink = make_sink(broker, protocol=protocol, topic="docker/{type}/{state}", max_in_flight=window)

    failures, unavailable = forward(sink, entries)
    connections, tried = len(broker.connects), len(broker.tried)
    later = [*make_entries(10), *[make_entry(seq, f"{seq}", type="stack", state="Not running") for seq in range(100, 110)]]
    more = sink.deliver(later)
    broker.stop()

    assert {publish.payload for publish in broker.published} >= {entry.json for entry in entries if entry.seq % 5 != 4}
    assert outcomes(failures) == dict.fromkeys(range(4, 60, 5), ("retry", "server_error"))
    assert {failure.error.partition(" topic ")[2].partition(";")[0] for failure in failures} == {
        f"docker/{kind}/Not running" for kind in kinds
    }
    assert len(unavailable) == 1
    assert connections <= 3 + 2 * len(kinds) + 1, "each event would have its own"
    assert not [error for error in unavailable if error.retry_after], str(unavailable)
    assert outcomes(more) == dict.fromkeys(range(100, 110), ("retry", "server_error"))
    assert len(broker.connects) == connections
    assert len(broker.tried) == tried + 10


def test_a_broker_that_closes_at_large_events_is_asked_about_the_size_once(make_sink: MakeSink) -> None:
    """Rumqttd 0.20.0 resets the connection above 20,480 bytes, also with MQTT 5, and announces no limit."""
    entries = [make_entry(seq, f"web-{seq}", environment="x" * (3000 if seq % 5 == 4 else 0)) for seq in range(60)]
    broker = Broker()
    broker.answer = lambda publish: b"" if len(publish.payload) > 2048 else 0
    sink = make_sink(broker, max_in_flight=10, topic="docker/{namespace}/{resource_uuid}")

    failures, unavailable = forward(sink, entries)
    failures_of_one, none = forward(sink, [make_entry(100, "new", environment="x" * 4000)])
    broker.stop()

    assert {publish.payload for publish in broker.published} == {entry.json for entry in entries if entry.seq % 5 != 4}
    assert outcomes(failures) == dict.fromkeys(range(4, 60, 5), ("retry", "server_error"))
    assert len(broker.connects) <= 1 + 6 + 2 * 3 + 1
    assert len(unavailable) <= 6
    assert not none
    assert "bytes and more; those above `max_event_bytes` become dead letters" in failures_of_one[0].error


def test_connections_that_break_over_nothing_in_flight_are_another_clients_doing_perhaps(
    broker: Broker, make_sink: MakeSink
) -> None:
    sink = make_sink(broker, client_id="ours")
    for times in range(1, 5):
        sink.open()
        broker.end_connections()
        error = wait_until_gone(sink)

        assert ("is there another client with the `client_id` ours?" in str(error)) is (times > 2)
        assert error.retry_after == (float(times) if times > 2 else None)


def test_an_event_that_was_poison_once_may_arrive_later(broker: Broker, make_sink: MakeSink) -> None:
    poison = make_entry(1)
    broker.answer = lambda _: b""
    sink = make_sink(broker)
    failures, _ = forward(sink, [poison])
    assert outcomes(failures) == {1: ("retry", "server_error")}

    broker.answer = lambda _: 0

    assert sink.deliver([poison]) == []
    assert sink.deliver([poison]) == []


def test_a_broker_that_never_takes_anything_is_at_fault_itself(broker: Broker, make_sink: MakeSink) -> None:
    broker.answer = lambda _: b""
    sink = make_sink(broker, availability_topic=None)

    with pytest.raises(AssertionError, match=r"not delivered: .*the broker closed the connection"):
        forward(sink, make_entries(5), attempts=10)


def test_an_event_that_breaks_every_connection_does_not_keep_others_back_without_an_availability_topic(
    broker: Broker, make_sink: MakeSink
) -> None:
    entries = make_entries(5)
    broker.answer = lambda publish: b"" if publish.payload == entries[0].json else 0
    sink = make_sink(broker, availability_topic=None, max_in_flight=1)

    for _ in range(5):
        try:
            sink.open()
            sink.deliver([entry for entry in entries if entry.json not in {one.payload for one in broker.published}])
        except Unavailable:
            sink.close()

    assert {publish.payload for publish in broker.published} == {entry.json for entry in entries[1:]}


def test_a_packet_that_the_broker_calls_too_large_in_parting_is_rejected(broker: Broker, make_sink: MakeSink) -> None:
    entries = make_entries(10)
    broker.answer = lambda publish: b"\xe0\x01\x95" if publish.payload == entries[5].json else 0
    sink = make_sink(broker)

    failures, _ = forward(sink, entries)

    assert outcomes(failures) == {6: ("rejected", "too_large")}
    assert {publish.payload for publish in broker.published} == {entry.json for entry in entries} - {entries[5].json}


def test_what_was_acknowledged_before_the_broker_says_goodbye_is_delivered(broker: Broker, make_sink: MakeSink) -> None:
    def answer(publish: Publish) -> Answer:
        if len(broker.tried) < 20:
            return None
        acknowledged = [b"\x40\x02" + struct.pack(">H", other.packet_id) for other in broker.tried if other is not publish]
        return b"".join(acknowledged) + b"\xe0\x01\x8b"

    broker.answer = answer
    sink = make_sink(broker)
    sink.open()

    with pytest.raises(Unavailable, match="server shutting down") as unavailable:
        sink.deliver(make_entries(20, resources=20))

    assert len(unavailable.value.delivered) == 19


@pytest.mark.parametrize("nonsense", [b"\x40\x00", b"\x50\x01\x00", b"\x70\x00"])
def test_an_acknowledgement_of_nothing_is_the_brokers_fault(broker: Broker, make_sink: MakeSink, nonsense: bytes) -> None:
    broker.answer = lambda publish: b"\x40\x02" + struct.pack(">H", publish.packet_id) + nonsense
    sink = make_sink(broker, max_in_flight=1)
    sink.open()

    with pytest.raises(Unavailable, match="the broker sent an acknowledgement of nothing") as unavailable:
        sink.deliver(make_entries(3))

    assert unavailable.value.reason == "server_error"
    assert len(unavailable.value.delivered) == 1


def test_a_session_that_is_taken_over_is_told_and_not_taken_back_at_once(broker: Broker, make_sink: MakeSink) -> None:
    sink = make_sink(broker)
    sink.open()
    broker.end_connections(b"\xe0\x01\x8e")

    with pytest.raises(Unavailable, match="another client with this `client_id`") as unavailable:
        sink.deliver(make_entries(1))

    assert unavailable.value.retry_after == 30


@pytest.mark.parametrize(
    ("farewell", "reason", "words"),
    [
        (b"\xe0\x00", "unreachable", "the broker closed the connection"),
        (b"\xe0\x01\x89", "throttled", "the broker ended the connection: server busy"),
        (b"\xe0\x01\x8b", "unreachable", "the broker ended the connection: server shutting down"),
        (b"\xe0\x01\x8d", "timeout", "the broker ended the connection: keep alive timeout"),
        (b"\xe0\x01\x93", "server_error", "the broker ended the connection: receive maximum exceeded; set a smaller"),
        (b"\xe0\x01\x96", "throttled", "the broker ended the connection: too high a rate"),
        (b"\xe0\x01\x97", "throttled", "the broker ended the connection: quota exceeded"),
        (b"\xe0\x01\x98", "unreachable", "the broker ended the connection: closed by an administrator"),
        (b"\xe0\x01\x9c", "not_found", "the broker ended the connection: the broker wants us to use another server"),
        (b"\xe0\x02\x9d\x00", "not_found", "the broker ended the connection: the broker has moved"),
        (b"\xe0\x01\xc7", "server_error", "the broker ended the connection: reason code 0xc7"),
    ],
    ids=lambda value: value.hex() if isinstance(value, bytes) else "",
)
def test_the_broker_says_why_it_ends_the_connection_and_an_idle_sink_hears_it(
    broker: Broker, make_sink: MakeSink, farewell: bytes, reason: str, words: str
) -> None:
    sink = make_sink(broker, username="bridge", password="s3cret")
    sink.open()
    sink.check_connection()
    broker.end_connections(farewell)

    error = wait_until_gone(sink)

    assert error.reason == reason
    assert words in str(error)
    assert "s3cret" not in str(error)
    sink.close()
    assert forward(sink, make_entries(3)) == ([], [])


def test_a_connection_that_was_lost_while_idle_is_noticed_before_anything_is_sent(broker: Broker, make_sink: MakeSink) -> None:
    sink = make_sink(broker)
    sink.open()
    broker.end_connections()

    with pytest.raises(Unavailable, match="the broker closed the connection") as unavailable:
        sink.check_connection()

    assert unavailable.value.reason == "unreachable"
    assert not unavailable.value.delivered


def test_an_idle_connection_is_kept_alive(broker: Broker, make_sink: MakeSink) -> None:
    sink = make_sink(broker, keepalive=2)
    sink.open()

    until(lambda: broker.pings >= 2, "there are pings", 10)

    assert sink.deliver(make_entries(3)) == []
    assert len(broker.connects) == 1


def test_a_broker_that_does_not_answer_pings_is_gone(broker: Broker, make_sink: MakeSink) -> None:
    broker.pong = False
    sink = make_sink(broker, keepalive=2, timeout=0.3)
    sink.open()
    until(lambda: broker.pings >= 1, "there is a ping", 10)
    broker.gate.clear()

    assert "no answer to a ping" in str(wait_until_gone(sink))


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (0x84, "server_error", "unsupported protocol version"),
        (0x86, "unauthorized", "bad user name or password"),
        (0x87, "unauthorized", "not authorized"),
        (0x89, "throttled", "server busy"),
        (0x97, "throttled", "quota exceeded"),
        (0x9A, "rejected", "retain not supported; set `retain: false`, `availability_topic: null`"),
        (0x9B, "rejected", "QoS not supported; set a smaller `qos`"),
        (0x9C, "not_found", "use another server"),
        (0x9D, "not_found", "the broker has moved"),
        (1, "server_error", "unsupported protocol version"),
        (5, "unauthorized", "not authorized"),
    ],
)
def test_a_refused_connection_tells_why_without_secrets(
    broker: Broker, make_sink: MakeSink, code: int, reason: str, words: str
) -> None:
    broker.connack = bytes((0, code, 0))
    sink = make_sink(broker, username="bridge", password="s3cret")

    with pytest.raises(Unavailable, match=words) as unavailable:
        sink.open()

    assert unavailable.value.reason == reason
    assert "s3cret" not in str(unavailable.value)
    assert b"s3cret" in broker.connects[0]


def test_a_refused_version_is_not_replaced_by_an_older_one(old_broker: Broker, make_sink: MakeSink) -> None:
    old_broker.connack = b"\x00\x01"
    sink = make_sink(old_broker, protocol="3.1.1")

    with pytest.raises(Unavailable, match="unsupported protocol version"):
        sink.open()

    assert len(old_broker.connects) == 1


@pytest.mark.parametrize(
    ("connack_body", "settings", "words"),
    [
        (connack(b"\x24\x01"), {"qos": 2}, "can't do QoS 2; set `qos: 1`"),
        (connack(b"\x24\x00"), {"qos": 1}, "can't do QoS 1; set `qos: 0`"),
        (connack(b"\x25\x00"), {"retain": True}, "can't retain"),
        (connack(b"\x25\x00"), {"state_topic": "s/{resource_uuid}"}, "can't retain"),
        (b"\x00\x00\x01\xff", {}, "malformed CONNACK"),
        (b"\x00", {}, "not MQTT"),
    ],
)
def test_a_broker_that_can_not_do_what_is_set_tells_how_to_set_it(
    broker: Broker, make_sink: MakeSink, connack_body: bytes, settings: dict[str, Any], words: str
) -> None:
    broker.connack = connack_body

    with pytest.raises(Unavailable, match=words):
        make_sink(broker, **settings).open()


@pytest.mark.parametrize("answer", [None, b"\x00\x01"], ids=["hangs up", "says so"])
def test_a_broker_that_knows_only_3_1_1_is_spoken_to_in_3_1_1(
    old_broker: Broker, make_sink: MakeSink, answer: bytes | None
) -> None:
    old_broker.other_version = answer
    sink = make_sink(old_broker, qos=1)

    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            sink.open()
            assert sink.deliver(make_entries(50)) == []

    assert [body[6] for body in old_broker.connects] == [5, 4, 5, 4]
    assert [(log["log_level"], log["event"]) for log in logs] == [
        ("warning", "the broker knows only MQTT 3.1.1, in which it can't say that it refused an event")
    ]


@pytest.mark.parametrize("settings", [{"protocol": "5"}, {"expiry": 60}])
def test_a_version_that_was_chosen_is_not_replaced_and_the_hint_names_it(
    old_broker: Broker, make_sink: MakeSink, settings: dict[str, Any]
) -> None:
    old_broker.other_version = None

    with pytest.raises(
        Unavailable, match=r"closed the connection; perhaps the broker knows only MQTT 3\.1\.1 \(set `protocol`\)"
    ):
        make_sink(old_broker, **settings).open()

    assert len(old_broker.connects) == 1


@pytest.mark.parametrize("settings", [{}, {"protocol": "3.1.1"}])
def test_a_broker_that_hangs_up_over_the_will_gets_a_hint(
    old_broker: Broker, make_sink: MakeSink, settings: dict[str, Any]
) -> None:
    old_broker.takes_will = False

    with pytest.raises(Unavailable, match="perhaps the broker does not take our will, which is retained") as unavailable:
        make_sink(old_broker, **settings).open()

    assert unavailable.value.reason == "unreachable"
    make_sink(old_broker, availability_topic=None, **settings).open()


def test_what_the_older_version_is_refused_for_is_told(old_broker: Broker, make_sink: MakeSink) -> None:
    old_broker.other_version, old_broker.connack = None, b"\x00\x04"

    with pytest.raises(Unavailable, match="bad user name or password"):
        make_sink(old_broker).open()


def test_qos_2_that_is_acknowledged_as_qos_1_is_delivered_with_one_warning(old_broker: Broker, make_sink: MakeSink) -> None:
    """RabbitMQ 3.10.8 answers `40 02 <packet identifier>` to a PUBLISH with QoS 2."""
    old_broker.ends_qos_2_with = 0x40
    sink = make_sink(old_broker, protocol="3.1.1", qos=2, state_topic="state/{resource_uuid}", timeout=2.0)
    sink.open()

    with structlog.testing.capture_logs() as logs:
        for _ in range(2):
            assert sink.deliver(make_entries(50)) == []

    assert len(old_broker.published) == 200
    assert [log["event"] for log in logs] == ["the broker does QoS 2 as QoS 1: events may arrive twice; set `qos: 1`"]


def test_a_broker_that_does_not_answer_is_a_timeout(broker: Broker, make_sink: MakeSink) -> None:
    broker.gate.clear()

    with pytest.raises(Unavailable, match=r"no answer to CONNECT within 0\.3 s") as unavailable:
        make_sink(broker, timeout=0.3).open()

    assert unavailable.value.reason == "timeout"


@pytest.mark.parametrize(
    ("scheme", "beginning", "words"),
    [
        ("mqtt", b"\x20\x7f", r"no answer to CONNECT within 0\.2 s"),
        ("ws", b"HTTP/1.1 101 Sw", r"no connection within (0\.[6-9]|\d\.?\d?) s"),
        ("mqtts", b"\x16\x03\x03\x40\x00", r"no connection within (0\.[6-9]|\d\.?\d?) s"),
        ("wss", b"\x16\x03\x03\x40\x00", r"no connection within (0\.[6-9]|\d\.?\d?) s"),
    ],
)
def test_a_broker_that_answers_drop_by_drop_is_a_timeout(
    scheme: str, beginning: bytes, words: str, make_sink: MakeSink, broker: Broker
) -> None:
    def drip(listener: socket.socket) -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(beginning)
            while not left.wait(0.02):
                connection.sendall(b"H")

    left = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dripping = threading.Thread(target=drip, args=(listener,))
        dripping.start()
        sink = make_sink(broker, url=f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", timeout=0.2)
        before = time.monotonic()
        with pytest.raises(Unavailable, match=words) as unavailable:
            sink.open()
        assert time.monotonic() - before < 10, "it would never end"
        left.set()
        dripping.join()
    assert unavailable.value.reason == "timeout"


def test_a_connection_that_comes_too_late_sends_no_connect(
    broker: Broker, make_sink: MakeSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, resolve = threading.Event(), socket.getaddrinfo

    def hang(*args: Any, **options: Any) -> Any:
        answer.wait(10)
        return resolve(*args, **options)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        sink = make_sink(broker, url=f"mqtt://127.0.0.1:{listener.getsockname()[1]}", timeout=0.1)
        monkeypatch.setattr(socket, "getaddrinfo", hang)
        with pytest.raises(Unavailable, match="no connection within"):
            sink.open()
        answer.set()
        with listener.accept()[0] as connection:
            assert connection.recv(4096) == b""


def test_online_comes_first_and_offline_last(broker: Broker, make_sink: MakeSink) -> None:
    sink = make_sink(broker)
    sink.open()
    assert broker.availability == [b"online"]
    sink.deliver(make_entries(2))

    sink.close()

    assert broker.availability == [b"online", b"offline"]
    until(lambda: broker.goodbyes == 1)
    assert b"docker/bridge/home" in broker.connects[0]


def test_without_an_availability_topic_nobody_is_told(broker: Broker, make_sink: MakeSink) -> None:
    sink = make_sink(broker, availability_topic=None)
    sink.open()
    sink.close()

    until(lambda: broker.goodbyes == 1)
    assert broker.availability == []
    assert b"offline" not in broker.connects[0]


def test_closing_ends_a_delivery_in_another_thread(broker: Broker, make_sink: MakeSink) -> None:
    broker.answer = lambda _: None
    sink = make_sink(broker, timeout=60.0)
    sink.open()
    errors: list[Unavailable] = []

    def deliver() -> None:
        try:
            sink.deliver(make_entries(1))
        except Unavailable as error:
            errors.append(error)

    thread = threading.Thread(target=deliver, daemon=True)
    thread.start()
    until(lambda: len(broker.tried) == 1)
    began = time.monotonic()
    sink.close()
    thread.join(10)

    assert [error.reason for error in errors] == ["unreachable"]
    assert time.monotonic() - began < 9


def test_closing_does_not_wait_for_acknowledgements(broker: Broker, make_sink: MakeSink) -> None:
    sink = make_sink(broker, timeout=0.3)
    sink.open()
    broker.gate.clear()
    with pytest.raises(Unavailable):
        sink.deliver(make_entries(10))

    closing = threading.Thread(target=sink.close, daemon=True)
    closing.start()
    closing.join(5)

    assert not closing.is_alive()


def test_no_thread_of_the_library_runs_and_ours_ends_with_the_connection(broker: Broker, make_sink: MakeSink) -> None:
    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.endswith("keepalive")]

    sink = make_sink(broker, client_id="one")
    sink.open()
    sink.deliver(make_entries(10))

    assert "one keepalive" in ours()
    assert not [thread.name for thread in threading.enumerate() if "paho" in thread.name]
    sink.close()
    until(lambda: "one keepalive" not in ours())


def test_names_that_mqtt_forbids_do_not_reach_the_broker(broker: Broker, make_sink: MakeSink) -> None:
    entries = [
        make_entry(1, state="Half\x00\x07way\uffff", action="a/b+c#d\x00", type="$sys"),
        make_entry(2, state="", action="", resource_uri=""),
    ]
    sink = make_sink(broker, state_topic="docker/{namespace}/state/{type}/{resource_uuid}/{state}")
    sink.open()

    assert sink.deliver(entries) == []

    topics = [publish.topic for publish in broker.published]
    uuid = entries[0].fields.resource_uri.split("/")[-2]
    assert sorted(topics) == [
        "docker/acme/_sys/a_b_c_d_",
        "docker/acme/container/_",
        f"docker/acme/state/_sys/{uuid}/Half__way_",
        "docker/acme/state/container/_/_",
    ]
    assert b"Half__way_" in broker.published[0].properties


def test_the_last_state_of_a_resource_is_retained_until_it_is_gone(broker: Broker, make_sink: MakeSink) -> None:
    running, gone = make_entry(1, "a"), make_entry(2, "a", state="terminated")
    sink = make_sink(broker, state_topic="state/{resource_uuid}")
    sink.open()

    assert sink.deliver([running, gone]) == []

    assert [(publish.topic.split("/")[0], publish.payload, publish.retain) for publish in broker.published] == [
        ("state", running.json, True),
        ("docker", running.json, False),
        ("state", b"", True),
        ("docker", gone.json, False),
    ]


@pytest.mark.parametrize("qos", [1, 2])
def test_an_event_whose_state_is_refused_is_not_published_however_often_it_is_tried(
    broker: Broker, make_sink: MakeSink, qos: int
) -> None:
    broker.answer = refuse(0x87, lambda publish: publish.topic.startswith("state/"))
    sink = make_sink(broker, state_topic="state/{type}/{resource_uuid}", qos=qos)
    sink.open()

    for _ in range(3):
        failures = sink.deliver([make_entry(1, "a"), make_entry(2, "a"), make_entry(3, "b")])
        assert outcomes(failures) == {1: ("retry", "unauthorized"), 2: ("held", "held"), 3: ("retry", "unauthorized")}
        assert "topic state/container/" in failures[0].error
    assert broker.published == []


def test_an_event_that_is_refused_itself_has_published_its_state_alone(broker: Broker, make_sink: MakeSink) -> None:
    broker.answer = refuse(0x87, lambda publish: publish.topic.startswith("docker/"))
    sink = make_sink(broker, state_topic="state/{resource_uuid}")
    sink.open()

    assert outcomes(sink.deliver([make_entry(1, "a"), make_entry(2, "a")])) == {
        1: ("retry", "unauthorized"),
        2: ("held", "held"),
    }
    assert [publish.topic.split("/")[0] for publish in broker.published] == ["state"]


def test_qos_0_publishes_the_state_of_each_event_before_it(broker: Broker, make_sink: MakeSink) -> None:
    sink = make_sink(broker, qos=0, state_topic="state/{resource_uuid}")
    sink.open()

    assert sink.deliver(make_entries(3)) == []

    assert [publish.topic.split("/")[0] for publish in broker.published] == ["state", "docker"] * 3
    assert broker.pings == 2


def test_qos_0_is_delivered_when_the_broker_has_read_it(broker: Broker, make_sink: MakeSink) -> None:
    sink = make_sink(broker, qos=0)
    sink.open()

    assert sink.deliver(make_entries(100)) == []

    assert len(broker.published) == 100
    assert broker.pings == 2


def test_qos_0_without_an_answer_to_the_ping_is_not_delivered(broker: Broker, make_sink: MakeSink) -> None:
    sink = make_sink(broker, qos=0, timeout=0.3)
    sink.open()
    broker.pong = False

    with pytest.raises(Unavailable, match="no acknowledgement") as unavailable:
        sink.deliver(make_entries(10))

    assert not unavailable.value.delivered


def test_more_than_all_packet_numbers_go_through_one_connection(broker: Broker, make_sink: MakeSink) -> None:
    sink = make_sink(broker, ordering="none")
    sink.open()
    entries = make_entries(1000)

    for _ in range(3):
        assert sink.deliver(entries * 23) == []

    counts = Counter(publish.payload for publish in broker.published)
    assert set(counts.values()) == {69}
    assert len(broker.published) == 69_000
