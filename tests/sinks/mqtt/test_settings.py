import re
import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from sinks.mqtt.settings import Address, MqttSettings, read_address


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://broker", Address("broker", 1883, tls=False, websocket_path=None)),
        ("MQTT://broker/", Address("broker", 1883, tls=False, websocket_path=None)),
        ("mqtts://broker", Address("broker", 8883, tls=True, websocket_path=None)),
        ("mqtts://[::1]:88", Address("::1", 88, tls=True, websocket_path=None)),
        ("ws://broker", Address("broker", 80, tls=False, websocket_path="/mqtt")),
        ("wss://broker:9001/a/b", Address("broker", 9001, tls=True, websocket_path="/a/b")),
    ],
)
def test_a_url_says_where_the_broker_is(url: str, address: Address) -> None:
    assert read_address(url) == address


def test_an_address_is_shown_as_people_write_it() -> None:
    assert str(read_address("mqtt://broker")) == "broker:1883"
    assert str(read_address("mqtt://[::1]")) == "[::1]:1883"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://broker", "must look like mqtt://"),
        ("broker:1883", "must look like mqtt://"),
        ("mqtt://", "must look like mqtt://"),
        ("mqtt://a b", "must look like mqtt://"),
        ("mqtt://broker:0", "must look like mqtt://"),
        ("mqtt://broker:99999", "not a URL"),
        ("mqtt://user:s3cret@broker", "has credentials in it"),
        ("mqtt://broker/topic", "has a path"),
        ("wss://broker/mqtt?token=s3cret", "can't have ? or #"),
    ],
)
def test_what_is_no_address_is_told_without_repeating_it(url: str, words: str) -> None:
    with pytest.raises(ValidationError) as error:
        MqttSettings(url=url)

    assert words in str(error.value)
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"topic": "docker/{typ}"}, "{typ} can't stand here"),
        ({"state_topic": "docker/{type}"}, "needs {resource_uuid} in it"),
        ({"state_topic": "docker/{resource_uuid}/#"}, "are for subscribers"),
        ({"availability_topic": "docker/{type}"}, "{type} can't stand here; fields are {name}"),
        ({"ca_file": "ca.pem"}, "`ca_file` is of no use without TLS"),
        ({"url": "mqtts://x", "key_file": "key.pem"}, "`key_file` is of no use without `cert_file`"),
        ({"url": "mqtts://x", "key_password": "s3cret"}, "`key_password` is of no use without `cert_file`"),
        ({"password": "s3cret"}, "`password` is of no use without `username`"),
        ({"protocol": "3.1.1", "expiry": 60}, "`expiry` needs `protocol: '5'`"),
        ({"client_id": "a\x00b"}, "`client_id` has characters"),
        ({"username": "a\nb"}, "`username` has characters"),
        ({"username": "a", "password": "s3cret" * 20_000}, "`password` is longer than MQTT allows"),
        ({"replace": {"": "_"}}, "at least 1 character"),
        ({"replace": {"ab": "_"}}, "at most 1 character"),
        ({"qos": 3}, "Input should be 0, 1 or 2"),
        ({"max_in_flight": 65_535}, "less than or equal to 60000"),
    ],
)
def test_what_does_not_fit_together_is_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        MqttSettings(**{"url": "mqtt://broker", **settings})

    assert words in str(error.value)
    assert "s3cret" not in str(error.value)


def test_secrets_are_not_shown() -> None:
    secret = SecretStr("s3cret")
    settings = MqttSettings(url="mqtts://broker", username="a", password=secret, cert_file=Path("c"), key_password=secret)

    assert "s3cret" not in repr(settings)
    assert "s3cret" not in settings.model_dump_json()


def test_the_client_id_tells_hosts_and_sinks_apart() -> None:
    settings = MqttSettings(url="mqtt://broker")

    assert re.fullmatch(rf"event-bridge-{socket.gethostname()}-home-[0-9a-f]{{6}}", settings.client_id_of("home"))
    assert settings.client_id_of("home") == settings.client_id_of("home")
    assert settings.model_copy(update={"client_id": "mine"}).client_id_of("home") == "mine"


def test_a_broker_that_can_not_tell_its_limit_gets_a_small_window() -> None:
    assert MqttSettings(url="mqtt://broker").window("5") == 1000
    assert MqttSettings(url="mqtt://broker").window("3.1.1") == 20
    assert MqttSettings(url="mqtt://broker", max_in_flight=500).window("3.1.1") == 500


def test_the_old_name_of_a_field_is_accepted_and_told() -> None:
    assert MqttSettings(url="mqtt://broker", topic="docker/{resource_uuid}").deprecations == []
    settings = MqttSettings(url="mqtt://broker", topic="docker/{id}", state_topic="state/{id}")
    assert settings.deprecations == [
        "topic: {id} is called {resource_uuid} now",
        "state_topic: {id} is called {resource_uuid} now",
    ]
