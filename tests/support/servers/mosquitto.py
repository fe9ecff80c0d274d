"""A real MQTT broker for tests: the system's mosquitto with a configuration of its own, on a loopback port of its own.

Debian's packages `mosquitto` and `mosquitto-clients` bring all that is needed. Tried with 2.0.11. It keeps nothing on disk, and
`mosquitto_sub`, which is not ours, tells what has arrived.

EVENT_BRIDGE_TEST_MQTT=host:port names another one, where anybody may do anything. Tests for which any broker will do then use
that one; those that stop the broker, or need it to be set up in a special way, use their own all the same.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

from tests.support.ports import free_port
from tests.support.processes import freeze

_SYNC = "sync/"


def available() -> str | None:
    """Why no broker can be started here; None if one can."""
    return _why_missing("mosquitto", "mosquitto_sub", "mosquitto_pub")


def any_available() -> str | None:
    """Why there is neither a broker that was given nor one that can be started here; None if there is."""
    return _why_missing("mosquitto_sub", "mosquitto_pub") if given() else available()


def provenance() -> str:
    """On what the MQTT tests run, in words."""
    missing = available()
    ours = f"no broker of our own, {missing}" if missing else f"mosquitto {_version()}, started by the tests"
    return f"the broker of EVENT_BRIDGE_TEST_MQTT at {os.environ['EVENT_BRIDGE_TEST_MQTT']}; {ours}" if given() else ours


@contextlib.contextmanager
def anybody(folder: Path) -> Iterator["Broker"]:
    """A broker for a test that any will do for: the one that was given, else one of our own."""
    broker = given()
    if broker is None:
        with Mosquitto(folder) as ours:
            yield ours
        return
    try:
        yield broker
    finally:
        for topic in broker.retained(f"{broker.prefix}/#"):
            broker.forget(topic)


def _why_missing(*programs: str) -> str | None:
    missing = [name for name in programs if program(name) is None]
    return f"not installed: {', '.join(missing)}; apt-get install mosquitto mosquitto-clients" if missing else None


def _version() -> str:
    said = subprocess.run([str(program("mosquitto")), "-h"], capture_output=True, text=True, check=False, timeout=10).stdout
    return said.partition(" version ")[2].split()[0]


def program(name: str) -> str | None:
    """The path of one of mosquitto's programs. Debian puts servers where the path of ordinary users does not lead."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


class Broker:
    """A broker somewhere, seen by mosquitto's own clients.

    Args:
        host: Where it is.
        plain: A port where anybody may do anything, for these clients.

    Attributes:
        prefix: How topics begin that nobody else uses.
    """

    def __init__(self, host: str, plain: int) -> None:
        self.host = host
        self.plain = plain
        self.prefix = f"event-bridge-test/{uuid.uuid4()}"

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.plain}"

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of a sink that gets into nobody's way here."""
        topics = {"topic": f"{self.prefix}/{{namespace}}/{{type}}/{{action}}", "availability_topic": f"{self.prefix}/{{name}}"}
        return {"url": self.url, "client_id": self.prefix.replace("/", "-"), **topics}

    def listens(self) -> bool:
        """Return True if it takes connections."""
        return _listens(self.host, self.plain)

    def publish(self, topic: str, payload: str) -> None:
        """Publish by the broker's own client, at the plain port."""
        self._publish("-t", topic, "-m", payload)

    def forget(self, topic: str) -> None:
        """Retain nothing on a topic any more."""
        self._publish("-t", topic, "-n", "-r")

    def _publish(self, *options: str) -> None:
        command = [program("mosquitto_pub"), "-V", "5", "-h", self.host, "-p", str(self.plain), "-q", "1"]
        subprocess.run([*map(str, command), *options], check=False, capture_output=True, timeout=10)

    @contextlib.contextmanager
    def listening(self, *topics: str, qos: int = 1, options: Sequence[str] = ()) -> Iterator["Subscriber"]:
        subscriber = Subscriber(self, *topics, qos=qos, options=options)
        try:
            yield subscriber
        finally:
            subscriber.close()

    def retained(self, topic: str) -> dict[str, dict[str, Any]]:
        """Return the retained messages, by topic."""
        command = [program("mosquitto_sub"), "-V", "5", "-h", self.host, "-p", str(self.plain), "-F", "%j", "-W", "1"]
        options = ["-t", topic, "--retained-only"]
        found = subprocess.run([*map(str, command), *options], check=False, capture_output=True, timeout=10)
        publications = [json.loads(line) for line in found.stdout.splitlines()]
        return {publication["topic"]: publication for publication in publications}


def given() -> Broker | None:
    """The broker that EVENT_BRIDGE_TEST_MQTT names, if it names one.

    Raises:
        ValueError: It names something else.
    """
    address = os.environ.get("EVENT_BRIDGE_TEST_MQTT", "").removeprefix("mqtt://")
    if not address:
        return None
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"EVENT_BRIDGE_TEST_MQTT: must look like host:port, not {address}")
    return Broker(host, int(port))


class Mosquitto(Broker):
    """A running broker, as a context manager.

    Args:
        folder: Where its files are kept.
        settings: Lines of the configuration for the whole broker.
        listener: Lines for the listener that the tests use; anybody may use it if there are none.

    Attributes:
        port: The port of the listener `listener`.
        plain: A port where anybody may do anything, for the tests' own clients.
    """

    def __init__(self, folder: Path, settings: str = "", listener: str = "allow_anonymous true") -> None:
        super().__init__("127.0.0.1", free_port())
        self.port = free_port()
        self._folder = folder
        self._process: psutil.Popen | None = None
        self._configuration = folder / "mosquitto.conf"
        lines = [
            "per_listener_settings true",
            "user root",
            "max_queued_messages 1000000",
            settings,
            f"listener {self.port} 127.0.0.1",
            listener,
            f"listener {self.plain} 127.0.0.1",
            "allow_anonymous true",
        ]
        self._configuration.write_text("\n".join(lines) + "\n")

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        assert self._process is None, "it runs already"
        log = (self._folder / "mosquitto.log").open("ab")
        with log:
            self._process = psutil.Popen(
                [str(program("mosquitto")), "-c", str(self._configuration)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + 10
        while not (self.listens() and _listens(self.host, self.port)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"mosquitto did not start: {(self._folder / 'mosquitto.log').read_text()}")
            time.sleep(0.01)

    def kill(self) -> None:
        """As by `kill -9`; may be called twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def terminate(self) -> None:
        """Stop it in an orderly way."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def hang(self) -> None:
        assert self._process is not None
        freeze(self._process.pid)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def reload(self) -> None:
        """Have it read its password and ACL files again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)


class Subscriber:
    """A `mosquitto_sub` that remembers everything; it comes back to a broker that was restarted.

    Args:
        broker: The broker.
        topics: What to subscribe to.
        qos: At most so much is asked for; with 0 the broker passes on at once what it has acknowledged.
        options: More of its options.
    """

    def __init__(self, broker: Broker, *topics: str, qos: int = 1, options: Sequence[str] = ()) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._found: list[dict[str, Any]] = []
        self._synced: set[str] = set()
        command = [program("mosquitto_sub"), "-V", "5", "-h", broker.host, "-p", str(broker.plain), "-q", str(qos), "-F", "%j"]
        subscriptions = [option for topic in (f"{_SYNC}#", *topics) for option in ("-t", topic)]
        self._process = subprocess.Popen(
            [*map(str, command), *options, *subscriptions],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.sync()

    def publications(self) -> list[dict[str, Any]]:
        """Return the messages until now as `mosquitto_sub -F %j` shows them, with properties and payload decoded."""
        with self._lock:
            return list(self._found)

    def payloads(self) -> list[bytes]:
        """Return the messages until now, and those that the broker has already."""
        self.sync()
        return [publication["payload"].encode() for publication in self.publications()]

    def sync(self) -> None:
        """Wait until everything has arrived that the broker has now."""
        token = uuid.uuid4().hex
        deadline = time.monotonic() + 30
        while token not in self._synced:
            assert time.monotonic() < deadline, "the subscriber does not get anything"
            self._broker.publish(_SYNC + token, "x")
            for _ in range(50):
                if token in self._synced:
                    break
                time.sleep(0.005)

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        self._thread.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            publication = json.loads(line)
            if publication["topic"].startswith(_SYNC):
                self._synced.add(publication["topic"][len(_SYNC) :])
            else:
                with self._lock:
                    self._found.append(publication)


def user_properties(publication: Mapping[str, Any]) -> dict[str, str]:
    """The user properties of what `mosquitto_sub` has shown."""
    found = publication["properties"]["user-properties"]
    return found if isinstance(found, dict) else {name: value for pair in found for name, value in pair.items()}


def write_passwords(folder: Path, **users: str) -> Path:
    """Write a password file with these users and nobody else, and return where it is."""
    path = folder / "passwords"
    path.write_bytes(b"")
    for name, password in users.items():
        subprocess.run(["mosquitto_passwd", "-b", str(path), name, password], check=True, capture_output=True, timeout=10)
    return path


class Certificates:
    """A certificate authority of our own, with certificates for servers and clients on loopback.

    Args:
        folder: Where to keep them.
        name: Its name.
    """

    def __init__(self, folder: Path, name: str = "test CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.authority = folder / "ca.crt"
        self._key = folder / "ca.key"
        self._openssl(
            "req", "-x509", *_EC, "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.authority
        )

    def issue(self, name: str, *, days: int = 1, password: str = "") -> tuple[Path, Path]:
        """Issue a certificate, and return it with its key; with 0 days it has expired."""
        certificate, key, request = (self._folder / f"{name}.{ending}" for ending in ("crt", "key", "csr"))
        secret = ["-passout", f"pass:{password}"] if password else ["-nodes"]
        self._openssl("req", "-new", *_EC, *secret, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
        names = self._folder / "names"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self._openssl(
            *("x509", "-req", "-in", request, "-CA", self.authority, "-CAkey", self._key, "-CAcreateserial"),
            *("-days", str(days), "-extfile", names, "-out", certificate),
        )
        check = ["openssl", "x509", "-checkend", "0", "-in", str(certificate)]
        while days == 0 and subprocess.run(check, check=False, capture_output=True).returncode == 0:
            time.sleep(0.1)
        return certificate, key

    def _openssl(self, *arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)


_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def come_back(broker: Mosquitto, folder: Path, subscriber: Subscriber, see: Callable[[], None] = lambda: None) -> None:
    """Start it without the user `bridge`, so that nothing is published before the subscriber is back; then with it.

    What has to be seen while the bridge is refused, `see` waits for.
    """
    write_passwords(folder)
    broker.start()
    subscriber.sync()
    see()
    write_passwords(folder, bridge="s3cret")
    broker.reload()
