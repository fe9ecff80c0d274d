"""A server that sends events, and a receiver behind each sink; both report to the oracle."""

import json
import random
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

from bridge.simulator.connection import Connection
from bridge.simulator.server import Simulator, SimulatorSettings
from bridge.simulator.traffic import Batch, Outgoing
from tests.e2e.harness import Receiver
from tests.faults.oracle import Oracle

_PAUSE = 0.01
_TOLD_AGAIN = 50
_REFUSED = 0.02
"""The share of webhook requests that fail by themselves."""
_POISON = "000"
"""End of the uuid of an event that the receiver never takes: one of 4096."""
_LARGE = 64 << 20
"""Bytes of standard output that are kept at most, once they were read."""


class Told(Simulator):
    """The simulator; the oracle hears of every event before any client does.

    To whoever connects it tells the latest events again, so that they come twice to a process that was started again.
    """

    def __init__(self, settings: SimulatorSettings, oracle: Oracle) -> None:
        super().__init__(settings)
        self._oracle = oracle
        self._latest: deque[Outgoing] = deque(maxlen=_TOLD_AGAIN)
        self._greeted = 0

    def _fan_out(self, batch: Batch, listeners: Sequence[Connection]) -> None:
        if self.connections and self._greeted != self.handshakes:
            self._greeted = self.handshakes
            again = [Outgoing(0, item.uuid, item.payload, item.frame) for item in self._latest]
            self._tell(Batch(batch.namespace, again), listeners)
        if self._tell(batch, listeners):
            self._latest.extend(item for item in batch.items if item.payload)

    def _tell(self, batch: Batch, listeners: Sequence[Connection]) -> bool:
        """Tell it to the clients, if there are any, and to the oracle; return whether there are."""
        # The oracle first: what the socket takes at once may be delivered before this returns.
        if self.connections:
            for item in batch.items:
                if item.payload:
                    self._oracle.sent(item.payload)
        super()._fan_out(batch, listeners)
        return bool(self.connections)


class Hook(Receiver):
    """A webhook receiver; the oracle hears of every event of a request that is being answered with 2xx.

    Attributes:
        rejects_all: It rejects everything now, and these events for ever.
    """

    def __init__(self, oracle: Oracle, name: str) -> None:
        super().__init__()
        self._oracle = oracle
        self._name = name
        self._poison: str | None = None
        self._rejected: set[str] = set()
        self.rejects_all = False

    def be_difficult(self, dice: random.Random) -> None:
        """Refuse some requests for now, and some events for ever: there is something in the retry queue, and dead letters."""
        self._poison = _POISON
        self.answer = lambda events: self._judge(events, dice.random())

    def rejects(self, uuid: str) -> bool:
        """Return True if it never takes an event."""
        return uuid in self._rejected or (self._poison is not None and uuid.endswith(self._poison))

    def _judge(self, events: list[dict[str, Any]], chance: float) -> tuple[int, dict[str, str]]:
        uuids = {event["uuid"] for event in events}
        if self.rejects_all:
            self._rejected |= uuids
        if any(map(self.rejects, uuids)):
            return 400, {}
        return (500 if chance < _REFUSED else 200), {}

    def remember(self, connection: int, events: list[dict[str, Any]]) -> None:
        """Tell of a request that is being answered."""
        for event in events:
            self._oracle.arrived(self._name, event)


class Reader:
    """Tells of the events in lines that somebody writes: the output of a program of a broker's own, or a file that grows.

    Args:
        oracle: Who hears of them.
        name: The sink that they have arrived at.
        lines: Where they are read.
    """

    def __init__(self, oracle: Oracle, name: str, lines: BinaryIO) -> None:
        self._oracle = oracle
        self._name = name
        self._lines = lines
        self._ends = threading.Event()
        self._rest = b""
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True, name=f"reader {name}")
        self._thread.start()

    def close(self) -> None:
        """Read what is there, and end."""
        self._ends.set()
        self._thread.join(30)
        self._lines.close()

    def take(self) -> bool:
        """Tell of the whole lines that are there now; return whether there was anything."""
        data = self._lines.read1(1 << 20)  # type: ignore[attr-defined] # It is buffered, or unbuffered and a file.
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._tell(line)
        return bool(data)

    def empty(self, path: Path) -> None:
        """Make a large file of which all was read empty; nobody may be writing it."""
        with self.lock:
            while self.take():
                pass
            if path.stat().st_size > _LARGE and not self._rest:
                with path.open("r+b") as file:
                    file.truncate(0)
                self._lines.seek(0)

    def _read(self) -> None:
        while True:
            with self.lock:
                found = self.take()
            if not found:
                if self._ends.is_set():
                    return
                time.sleep(_PAUSE)

    def _tell(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            self._oracle.torn(self._name, line)
        else:
            self._oracle.arrived(self._name, event)


class Program:
    """A program that writes what has arrived at a broker, an event in a line; a context manager."""

    def __init__(self, oracle: Oracle, name: str, command: Sequence[str]) -> None:
        self._oracle = oracle
        self._name = name
        self._command = command

    def __enter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self._command, stdout=pipe, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        assert self._process.stdout is not None
        self._reader = Reader(self._oracle, self._name, self._process.stdout)  # type: ignore[arg-type] # IO[bytes] is one.
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)
        self._reader.close()


def kcat(oracle: Oracle, name: str, address: str, topic: str) -> Program:
    """Read a Kafka topic from its beginning by kcat, which is nobody's of us."""
    return Program(oracle, name, ["kcat", "-C", "-q", "-u", "-b", address, "-t", topic, "-o", "beginning", "-f", "%s\\n"])


def mosquitto_sub(oracle: Oracle, name: str, port: int, topic: str) -> Program:
    """Subscribe by mosquitto's own client; with QoS 0 the broker passes on at once what it has acknowledged."""
    options = ["-V", "5", "-h", "127.0.0.1", "-p", str(port), "-q", "0", "-F", "%p", "-t", topic]
    return Program(oracle, name, [str(shutil.which("mosquitto_sub")), *options])
