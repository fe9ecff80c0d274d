from typing import Any

import pytest

from bridge.sink import Failure
from sinks.mqtt.packets import encode_publish
from sinks.mqtt.publication import PublicationEncoder
from sinks.mqtt.settings import MqttSettings
from tests.contract.harness import make_entry


def make(max_packet: int = 1 << 28, protocol: str = "5", **settings: Any) -> PublicationEncoder:
    return PublicationEncoder(MqttSettings(**{"url": "mqtt://broker", **settings}), protocol, max_packet)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("extra", [0, 1, 100, 20_000, 3_000_000])
def test_a_packet_may_be_as_large_as_the_broker_says_and_not_a_byte_more(protocol: str, extra: int) -> None:
    entry = make_entry(1, environment="x" * extra)
    (publication,) = make(protocol=protocol)(entry)  # type: ignore[misc]
    topic, payload, retain, properties = publication
    size = len(encode_publish(topic, payload, qos=1, retain=retain, packet_id=1, properties=properties))

    assert not isinstance(make(size, protocol=protocol)(entry), Failure)
    refused = make(size - 1, protocol=protocol)(entry)
    assert isinstance(refused, Failure)
    assert (refused.outcome, refused.reason) == ("rejected", "too_large")
    assert f"{size} bytes, and the broker takes {size - 1} at most" in refused.error


def test_a_topic_that_would_be_too_long_is_the_events_fault() -> None:
    refused = make()(make_entry(1, action="x" * 65_536))

    assert isinstance(refused, Failure)
    assert (refused.outcome, refused.reason) == ("rejected", "too_large")


def test_an_event_above_our_own_limit_is_not_sent() -> None:
    entry = make_entry(1)
    size = len(entry.json)

    refused = make(max_event_bytes=size - 1)(entry)

    assert isinstance(refused, Failure)
    assert (refused.outcome, refused.reason) == ("rejected", "too_large")
    assert refused.error == f"{size} bytes, more than `max_event_bytes`"
    assert not isinstance(make(max_event_bytes=size)(entry), Failure)


def test_characters_are_replaced_in_every_topic() -> None:
    entry = make_entry(1, state="Not running", resource_uri="/a/b c/")
    state, event = make(topic="d e/{state}", state_topic="s/{resource_uuid}", replace={" ": "_"})(entry)  # type: ignore[misc]

    assert (state.topic, event.topic) == (b"s/b_c", b"d e/Not_running")


def test_a_state_does_not_expire() -> None:
    state, event = make(expiry=60, state_topic="state/{resource_uuid}")(make_entry(1))  # type: ignore[misc]

    assert b"\x02\x00\x00\x00\x3c" in (event.properties or b"")
    assert b"\x02\x00\x00\x00\x3c" not in (state.properties or b"")
