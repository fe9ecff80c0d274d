"""A real Apache Kafka for tests: one node in KRaft mode with everything of its own, on loopback, gone without trace afterwards.

The broker's jars come by Maven, once, into a cache outside the tree.

EVENT_BRIDGE_TEST_KAFKA=host:port names another one, where anybody may do anything without TLS. Tests for which any broker
will do then use that one; those that stop the broker, or need it to be set up in a special way, use their own all the same.
Where there is neither, librdkafka's mock cluster remains: the contract suite and the tests of errors that no broker gives on
demand run on it in any case.

What it needs: Java 17 and Maven (Debian's openjdk-17-jre-headless and maven). Tried with Kafka 4.1.1, which starts in about
five seconds.
"""

import atexit
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from kafka.admin import (  # type: ignore[import-untyped]
    ACL,
    ACLOperation,
    ACLPermissionType,
    KafkaAdminClient,
    ResourcePattern,
    ResourceType,
)
from kafka.consumer import KafkaConsumer  # type: ignore[import-untyped]
from kafka.structs import TopicPartition  # type: ignore[import-untyped]

from tests.support.ports import free_ports
from tests.support.processes import freeze
from tests.support.servers.receiver import make_certificate

VERSION: Final = "4.1.1"
GIVEN: Final = os.environ.get("EVENT_BRIDGE_TEST_KAFKA")
"""The address of a broker that is there already."""

USERS: Final = {"admin": "admin-secret", "alice": "alice-secret", "bob": "bob-secret"}
"""Users and passwords, for PLAIN and SCRAM. `admin` may do everything, the others what access rules say."""

_NAME: Final = f"Apache Kafka {VERSION}"
_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "event-bridge-tests" / f"kafka-{VERSION}"
_POM: Final = f"""
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka-run</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
"""
_PROTOCOLS: Final = {
    "CONTROLLER": "PLAINTEXT",
    "OPEN": "PLAINTEXT",
    "DETOUR": "PLAINTEXT",
    "SASL": "SASL_PLAINTEXT",
    "TLS": "SSL",
    "MTLS": "SSL",
}
_SCRAM: Final = ("SCRAM-SHA-256", "SCRAM-SHA-512")
_LOGIN: Final = "org.apache.kafka.common.security"


def available() -> str | None:
    """Why no broker can be started here; None if one can. The first call may download the broker."""
    problem = _obtain()
    return f"{problem}; the one of EVENT_BRIDGE_TEST_KAFKA is not ours to stop or to set up" if problem and GIVEN else problem


def any_available() -> str | None:
    """Why there is neither a broker that was given nor one that can be started here; None if there is."""
    return None if GIVEN else available()


def any_address() -> str:
    """Return the address of any broker: the one that was given, else the one that all tests share."""
    return GIVEN or shared().address()


def provenance() -> str:
    """On what the Kafka tests run, in words."""
    problem = _obtain()
    ours = (
        f"librdkafka's mock cluster, since there is none of our own ({problem})"
        if problem
        else f"{_NAME}, started by the tests"
    )
    return f"the broker of EVENT_BRIDGE_TEST_KAFKA at {GIVEN}; {ours}" if GIVEN else ours


@functools.cache
def _obtain() -> str | None:
    """See to it that a broker can be started; why not, if that is so."""
    missing = [program for program in ("java", "mvn") if shutil.which(program) is None]
    if missing and not (shutil.which("java") and _is_complete()):
        return f"not installed: {', '.join(missing)}; apt-get install openjdk-17-jre-headless maven"
    if _is_complete():
        return None
    _CACHE.mkdir(parents=True, exist_ok=True)
    (_CACHE / "pom.xml").write_text(_POM)
    fetch = ["mvn", "-B", "-q", "dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=lib"]
    try:
        done = subprocess.run(fetch, cwd=_CACHE, capture_output=True, text=True, check=False, timeout=100)
    except subprocess.TimeoutExpired:
        return "Maven did not bring Apache Kafka within 100 s"
    if done.returncode != 0:
        return f"Maven can't bring Apache Kafka: {(done.stdout + done.stderr).strip()[:200]}"
    (_CACHE / "complete").touch()
    return None


@functools.cache
def shared() -> "Broker":
    """The broker that all tests of this process share, with all listeners; it ends with the process.

    Who stops, kills or freezes it calls `restore` in the end.
    """
    directory = Path(tempfile.mkdtemp(prefix="kafka-"))
    broker = Broker(directory, identity=make_certificate(directory))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    atexit.register(broker.kill)
    return broker.__enter__()


def _is_complete() -> bool:
    return (_CACHE / "complete").exists()


class Broker:
    """A broker that can be stopped, killed, frozen and started again on the same ports and data; a context manager.

    Args:
        directory: Where its data and log are.
        settings: More of its settings.
        identity: Its certificate and key, for listeners with TLS.
        clients: The certificates that one of those listeners demands of its clients.
        first: The first broker of a cluster that this one joins as its second.

    Attributes:
        detour: The port that the listener DETOUR names to its clients as its own: whoever listens there passes everything on.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, str] | None = None,
        identity: tuple[Path, Path] | None = None,
        clients: Path | None = None,
        first: "Broker | None" = None,
    ) -> None:
        self.directory = directory
        self.log = directory / "broker.log"
        self._first = first
        names = [name for name in _PROTOCOLS if identity is not None or "TLS" not in name]
        if first is not None:
            names.remove("CONTROLLER")
        *ports, self.detour = free_ports(len(names) + 1)
        self._ports = dict(zip(names, ports, strict=True))
        self._settings = self._base() | self._logins() | dict(settings or {})
        if identity is not None:
            pem = directory / "identity.pem"
            pem.write_text(identity[1].read_text() + identity[0].read_text())
            self._settings |= {"ssl.keystore.type": "PEM", "ssl.keystore.location": str(pem)}
            self._settings |= {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(clients or identity[0])}
            self._settings["listener.name.mtls.ssl.client.auth"] = "required"
        self._process: subprocess.Popen[bytes] | None = None

    def address(self, listener: str = "OPEN") -> str:
        """The address of a listener: OPEN, DETOUR, SASL, TLS or MTLS; also CONTROLLER, for another broker."""
        return f"localhost:{self._ports[listener]}"

    def __enter__(self) -> Self:
        properties = self.directory / "server.properties"
        properties.write_text("".join(f"{name}={value}\n" for name, value in self._settings.items()))
        scram = [
            part
            for mechanism in _SCRAM
            for user, password in USERS.items()
            for part in ("--add-scram", f"{mechanism}=[name={user},password={password}]")
        ]
        identity = "AAAAAAAAAAAAAAAAAAAAAA"
        how = ["--standalone", *scram] if self._first is None else ["--no-initial-controllers"]
        command = [*_java("kafka.tools.StorageTool"), "format", "-t", identity, "-c", str(properties), *how]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it says so."""
        seen = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            command = [*_java("kafka.Kafka"), str(self.directory / "server.properties")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.directory)

        def started() -> bool:
            assert self._process is not None
            said = self.log.read_bytes()[seen:]
            assert self._process.poll() is None, said[-2000:].decode(errors="replace")
            return b"Kafka Server started" in said

        _until(started, "the broker starts")

    def stop(self) -> None:
        """SIGTERM, and wait until it is gone."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9`; also of one that is frozen or gone."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """SIGSTOP: connections stay, and nothing answers."""
        assert self._process is not None
        freeze(self._process.pid)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restore(self) -> None:
        """Make it work again, whatever was done to it."""
        if self._process is None or self._process.poll() is not None:
            self.start()
        self.thaw()

    def renew(self, identity: tuple[Path, Path]) -> None:
        """Give it another certificate while it runs; its names must be the same."""
        pem = self.directory / f"identity-{time.monotonic_ns()}.pem"
        pem.write_text(identity[1].read_text() + identity[0].read_text())
        keystores = [f"listener.name.{listener}.ssl.keystore" for listener in ("tls", "mtls")]
        settings = {f"{keystore}.location": str(pem) for keystore in keystores}
        self.configure("brokers", "1", settings | {f"{keystore}.type": "PEM" for keystore in keystores})

    def configure(self, kind: str, name: str, settings: Mapping[str, str]) -> None:
        """Change settings of a broker, a client or what else can be configured while it runs, by Kafka's own command."""
        assignments = ",".join(f"{key}={value}" for key, value in settings.items())
        where = ["--bootstrap-server", self.address(), "--entity-type", kind, "--entity-name", name]
        command = [*_java("kafka.admin.ConfigCommand"), *where, "--alter", "--add-config", assignments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr

    def allow(self, user: str, topic: str, *operations: str) -> None:
        """Allow a user something on a topic."""
        resource = ResourcePattern(ResourceType.TOPIC, topic)
        admin = KafkaAdminClient(bootstrap_servers=self.address())
        try:
            rules = [
                ACL(f"User:{user}", "*", ACLOperation[operation], ACLPermissionType.ALLOW, resource) for operation in operations
            ]
            admin.create_acls(rules)
        finally:
            admin.close()

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(how)
            process.wait(60)

    def _base(self) -> dict[str, str]:
        listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in self._ports.items())
        told = ",".join(f"{name}://localhost:{port}" for name, port in (self._ports | {"DETOUR": self.detour}).items())
        return {
            "process.roles": "broker,controller" if self._first is None else "broker",
            "node.id": "1" if self._first is None else "2",
            "controller.quorum.bootstrap.servers": (self._first or self).address("CONTROLLER"),
            "listeners": listeners,
            "advertised.listeners": told,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "OPEN",
            "listener.security.protocol.map": ",".join(f"{name}:{_PROTOCOLS[name]}" for name in {"CONTROLLER", *self._ports}),
            "log.dirs": str(self.directory / "data"),
            "num.partitions": "3",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "group.initial.rebalance.delay.ms": "0",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "controlled.shutdown.enable": "false",
            "broker.session.timeout.ms": "2000",  # So long a broker that ended is waited for when it comes back.
            "broker.heartbeat.interval.ms": "500",
            "log.cleaner.enable": "false",
            "auto.create.topics.enable": "true",
        }

    def _logins(self) -> dict[str, str]:
        """Users, and that those of the open listener and `admin` may do everything."""
        users = " ".join(f'user_{user}="{password}"' for user, password in USERS.items())
        sasl = "listener.name.sasl."
        return {
            f"{sasl}sasl.enabled.mechanisms": ",".join(["PLAIN", "OAUTHBEARER", *_SCRAM]),
            f"{sasl}plain.sasl.jaas.config": f"{_LOGIN}.plain.PlainLoginModule required {users};",
            f"{sasl}oauthbearer.sasl.jaas.config": f"{_LOGIN}.oauthbearer.OAuthBearerLoginModule required "
            'unsecuredLoginStringClaim_sub="broker";',
            **{f"{sasl}{name.lower()}.sasl.jaas.config": f"{_LOGIN}.scram.ScramLoginModule required;" for name in _SCRAM},
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS;User:admin",
        }


def _java(main: str) -> list[str]:
    logging = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
    server = "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info"
    # It must not outlive the tests, however they end.
    with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    return [
        *with_us,
        *("java", "-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"),
        *(logging, server, "-cp", str(_CACHE / "lib" / "*"), main),
    ]


def _until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def create_topic(address: str, name: str, partitions: int = 3, replicas: int = -1, **settings: str) -> None:
    """Create a topic, and wait until it is there; with as many replicas as the broker likes, if nothing is said."""
    admin = KafkaAdminClient(bootstrap_servers=address)
    try:
        configs = {key.replace("_", "."): value for key, value in settings.items()}
        admin.create_topics({name: {"num_partitions": partitions, "replication_factor": replicas, "configs": configs}})
        _until(lambda: name in admin.list_topics(), f"topic {name} is there")
    finally:
        admin.close()


def has_topic(address: str, name: str) -> bool:
    """Return True if a topic exists."""
    admin = KafkaAdminClient(bootstrap_servers=address)
    try:
        return name in admin.list_topics()
    finally:
        admin.close()


def count_records(address: str, topic: str) -> int:
    """Count the records of a topic, by its offsets."""
    consumer = KafkaConsumer(bootstrap_servers=address, enable_auto_commit=False, group_id=None)
    try:
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
        return sum(consumer.end_offsets(partitions).values())
    finally:
        consumer.close()


def read_topic(address: str, topic: str) -> list[tuple[bytes | None, bytes]]:
    """All records of a topic, as keys and values, partition by partition."""
    consumer = KafkaConsumer(bootstrap_servers=address, enable_auto_commit=False, group_id=None)
    try:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        found: dict[TopicPartition, list[tuple[bytes | None, bytes]]] = {partition: [] for partition in partitions}
        deadline = time.monotonic() + 30
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            assert time.monotonic() < deadline, f"{topic} could not be read in time"
            for partition, records in consumer.poll(timeout_ms=200, max_records=10_000).items():
                found[partition] += [(record.key, record.value) for record in records]
        return [pair for records in found.values() for pair in records]
    finally:
        consumer.close()
