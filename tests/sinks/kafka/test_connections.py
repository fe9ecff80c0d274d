"""The Kafka sink and addresses: names with several, some of them silent, and what brokers advertise."""

import errno
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from bridge.sink import Entry, Unavailable
from sinks.kafka.connections import Connections
from sinks.kafka.settings import KafkaSettings
from sinks.kafka.sink import KafkaSink
from tests.contract.harness import make_entries
from tests.faults.proxy import Proxy
from tests.sinks.kafka import mock_kafka
from tests.sinks.kafka.mock_kafka import MockKafka
from tests.support.ports import free_port
from tests.support.servers import kafka_broker
from tests.support.servers.kafka_broker import Broker, create_topic, read_topic
from tests.support.waiting import until

needs_mock = pytest.mark.skipif(mock_kafka.available() is not None, reason=str(mock_kafka.available()))
needs_kafka = pytest.mark.skipif(kafka_broker.available() is not None, reason=str(kafka_broker.available()))

NAME = "kafka.example"
Address = tuple[str, int]


@pytest.fixture
def mock(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockKafka]:
    mock_kafka.speak_to_it(monkeypatch)
    with MockKafka() as mock:
        mock.create_topic("events")
        yield mock


@pytest.fixture
def make() -> Iterator[Any]:
    made: list[KafkaSink] = []

    def make(*servers: str, **settings: Any) -> KafkaSink:
        base = {"bootstrap_servers": list(servers), "topic": "events", "delivery_timeout": 2, "connect_timeout": 2}
        made.append(KafkaSink("kafka", KafkaSettings.model_validate(base | settings), interval=0.1))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


@pytest.fixture
def silent() -> Iterator[Address]:
    """An address at which attempts to connect get no answer, because its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address: Address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(address)
        yield address
        for client in waiting:
            client.close()


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: Address) -> None:
    """Let NAME have these addresses, in this order."""
    getaddrinfo = socket.getaddrinfo

    def looked_up(host: str, *arguments: Any, **options: Any) -> Any:
        if host != NAME:
            return getaddrinfo(host, *arguments, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)


def address_of(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


@needs_mock
def test_a_silent_address_of_a_name_leaves_time_for_the_others(
    mock: MockKafka, make: Any, silent: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, silent, ("127.0.0.1", free_port()), silent, address_of(mock.address))
    sink = make(f"{NAME}:9092")

    sink.open()

    assert sink.deliver(make_entries(3)) == []


@needs_mock
def test_a_silent_server_leaves_time_for_the_others_of_the_list(mock: MockKafka, make: Any, silent: Address) -> None:
    for _ in range(5):
        make("{}:{}".format(*silent), mock.address).open()


def test_a_name_whose_addresses_are_all_silent_is_called_so_in_time(
    make: Any, silent: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, silent, silent)
    began = time.monotonic()

    with pytest.raises(Unavailable) as unavailable:
        make(f"{NAME}:9092").open()

    assert (unavailable.value.reason, str(unavailable.value)) == (
        "timeout",
        f"{NAME}:9092: no answer to the connection attempt",
    )
    assert time.monotonic() - began < 4


def test_a_look_up_that_hangs_is_given_up_in_time(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [released.wait(30)][1:])
    began = time.monotonic()

    with pytest.raises(Unavailable) as unavailable:
        make(f"{NAME}:9092").open()
    released.set()

    assert (unavailable.value.reason, str(unavailable.value)) == ("timeout", f"{NAME}:9092: the name server does not answer")
    assert time.monotonic() - began < 4


def test_a_server_that_accepts_and_says_nothing_is_given_up_in_time(make: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = f"127.0.0.1:{listener.getsockname()[1]}"
        for tls in (False, True):
            began = time.monotonic()
            with pytest.raises(Unavailable) as unavailable:
                make(server, tls=tls).open()
            assert unavailable.value.reason == "timeout"
            assert time.monotonic() - began < 4


ADVERTISED = "the address that the broker's `advertised.listeners` names"


@pytest.fixture
def broker() -> Broker:
    return kafka_broker.shared()


@pytest.fixture
def topic(broker: Broker) -> str:
    name = f"sink-{uuid.uuid4().hex[:8]}"
    create_topic(broker.address(), name)
    return name


@needs_kafka
def test_an_advertised_address_that_is_wrong_is_found_when_opening(make: Any, broker: Broker, topic: str) -> None:
    bootstrap, wrong = broker.address("DETOUR"), f"localhost:{broker.detour}"
    for settings in ({"topic": topic}, {"topic": "{type}"}, {"topic": topic, "allow_auto_create_topics": True}):
        with pytest.raises(Unavailable) as unavailable:
            make(bootstrap, **settings).open()
        assert unavailable.value.reason == "unreachable"
        assert str(unavailable.value) == f"{bootstrap}: {wrong}, {ADVERTISED}: connection refused"


def notices(sink: KafkaSink, entries: list[Entry]) -> bool:
    sink.check_connection()
    return bool(entries and sink.deliver(entries))


@needs_kafka
def test_an_advertised_address_that_breaks_is_named_without_events_and_with_them(make: Any, broker: Broker, topic: str) -> None:
    bootstrap, wrong = broker.address("DETOUR"), f"localhost:{broker.detour}"
    for has_events in (False, True):
        sink = make(bootstrap, topic=topic)
        with Proxy(address_of(bootstrap)[1], broker.detour):
            sink.open()
            assert sink.deliver(make_entries(3)) == []
        with pytest.raises(Unavailable) as unavailable:
            until(partial(notices, sink, make_entries(3) if has_events else []), "it is noticed")
        assert str(unavailable.value) == f"{bootstrap}: {wrong}, {ADVERTISED}: connection refused"

    assert len(read_topic(broker.address(), topic)) == 6


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> set[Address]:
    """Addresses that refuse connections."""
    unreachable: set[Address] = set()
    connect = socket.socket.connect

    class Socket(socket.socket):
        def connect(self, address: Any) -> None:
            if address in unreachable:
                raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            connect(self, address)

    monkeypatch.setattr(socket, "socket", Socket)
    return unreachable


@needs_mock
def test_leaders_that_can_not_be_reached_are_remarked(
    make: Any, unreachable: set[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_kafka.speak_to_it(monkeypatch)
    with MockKafka(3) as mock:
        mock.create_topic("events", 3)
        for partition in range(3):
            mock.lead("events", partition, partition + 1)
        servers = mock.address.split(",")
        unreachable.update(map(address_of, servers[1:]))
        sink = make(*servers)
        sink.open()

        *_, second, third = sink.remarks(1_000)

    ending = ", the address that a broker's `advertised.listeners` names, can't be reached"
    assert {second, third} == {server + ending for server in servers[1:]}


@needs_mock
def test_a_leader_that_can_not_be_reached_is_noticed_although_other_brokers_answer(
    make: Any, unreachable: set[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    mock_kafka.speak_to_it(monkeypatch)
    with MockKafka(3) as mock:
        mock.create_topic("events")
        mock.lead("events", 0, 3)
        leader = mock.address.split(",")[2]
        sink = make(*mock.address.split(","))
        sink.open()

        unreachable.add(address_of(leader))
        mock.down(3)
        mock.up(3)
        with pytest.raises(Unavailable) as unavailable:
            until(lambda: bool(sink.check_connection()), "it is noticed")
        assert str(unavailable.value) == f"{leader}: connection refused"
        with pytest.raises(Unavailable, match=f"{leader}: connection refused"):
            sink.open()

        mock.lead("events", 0, 1)
        sink.open()
        assert sink.deliver(make_entries(3)) == []


@needs_mock
def test_brokers_that_can_not_be_reached_are_not_taken_for_all(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mock_kafka.speak_to_it(monkeypatch)
    asked: list[object] = []
    ask = Connections.ask

    async def ask_and_count(connections: Connections, *arguments: Any) -> None:
        await ask(connections, *arguments)
        asked.append(arguments)

    monkeypatch.setattr(Connections, "ask", ask_and_count)
    with MockKafka(3) as mock:
        mock.create_topic("events")
        mock.lead("events", 0, 1)
        sink = make(*mock.address.split(","))
        sink.open()
        mock.down(2)
        mock.down(3)
        asked.clear()

        until(lambda: bool(sink.check_connection()) or len(asked) > 5, "it is asked again and again")
