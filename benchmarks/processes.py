"""The processes of a run: `event-bridge run`, a sender, a receiver. Each ends with its `with` block."""

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
_TIMEOUT_SECONDS: Final = 60.0

ACCEPTED: Final = "event_bridge_events_accepted_total"
DELIVERED: Final = "event_bridge_sink_events_delivered_total"


class Helper:
    """A sender or a receiver; it writes lines of JSON to its standard output."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def go(self) -> None:
        """Make a sender begin."""
        assert self._process.stdin
        self._process.stdin.write(b"go\n")

    def answer(self) -> dict[str, Any]:
        """Return the next line, decoded.

        Raises:
            TimeoutError: None came.
            RuntimeError: It reports that events are missing or arrived twice.
        """
        output = self._process.stdout
        assert output
        if not select.select([output], [], [], _TIMEOUT_SECONDS)[0]:
            raise TimeoutError(f"no answer from {self._process.args!r}")
        answer: dict[str, Any] = json.loads(output.readline() or "null") or {}
        if answer.get("missing"):
            raise RuntimeError(f"{answer['missing']} events did not arrive (negative: arrived too often)")
        return answer


class Bridge(NamedTuple):
    """A running bridge.

    Attributes:
        process: Its process.
        port: Its HTTP port.
        log: Its log file.
        startup: Seconds from its start to its first HTTP response.
    """

    process: psutil.Process
    port: int
    log: Path
    startup: float

    def metrics(self) -> dict[str, float]:
        """Return its metrics, each summed over its labels."""
        totals: dict[str, float] = {}
        for family in text_string_to_metric_families(_get(self.port, "/metrics").decode()):
            for sample in family.samples:
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
        return totals

    def wait_for(self, metric: str, value: float, pause: float = 0.02) -> float:
        """Wait until a metric has reached a value; return the monotonic time at which it was seen.

        Raises:
            RuntimeError: It did not; the text has the counters and the log.
        """
        return self.wait_until(f"{metric} is {value:g}", lambda metrics: metrics.get(metric, 0.0) >= value, pause)

    def wait_until(self, what: str, is_so: Callable[[Mapping[str, float]], bool], pause: float = 0.02) -> float:
        """Wait until a condition on the metrics holds; return the monotonic time at which it was seen.

        Raises:
            RuntimeError: It does not; the text has the counters and the log.
        """
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not is_so(metrics := self.metrics()):
            if time.monotonic() > deadline:
                counters = {name: count for name, count in metrics.items() if "events" in name}
                raise RuntimeError(f"waited in vain: {what}: {counters}\n{self.log.read_text()}")
            time.sleep(pause)
        return time.monotonic()

    def wait_until_ready(self) -> None:
        """Wait until a stream is connected and the dedup window is loaded.

        Raises:
            RuntimeError: That took too long.
        """
        self.wait_for("event_bridge_stream_connected", 1)
        self.wait_until("it is ready", lambda _: _answers(self.port, "/readyz"))

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def resident_bytes(self) -> int:
        """Return its resident memory."""
        return int(self.process.memory_info().rss)

    def peak_bytes(self) -> int:
        """Return the peak of its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


@contextmanager
def sender(*options: str) -> Iterator[tuple[Helper, str]]:
    """Run a sender; yield it and its URL."""
    with _helper("benchmarks.sender", *options) as helper:
        yield helper, f"ws://127.0.0.1:{helper.answer()['port']}"


@contextmanager
def receiver(*options: str, stdin: int | IO[bytes] | None = None) -> Iterator[Helper]:
    """Run a receiver that reads its standard input from `stdin`."""
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
    """Run `event-bridge run` with its journal in a directory; yield it when it answers HTTP. `stdout` is a descriptor."""
    config, log = directory / "bridge.yaml", directory / "stderr.log"
    settings = {
        "journal": {"path": str(directory / "journal.db"), "durability": "full", **(journal or {})},
        "http": {"listen": "127.0.0.1:0"},
        "log": {"format": "json"},
        "streams": {name: dict(stream) for name, stream in streams.items()},
        "sinks": {name: {"start_at": "earliest", **sink} for name, sink in sinks.items()},
    }
    config.write_text(yaml.safe_dump(settings))
    command: Sequence[str | Path] = [Path(sys.executable).with_name("event-bridge"), "run", "--config", config]
    began = time.monotonic()
    with log.open("wb") as errors:
        output = subprocess.DEVNULL if stdout is None else stdout
        process = subprocess.Popen(command, stdout=output, stderr=errors, env={"PATH": os.defpath}, cwd=directory)
    try:
        while (port := _port(log)) is None or not _answers(port):
            if process.poll() is not None or time.monotonic() - began > _TIMEOUT_SECONDS:
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
        process.wait(_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _port(log: Path) -> int | None:
    """Return the HTTP port of the bridge, or None until it is logged."""
    address = re.search(r'"http": "http://127.0.0.1:(\d+)"', log.read_text())
    return int(address[1]) if address else None


def _answers(port: int, path: str = "/healthz") -> bool:
    try:
        _get(port, path)
    except OSError:
        return False
    return True


def _get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != HTTPStatus.OK:
        raise OSError(f"{path} answers {response.status}: {body.decode()}")
    return body
