"""One connection to a broker that does as it is told."""

from collections.abc import Iterator

import pytest

from bridge.sink import Unavailable
from sinks import mqtt_packets as packets
from sinks.mqtt_client import Profile
from sinks.mqtt_connection import Connection
from sinks.mqtt_settings import read_address
from tests.contract.mqtt_broker import Broker


@pytest.fixture
def broker() -> Iterator[Broker]:
    broker = Broker()
    yield broker
    broker.stop()


@pytest.fixture
def connection(broker: Broker) -> Iterator[Connection]:
    connection = Connection(
        Profile(
            address=read_address(broker.url),
            protocol="5",
            client_id="home",
            username=None,
            password=None,
            context=None,
            timeout=10.0,
            keepalive=30,
            will=None,
        )
    )
    yield connection
    connection.close()


def send_until_it_fails(connection: Connection) -> None:
    while True:
        connection.send(packets.PING)


def test_what_has_come_before_sending_failed_can_still_be_received(broker: Broker, connection: Connection) -> None:
    with connection.in_use():
        broker.end_connections(b"\x40\x02\x00\x01\xe0\x01\x89")
        with pytest.raises(Unavailable, match="server busy"):
            send_until_it_fails(connection)

        assert connection.receive(0.0) == [(packets.PUBACK, b"\x00\x01")]
        with pytest.raises(Unavailable, match="server busy"):
            connection.receive(0.0)
