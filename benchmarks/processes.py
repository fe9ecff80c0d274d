"""The processes of a run: the bridge as everybody starts it, a sender, a receiver. Each is ended with its `with` block."""

import http.client
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

_ROOT: Final = Path(__file__).parent.parent
_COMMAND: Final = Path(sys.executable).with_name("event-bridge")
_LISTENS: Final = re.compile(r'"http": "http://127.0.0.1:(\d+)"')
_PATIENCE: Final = 60.0
"""Seconds that anything may take; what takes longer has failed."""


class Helper:
    """A sender or a receiver: it answers with lines of JSON."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def go(self) -> None:
        """Let a sender begin."""
        assert self._process.stdin
        self._process.stdin.write(b"go\n")

    def answer(self) -> dict[str, Any]:
        """Wait for the next line.

        Raises:
            TimeoutError: None came.
            RuntimeError: It tells that not every event arrived once.
        """
        output = self._process.stdout
        assert output
        if not select.select([output], [], [], _PATIENCE)[0]:
            raise TimeoutError(f"no answer from {self._process.args!r}")
        answer: dict[str, Any] = json.loads(output.readline() or "null") or {}
        if answer.get("missing"):
            raise RuntimeError(f"{answer['missing']} events did not arrive (negative: arrived too often)")
        return answer


class Bridge(NamedTuple):
    """A bridge that runs.

    Attributes:
        process: Its process.
        port: Where it answers HTTP.
        log: Where its log goes.
        startup: Seconds from its start to its first answer.
    """

    process: psutil.Process
    port: int
    log: Path
    startup: float

    def metrics(self) -> dict[str, float]:
        """Its metrics, each summed over its labels."""
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(_get(self.port, "/metrics").decode()):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return totals

    def wait_for(self, metric: str, value: float, pause: float = 0.02) -> float:
        """Wait until a metric has reached a value; return the monotonic time at which it was seen.

        Raises:
            RuntimeError: It did not; the text says where the bridge stands.
        """
        return self.wait_until(f"{metric} is {value:g}", lambda metrics: metrics.get(metric, 0.0) >= value, pause)

    def wait_until(self, what: str, is_so: Callable[[Mapping[str, float]], bool], pause: float = 0.02) -> float:
        """Wait until the metrics say something; return the monotonic time at which it was seen.

        Raises:
            RuntimeError: They do not; the text says where the bridge stands.
        """
        deadline = time.monotonic() + _PATIENCE
        while not is_so(metrics := self.metrics()):
            if time.monotonic() > deadline:
                counters = {name: count for name, count in metrics.items() if "events" in name}
                raise RuntimeError(f"waited in vain: {what}: {counters}\n{self.log.read_text()}")
            time.sleep(pause)
        return time.monotonic()

    def wait_until_ready(self) -> None:
        """Wait until it accepts events: its streams are connected, and it knows what it has seen before.

        Raises:
            RuntimeError: It does not.
        """
        self.wait_for("event_bridge_stream_connected", 1)
        self.wait_until("it is ready", lambda _: _answers(self.port, "/readyz"))

    def cpu_seconds(self) -> float:
        """What it has used of all cores so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        """How much memory it has now."""
        return int(self.process.memory_info().rss)

    def peak_bytes(self) -> int:
        """How much memory it had at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


@contextmanager
def sender(*options: str) -> Iterator[tuple[Helper, str]]:
    """A sender and its URL."""
    with _helper("benchmarks.sender", *options) as helper:
        yield helper, f"ws://127.0.0.1:{helper.answer()['port']}"


@contextmanager
def receiver(*options: str, stdin: int | IO[bytes] | None = None) -> Iterator[Helper]:
    """A receiver; it reads its standard input from `stdin`."""
    with _helper("benchmarks.receiver", *options, stdin=stdin) as helper:
        yield helper


@contextmanager
def bridge(
    directory: Path,
    streams: Mapping[str, Mapping[str, object]],
    sinks: Mapping[str, Mapping[str, object]],
    stdout: int | None = None,
    journal: Mapping[str, object] | None = None,
) -> Iterator[Bridge]:
    """`event-bridge run`, with its journal in a directory, from the moment at which it answers; `stdout` is a descriptor."""
    config, log = directory / "bridge.yaml", directory / "stderr.log"
    settings = {
        "journal": {"path": str(directory / "journal.db"), "durability": "full", **(journal or {})},
        "http": {"listen": "127.0.0.1:0"},
        "log": {"format": "json"},
        "streams": {name: dict(stream) for name, stream in streams.items()},
        "sinks": {name: {"start_at": "earliest", **sink} for name, sink in sinks.items()},
    }
    config.write_text(yaml.safe_dump(settings))
    command: Sequence[str | Path] = [_COMMAND, "run", "--config", config]
    began = time.monotonic()
    with log.open("wb") as errors:
        output = subprocess.DEVNULL if stdout is None else stdout
        process = subprocess.Popen(command, stdout=output, stderr=errors, env={"PATH": os.defpath}, cwd=directory)
    try:
        while (port := _port(log)) is None or not _answers(port):
            if process.poll() is not None or time.monotonic() - began > _PATIENCE:
                raise RuntimeError(f"the bridge does not run: {log.read_text()}")
            time.sleep(0.005)
        yield Bridge(psutil.Process(process.pid), port, log, time.monotonic() - began)
    finally:
        _end(process)


@contextmanager
def _helper(module: str, *options: str, stdin: int | IO[bytes] | None = subprocess.PIPE) -> Iterator[Helper]:
    command: Sequence[str] = [sys.executable, "-m", module, *options]
    process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, bufsize=0, cwd=_ROOT)
    try:
        yield Helper(process)
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _port(log: Path) -> int | None:
    """Where the bridge answers HTTP, as soon as its log tells."""
    found = _LISTENS.search(log.read_text())
    return int(found[1]) if found else None


def _answers(port: int, path: str = "/healthz") -> bool:
    try:
        _get(port, path)
    except OSError:
        return False
    return True


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != HTTPStatus.OK:
        raise OSError(f"{path} answers {response.status}: {body.decode()}")
    return body
