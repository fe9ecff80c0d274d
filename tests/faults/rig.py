"""The rig that every fault is tried on: a server, the bridge with all four sinks, and the oracle that watches all of it."""

import shutil
import signal
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self
from uuid import uuid4

from bridge.simulator.server import SimulatorSettings
from tests.e2e.harness import Bridge, assert_books_balance
from tests.faults import journal_file
from tests.faults.oracle import Oracle
from tests.faults.proxy import Proxy
from tests.faults.witnesses import Hook, Reader, Told, kcat, mosquitto_sub
from tests.support.servers import kafka_broker, mosquitto
from tests.support.servers.mosquitto import Mosquitto
from tests.support.waiting import until

SINKS: Final = ("kafka", "mqtt", "webhook", "stdout")

DELIVERY: Final = 500
"""Events that one delivery takes at most, so that it is known what may be in flight."""

MAX_BYTES: Final = 192 << 20
RESERVE: Final = 32 << 20
"""What the journal may take, and the bytes of the disk that it leaves for outcomes (`bridge.journal.writer`)."""

_TWICE: Final = 0.02
"""The share of events that the stream sends twice."""

_RETRY: Final = {"first_delay": "200ms", "max_delay": "2s"}


def missing() -> dict[str, str]:
    """The sinks that can't be tried here, and why."""
    reasons = {"kafka": kafka_broker.available() or _not_installed("kcat"), "mqtt": mosquitto.available()}
    return {sink: reason for sink, reason in reasons.items() if reason is not None}


def _not_installed(program: str) -> str | None:
    return None if shutil.which(program) else f"not installed: {program}"


class Rig:
    """Everything, as a context manager. The bridge is not started yet.

    Args:
        directory: Where everything is kept.
        rate: Events per second.
        seed: Of the server's story.
        sinks: Which, of all that can be tried here.
        journal: More settings of the journal.

    Attributes:
        oracle: What knows whether all is well.
        proxies: The ways between the bridge and the others: to the stream as `acme`, to each sink but `stdout` by its name.
        hook: The webhook's receiver.
        mqtt: The MQTT broker, if there is one here.
        kafka: The Kafka broker, if there is one here.
        simulator: The server.
        bridge: The bridge.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rate: float,
        seed: int,
        sinks: Sequence[str] = SINKS,
        journal: Mapping[str, Any] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._journal = dict(journal or {})
        self._stack = ExitStack()
        self.oracle = Oracle([sink for sink in sinks if sink not in missing()])
        self.simulator = Told(SimulatorSettings(port=0, rate=rate, seed=seed, duplicates=_TWICE), self.oracle)
        self.hook = Hook(self.oracle, "webhook")
        self.proxies: dict[str, Proxy] = {}
        self.kafka: kafka_broker.Broker | None = None
        self.mqtt: Mosquitto | None = None

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.enter_context(self.simulator)
            self._stack.enter_context(self.hook)
            stream = self._way("acme", self.simulator.port)
            sinks: dict[str, dict[str, Any]] = {
                "webhook": {"url": f"http://127.0.0.1:{self._way('webhook', self.hook.port)}/hook", "format": "batch"},
                "stdout": {},
            }
            sinks |= self._brokers()
            common = {"batch": {"max_events": DELIVERY}, "retry": _RETRY}
            patience = {"webhook": {"timeout": "2s"}, "mqtt": {"timeout": "2s"}}
            settings: dict[str, Any] = {
                "streams": {
                    "acme": {
                        "url": f"ws://127.0.0.1:{stream}",
                        "backoff": {"first": "50ms", "max": "500ms"},
                        "ping_interval": "1s",
                        "ping_timeout": "1s",
                    }
                },
                "sinks": {name: {"type": name, **common, **patience.get(name, {}), **own} for name, own in sinks.items()},
            }
            path = self._journal.pop("path", str(self._directory / "journal.db"))
            settings["journal"] = {"path": path, "max_bytes": MAX_BYTES, **self._journal}
            self.journal = Path(path)
            self.bridge = Bridge(self._directory, settings)
            self._stack.callback(self._end_bridge)
            self.bridge.output.touch()
            self._output = Reader(self.oracle, "stdout", self.bridge.output.open("rb"))
            self._stack.callback(self._output.close)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # The bridge

    def looked_at(self, where: str) -> journal_file.Look:
        """Tell the oracle what the journal's file says now."""
        oracle = self.oracle
        try:
            look = journal_file.look(self.journal, oracle.committed_count)
        except sqlite3.Error as error:
            if oracle.committed_count:
                oracle.violate("journal", where, f"{self.journal} can't be read: {error}")
            return journal_file.NOTHING
        size = sum(
            path.stat().st_size for path in self.journal.parent.glob(self.journal.name + "*") if ".damaged" not in path.name
        )
        if size > MAX_BYTES + RESERVE:
            oracle.violate("bounds", where, f"the files have {size:,} bytes, journal.max_bytes is {MAX_BYTES:,}")
        oracle.committed(look.first, look.uuids)
        oracle.balanced(journal_file.problems(look), where)
        oracle.counts(journal_file.counts(look), where)
        for sink, uuids in look.dead.items():
            oracle.buried(sink, uuids)
            for uuid in uuids:
                if sink != "webhook" or not self.hook.rejects(uuid):
                    oracle.violate("lost", sink, f"a dead letter that nobody rejected: {oracle.describe(uuid)}")
        return look

    def scrape(self, where: str) -> None:
        """Tell the oracle what the running bridge says of its books."""
        metrics = self.bridge.metrics()
        wrong = []
        try:
            assert_books_balance(metrics)
        except AssertionError as error:
            wrong.append(f"{error} {[(name, dict(its), value) for (name, its), value in metrics.items() if 'event' in name]}")
        self.oracle.balanced(wrong, where)
        ever = {key: value for key, value in metrics.items() if key[0].removeprefix("event_bridge_") in _EVER}
        self.oracle.counts(ever, where)

    def kill(self, where: str) -> None:
        """`kill -9`, and look at what it left."""
        status = self.bridge.kill()
        if status not in {-signal.SIGKILL, 0}:
            self.oracle.violate(
                "progress", where, f"it had ended by itself, with {status}: {self.bridge.log.read_text()[-2000:]}"
            )
        self.died(where)

    def died(self, where: str) -> None:
        """It was killed: look at what it left. What was in flight at this moment may come again."""
        self.oracle.kills += 1
        look = self.looked_at(where)
        for sink, row in look.sinks.items():
            self.oracle.in_flight(sink, range(row["cursor"], row["cursor"] + DELIVERY))
            self.oracle.in_flight(sink, look.retrying.get(sink, ()))
        self.oracle.classify()
        self._output.empty(self.bridge.output)

    def settled_down(self) -> bool:
        """Return True if the stream is connected and every sink up."""
        status = self.bridge.status()
        return all(stream["connected"] for stream in status["streams"].values()) and all(
            sink["up"] for sink in status["sinks"].values()
        )

    def finish(self, seconds: float = 60) -> None:
        """All faults are over: end in order, and find out whether everything is where it should be."""
        oracle = self.oracle
        try:
            until(self.settled_down, "everything is connected again", seconds)
            self.simulator.stop()  # So that nothing can arrive between the last count and the end.
            until(lambda: not self.bridge.status()["streams"]["acme"]["connected"], "all that was sent is heard", seconds)
            until(lambda: self.bridge.pending() == 0, "everything is delivered", seconds)
            self.scrape("at the end")
            status = self.bridge.stop()
            assert status == 0, f"the exit status is {status}"
        except (AssertionError, OSError) as error:
            oracle.violate("progress", "at the end", f"{type(error).__name__}: {error}")
        look = self.looked_at("at the end")
        with suppress(AssertionError):  # The oracle says what is missing.
            until(lambda: oracle.missing() == 0, "what was delivered is seen", 30)
        oracle.finish()
        for sink, row in look.sinks.items():
            if row["filtered"] or row["dropped"]:
                oracle.violate("lost", sink, f"nothing is to be filtered or dropped: {row}")

    # The others

    def _way(self, name: str, port: int, listen: int = 0) -> int:
        self.proxies[name] = self._stack.enter_context(Proxy(port, listen))
        return self.proxies[name].port

    def _brokers(self) -> dict[str, dict[str, Any]]:
        sinks: dict[str, dict[str, Any]] = {}
        if "kafka" in self.oracle.sinks:
            self.kafka = broker = kafka_broker.shared()
            self._stack.callback(broker.restore)
            topic = f"faults-{uuid4().hex[:8]}"
            kafka_broker.create_topic(broker.address(), topic)
            way = self._way("kafka", int(broker.address("DETOUR").partition(":")[2]), broker.detour)
            patience = {"delivery_timeout": "2s", "connect_timeout": "2s"}
            sinks["kafka"] = {"bootstrap_servers": f"localhost:{way}", "topic": topic, **patience}
            self._stack.enter_context(kcat(self.oracle, "kafka", broker.address(), topic))
        if "mqtt" in self.oracle.sinks:
            self.mqtt = self._stack.enter_context(Mosquitto(self._directory, f"max_inflight_messages {DELIVERY}"))
            self._stack.enter_context(mosquitto_sub(self.oracle, "mqtt", self.mqtt.plain, "docker/+/+/+"))
            sinks["mqtt"] = {"url": f"mqtt://127.0.0.1:{self._way('mqtt', self.mqtt.port)}"}
        return sinks

    def _end_bridge(self) -> None:
        self.bridge.__exit__()


_EVER: Final = frozenset(
    {
        *(f"events_{what}_total" for what in ("received", "accepted", "duplicate", "malformed")),
        *(f"sink_events_{what}_total" for what in ("delivered", "filtered", "dead", "dropped", "replayed", "rewound")),
    }
)
"""The counts that live in the journal, so that they survive everything."""
