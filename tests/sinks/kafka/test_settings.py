from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bridge.sink import Unavailable
from sinks.kafka.settings import KafkaSettings, connection_options, producer_options
from tests.support.servers.receiver import make_certificate

PLACE: dict[str, Any] = {"bootstrap_servers": ["kafka:9092"], "topic": "docker-events"}
LOGIN: dict[str, Any] = {"username": "alice", "password": "hunter2"}


def test_servers_are_a_list_or_text_with_commas_and_the_port_may_be_left_out() -> None:
    assert KafkaSettings(**PLACE | {"bootstrap_servers": "a, b:1 ,[::1]:2"}).bootstrap_servers == ["a:9092", "b:1", "[::1]:2"]
    assert KafkaSettings(**PLACE).bootstrap_servers == ["kafka:9092"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bootstrap_servers": "kafka://kafka:9092"}, "a server is written `host:port`"),
        ({"bootstrap_servers": "kafka:0"}, "a server is written `host:port`"),
        ({"bootstrap_servers": "kafka:70000"}, "a server is written `host:port`"),
        ({"bootstrap_servers": ""}, "at least 1 item"),
        ({"bootstrap_servers": []}, "at least 1 item"),
        ({"topic": "a b"}, "can't stand in the name of a topic"),
        ({"topic": "{uuid}"}, "can't stand here"),
        ({"key": "{parents}"}, "can't stand here"),
        ({"acks": 2}, "Input should be 'all' or 1"),
        ({"acks": 0}, "Input should be 'all' or 1"),
        ({"compression": "brotli"}, "Input should be 'none', 'gzip'"),
        ({"sasl": "PLAIN"}, "`sasl: PLAIN` needs `username`"),
        ({"sasl": "SCRAM-SHA-256", "username": "alice"}, "`sasl: SCRAM-SHA-256` needs `password`"),
        ({"sasl": "OAUTHBEARER"}, "`sasl: OAUTHBEARER` needs `token`"),
        ({"sasl": "OAUTHBEARER", "token": "t", **LOGIN}, "`username` is of no use with OAUTHBEARER"),
        ({"sasl": "PLAIN", "token": "t", **LOGIN}, "`token` is of no use with PLAIN"),
        ({"sasl": "GSSAPI"}, "Input should be 'PLAIN'"),
        (LOGIN, "`username` is of no use without `sasl`"),
        ({"tls": False, "ca_file": "ca.pem"}, "`ca_file` is of no use with `tls: false`"),
        ({"key_file": "key.pem"}, "`key_file` is of no use without `cert_file`"),
        ({"key_password": "hunter2"}, "`key_password` is of no use without `cert_file`"),
        ({"sasl": "PLAIN", "username": "alice", "password": ""}, "`sasl: PLAIN` needs `password`, which is empty"),
        ({"sasl": "OAUTHBEARER", "token": ""}, "`sasl: OAUTHBEARER` needs `token`, which is empty"),
        ({"client_id": "two words"}, "String should match pattern"),
        ({"delivery_timeout": "10ms"}, "greater than or equal to 1"),
    ],
)
def test_what_the_client_library_would_take_silently_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as error:
        KafkaSettings(**PLACE | settings)
    assert words in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_compression_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "zstandard" else object())

    assert KafkaSettings(**PLACE, compression="lz4").compression == "lz4"
    with pytest.raises(ValidationError, match="zstd needs the package zstandard, which is not installed"):
        KafkaSettings(**PLACE, compression="zstd")


def test_acks_may_come_from_a_variable() -> None:
    assert KafkaSettings(**PLACE | {"acks": "1"}).acks == 1
    assert KafkaSettings(**PLACE).acks == "all"


def test_the_producer_is_never_idempotent_and_has_one_request_under_way() -> None:
    options = producer_options(KafkaSettings(**PLACE))

    assert options["enable_idempotence"] is False
    assert options["max_in_flight_requests_per_connection"] == 1
    assert options["acks"] == "all"
    assert options["compression_type"] is None
    assert options["allow_auto_create_topics"] is False


@pytest.mark.parametrize("timeout", [1, 2.5, 30, 3600])
def test_timeouts_fit_together_as_the_library_wants_them(timeout: float) -> None:
    settings = KafkaSettings(**PLACE, delivery_timeout=timeout)
    options = producer_options(settings) | connection_options(settings)

    assert options["delivery_timeout_ms"] >= options["linger_ms"] + options["request_timeout_ms"]


@pytest.mark.parametrize(
    ("settings", "protocol"),
    [
        ({}, "PLAINTEXT"),
        ({"tls": True}, "SSL"),
        ({"sasl": "PLAIN", **LOGIN}, "SASL_PLAINTEXT"),
        ({"sasl": "SCRAM-SHA-512", "tls": True, **LOGIN}, "SASL_SSL"),
    ],
)
def test_the_protocol_follows_from_tls_and_sasl(settings: dict[str, Any], protocol: str) -> None:
    assert connection_options(KafkaSettings(**PLACE, **settings))["security_protocol"] == protocol


def test_a_certificate_implies_tls_and_is_read_when_connecting(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, password="secret-of-the-key")
    ours: dict[str, Any] = {"ca_file": str(certificate), "cert_file": str(certificate), "key_file": str(key)}

    assert "ssl_context" in connection_options(KafkaSettings(**PLACE | ours | {"key_password": "secret-of-the-key"}))
    with pytest.raises(Unavailable, match="not usable with its key") as error:
        connection_options(KafkaSettings(**PLACE | ours | {"key_password": "wrong"}))
    assert error.value.reason == "tls"
    with pytest.raises(Unavailable, match=r"ca_file /nowhere\.pem: No such file"):
        connection_options(KafkaSettings(**PLACE, ca_file=Path("/nowhere.pem")))


def test_secrets_do_not_show() -> None:
    settings = KafkaSettings(**PLACE | LOGIN | {"sasl": "PLAIN", "cert_file": "our.pem", "key_password": "of-the-key"})

    assert "hunter2" not in repr(settings)
    assert "of-the-key" not in repr(settings)
    assert settings.secrets == ["hunter2", "of-the-key"]


def test_the_brokers_are_named_shortly() -> None:
    assert KafkaSettings(**PLACE).where == "kafka:9092"
    assert KafkaSettings(**PLACE | {"bootstrap_servers": "a:1,b:2,c:3"}).where == "a:1 and 2 more"
