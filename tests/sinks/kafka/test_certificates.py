"""The Kafka sink and certificates that end or are renewed, with a real broker of their own."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bridge.sink import Unavailable
from sinks.kafka.settings import KafkaSettings
from sinks.kafka.sink import KafkaSink
from tests.contract.harness import make_entries
from tests.support.servers import kafka_broker
from tests.support.servers.kafka_broker import Broker, create_topic
from tests.support.servers.mosquitto import Certificates
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(kafka_broker.available() is not None, reason=str(kafka_broker.available()))


@pytest.fixture(scope="module")
def certificates() -> Iterator[Certificates]:
    with tempfile.TemporaryDirectory() as folder:
        yield Certificates(Path(folder) / "ca")


@pytest.fixture(scope="module")
def broker(certificates: Certificates) -> Iterator[Broker]:
    """Its certificate has expired."""
    with tempfile.TemporaryDirectory() as folder:
        identity = certificates.issue("localhost", days=0)
        with Broker(Path(folder), identity=identity, clients=certificates.authority) as broker:
            create_topic(broker.address(), "events")
            broker.allow("*", "events", "WRITE", "DESCRIBE")
            yield broker


@pytest.fixture
def make(broker: Broker, certificates: Certificates) -> Iterator[Any]:
    made: list[KafkaSink] = []

    def make(listener: str, **settings: Any) -> KafkaSink:
        base = {"bootstrap_servers": broker.address(listener), "topic": "events", "connect_timeout": 3, "delivery_timeout": 3}
        settings = {**base, "ca_file": str(certificates.authority), **settings}
        made.append(KafkaSink("kafka", KafkaSettings.model_validate(settings)))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


def opens(sink: KafkaSink) -> bool:
    with suppress(Unavailable):
        sink.open()
        return True
    return False


def test_a_certificate_that_has_expired_is_called_so_until_it_is_renewed(
    make: Any, broker: Broker, certificates: Certificates
) -> None:
    sink = make("TLS")
    for _ in range(2):
        with pytest.raises(Unavailable) as unavailable:
            sink.open()
        assert unavailable.value.reason == "tls"
        assert str(unavailable.value).endswith("the broker's certificate is not accepted: certificate has expired")

    broker.renew(certificates.issue("localhost"))

    until(lambda: opens(sink), "the sink recovers")
    assert sink.deliver(make_entries(3)) == []


def test_our_own_certificate_is_read_again_whenever_the_sink_is_opened(
    make: Any, broker: Broker, certificates: Certificates, tmp_path: Path
) -> None:
    broker.renew(certificates.issue("localhost"))
    files = {"cert_file": tmp_path / "ours.crt", "key_file": tmp_path / "ours.key"}
    sink = make("MTLS", **{name: str(path) for name, path in files.items()})
    for wrong in (certificates.issue("expired", days=0), Certificates(tmp_path / "other", "other CA").issue("stranger")):
        copy(wrong, files)
        with pytest.raises(Unavailable) as unavailable:
            sink.open()
        assert unavailable.value.reason == "tls"
        assert "the broker does not accept our certificate" in str(unavailable.value)

    copy(certificates.issue("bridge"), files)

    sink.open()
    assert sink.deliver(make_entries(3)) == []


def copy(pair: tuple[Path, Path], files: dict[str, Path]) -> None:
    for source, target in zip(pair, files.values(), strict=True):
        shutil.copy(source, target)
