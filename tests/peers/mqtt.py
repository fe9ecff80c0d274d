"""MQTT brokers. A subscriber that is not ours, mosquitto_sub, counts what arrives."""

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.peers.peer import Peer, Running, install, port, process
from tests.support.servers.mosquitto import Mosquitto

_AEDES = """
const { Aedes } = require('aedes'), net = require('net')
Aedes.createBroker().then(broker => net.createServer(broker.handle).listen(+process.argv[2], '127.0.0.1'))
"""
_MOCHI = "github.com/mochi-mqtt/server/v2"


@contextlib.contextmanager
def _subscribed(at: int, **settings: Any) -> Iterator[Running]:
    sink = {"type": "mqtt", "url": f"mqtt://127.0.0.1:{at}", "topic": "docker/{type}/{state}", **settings}
    command = ["mosquitto_sub", "-V", "mqttv311", "-h", "127.0.0.1", "-p", str(at), "-q", "1", "-t", "docker/+/+"]
    with tempfile.TemporaryFile("w+") as arrived:
        subscriber = subprocess.Popen(command, stdout=arrived)
        time.sleep(1)  # The brokers do not tell whether it has subscribed.

        def count() -> int:
            arrived.seek(0)
            return sum(line.startswith("{") for line in arrived)  # Its availability is no event.

        try:
            yield Running(sink, count)
        finally:
            subscriber.kill()
            subscriber.wait()


def _mosquitto(settings: str = "") -> Callable[[Path, str], contextlib.AbstractContextManager[Running]]:
    @contextlib.contextmanager
    def run(directory: Path, _: str) -> Iterator[Running]:
        with Mosquitto(directory, settings) as broker, _subscribed(broker.plain) as running:
            yield running

    return run


def _nats(**settings: Any) -> Callable[[Path, str], contextlib.AbstractContextManager[Running]]:
    @contextlib.contextmanager
    def run(directory: Path, _: str) -> Iterator[Running]:
        install(directory, "go", "install", "github.com/nats-io/nats-server/v2@v2.15.2", GOBIN=str(directory))
        at = port()
        config = directory / "nats.conf"
        config.write_text(
            f'server_name: one\nport: {port()}\nhost: 127.0.0.1\njetstream {{store_dir: "{directory}"}}\n'
            f"mqtt {{host: 127.0.0.1, port: {at}}}\n"
        )
        with process(directory, at, directory / "nats-server", "-c", config), _subscribed(at, **settings) as running:
            yield running

    return run


@contextlib.contextmanager
def _aedes(directory: Path, _: str) -> Iterator[Running]:
    install(directory, "npm", "install", "--silent", "--no-audit", "--no-fund", "aedes@1.2.0")
    (directory / "broker.js").write_text(_AEDES)
    at = port()
    with process(directory, at, "node", "broker.js", at), _subscribed(at) as running:
        yield running


@contextlib.contextmanager
def _mochi(directory: Path, _: str) -> Iterator[Running]:
    install(directory, "go", "install", f"{_MOCHI}/cmd@v2.7.9", GOBIN=str(directory))
    at = port()
    addresses = ["-tcp", f"127.0.0.1:{at}", "-ws", f"127.0.0.1:{port()}", "-info", f"127.0.0.1:{port()}"]
    with process(directory, at, directory / "cmd", *addresses), _subscribed(at) as running:
        yield running


_CLIENTS = ["mosquitto_sub", "mosquitto_pub"]
PEERS = [
    Peer("mosquitto of Debian", _mosquitto(), ["mosquitto", *_CLIENTS]),
    Peer("mosquitto of Debian, max_packet_size 500", _mosquitto("max_packet_size 500"), ["mosquitto", *_CLIENTS]),
    Peer("NATS Server 2.15.2", _nats(), ["go", *_CLIENTS]),
    Peer('NATS Server 2.15.2, with `replace: {" ": "_"}`', _nats(replace={" ": "_"}), ["go", *_CLIENTS]),
    Peer("aedes 1.2.0", _aedes, ["npm", *_CLIENTS]),
    Peer("mochi-mqtt 2.7.9", _mochi, ["go", *_CLIENTS]),
]
