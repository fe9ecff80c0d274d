"""The real command as a process, and a webhook receiver that remembers requests and can misbehave."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import yaml
from prometheus_client.parser import text_string_to_metric_families

from bridge.simulator.server import Simulator
from tests.support.ports import free_port
from tests.support.waiting import until

EVENT_BRIDGE = str(Path(sys.executable).with_name("event-bridge"))


def clean_environment(**variables: str) -> dict[str, str]:
    """The environment without any variable that configures a bridge, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BRIDGE_", "DOCKERCLOUD_"))}
    return {**kept, **variables}


def command(*arguments: str, cwd: Path, seconds: float = 30, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `event-bridge` with these arguments to its end."""
    return subprocess.run(
        [EVENT_BRIDGE, *arguments],
        cwd=cwd,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@contextlib.contextmanager
def running(*arguments: str, cwd: Path, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """`event-bridge` with these arguments as a process with pipes; killed at the end, if it still runs then."""
    process = subprocess.Popen(
        [EVENT_BRIDGE, *arguments], cwd=cwd, env=clean_environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Bridge:
    """`event-bridge run` as a process of its own, with a configuration file in a directory.

    Attributes:
        config: The file.
        command: What is run instead of `event-bridge`, if a test needs that.
        variables: Environment variables that it gets in addition.
    """

    def __init__(self, directory: Path, settings: Mapping[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.command = [EVENT_BRIDGE]
        self.variables: dict[str, str] = {}
        self.port = free_port()
        self.directory = directory
        self.config = directory / "bridge.yaml"
        self.configure(settings)
        self.log = directory / "log.jsonl"
        self.output = directory / "stdout.jsonl"
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write its configuration file, so that nobody finds half of it."""
        base = {"journal": {"path": str(self.directory / "journal.db")}, "http": {"listen": f"127.0.0.1:{self.port}"}}
        whole: dict[str, Any] = {**base, **settings}
        # Remembered, since a test may put something else into the file.
        self.journal = whole["journal"].get("path", base["journal"]["path"])
        new = self.config.with_suffix(".new")
        new.write_text(yaml.safe_dump(whole))
        new.replace(self.config)

    def hang_up(self) -> None:
        """SIGHUP: read the configuration again; return when that is done."""
        before = self.status()["reload"]
        self.signal(signal.SIGHUP)
        until(lambda: bool(self.status()["reload"] != before), "the configuration is read again")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def said(self, text: str) -> list[Any]:
        """The log lines with this text, decoded."""
        lines = map(json.loads, self.log.read_text().splitlines())
        return [line for line in lines if text in line["body"]]

    def launch(self) -> None:
        """Start it, and wait for nothing."""
        with self.log.open("ab") as log, self.output.open("ab") as output:
            command = [*self.command, "run", "--config", str(self.config)]
            environment = clean_environment(**self.variables)
            self._process = subprocess.Popen(command, stdout=output, stderr=log, env=environment)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.launch()
        until(self.answers, f"the bridge answers; its log: {self.log.read_text()[-2000:]}")

    def answers(self) -> bool:
        """Return True if its port is open. Fails if the process is gone."""
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"the bridge ended with {self._process.returncode}: {self.log.read_text()[-2000:]}")
        try:
            return self.get("/healthz")[0] == 200
        except OSError:
            return False

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def kill(self) -> int:
        """`kill -9`; return the exit status, which tells whether it had ended by itself before."""
        self.process.kill()
        return self.wait()

    def wait(self, seconds: float = 30) -> int:
        """Wait until it has ended by itself; return the exit status, which is negative for a signal."""
        status = self.process.wait(seconds)
        self._process = None
        return status

    def stop(self) -> int:
        """SIGTERM; return the exit status."""
        self.signal(signal.SIGTERM)
        try:
            return self.wait()
        finally:
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    def get(self, path: str) -> tuple[int, str]:
        """GET from its port: status and body."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        with contextlib.suppress(OSError, IndexError):
            lock = Path(f"{self.journal}.lock")
            request.add_header("Authorization", f"Bearer {lock.read_text().split()[2]}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """A scrape: name and labels to value."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    def status(self) -> Any:
        """Return the answer of `/status`."""
        return json.loads(self.get("/status")[1])

    def pending(self) -> int:
        """Events that wait, over all sinks."""
        return sum(sink["pending"] for sink in self.status()["sinks"].values())

    def lines(self) -> list[Any]:
        """Return the events on its standard output."""
        return [json.loads(line) for line in self.output.read_text().splitlines()]


def value(metrics: Mapping[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    wanted = set(labels.items())
    found = [v for (sample, its), v in metrics.items() if sample == f"event_bridge_{name}" and wanted <= its]
    assert found, f"no metric event_bridge_{name} with {labels}"
    return sum(found)


def assert_books_balance(metrics: Mapping[tuple[str, frozenset[tuple[str, str]]], float]) -> None:
    """Check that received is accepted + duplicate + malformed, and that every accepted event is somewhere at every sink."""
    labels = {dict(its)["stream"] for name, its in metrics if name == "event_bridge_events_received_total"}
    for stream in labels:
        parts = [value(metrics, f"events_{part}_total", stream=stream) for part in ("accepted", "duplicate", "malformed")]
        assert value(metrics, "events_received_total", stream=stream) == sum(parts)
    accepted = value(metrics, "events_accepted_total")
    for sink in {dict(its)["sink"] for name, its in metrics if name == "event_bridge_sink_pending_events"}:
        exits = [value(metrics, f"sink_events_{end}_total", sink=sink) for end in ("delivered", "filtered", "dead", "dropped")]
        replayed = value(metrics, "sink_events_replayed_total", sink=sink)
        rewound = value(metrics, "sink_events_rewound_total", sink=sink)
        assert accepted + replayed + rewound == sum(exits) + value(metrics, "sink_pending_events", sink=sink)
        gone = replayed + value(metrics, "sink_dead_letters_discarded_total", sink=sink)
        assert value(metrics, "sink_events_dead_total", sink=sink) == gone + value(metrics, "sink_dead_letters", sink=sink)


class Receiver:
    """A webhook receiver that remembers every event of every request that it answered with 2xx, and can misbehave.

    Attributes:
        requests: The answered requests in their order: the number of the connection, and the events.
        answer: Decides on the status and headers for the events of a request; 200 if not set.
        hang: While set, requests are read and not answered.
        hung: A request has been kept without an answer.
        token: The bearer token that requests must have; none is asked for if not set.
    """

    def __init__(self, port: int | None = None) -> None:
        self.requests: list[tuple[int, list[dict[str, Any]]]] = []
        self.answer: Callable[[list[dict[str, Any]]], tuple[int, dict[str, str]]] = lambda _: (200, {})
        self.hang = threading.Event()
        self.hung = False
        self.token: str | None = None
        self._lock = threading.Lock()
        self._connections = 0
        self.port = port or free_port()
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def events(self) -> list[dict[str, Any]]:
        """All events in the order of arrival."""
        with self._lock:
            return [event for _, events in self.requests for event in events]

    def count(self) -> int:
        with self._lock:
            return sum(len(events) for _, events in self.requests)

    def wait_for_more(self) -> None:
        """Wait until an event arrives that is not here yet."""
        before = self.count()
        until(lambda: self.count() > before, "events arrive")

    def start(self) -> None:
        self._server = _Listener(("127.0.0.1", self.port), self._request_class())
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go away: nobody listens any more, and open connections are cut."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang.clear()
        self.stop()

    @property
    def is_listening(self) -> bool:
        return self._server is not None

    def new_connection(self) -> int:
        """Count a connection; return its number."""
        with self._lock:
            self._connections += 1
            return self._connections

    def remember(self, connection: int, events: list[dict[str, Any]]) -> None:
        """Note a request that is being answered."""
        with self._lock:
            self.requests.append((connection, events))

    def _request_class(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Request(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                self.number = receiver.new_connection()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                found = json.loads(body)
                events = found if isinstance(found, list) else [found]
                while receiver.hang.is_set():
                    receiver.hung = True
                    time.sleep(0.05)
                if not receiver.is_listening:
                    self.close_connection = True
                    return
                welcome = receiver.token is None or self.headers["Authorization"] == f"Bearer {receiver.token}"
                status, headers = receiver.answer(events) if welcome else (401, {})
                if status < 300:
                    receiver.remember(self.number, events)
                self.send_response(status)
                for name, text in headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Request


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed in the middle is what these tests are about."""


def uuids(events: Iterable[Mapping[str, Any]]) -> list[str]:
    return [event["uuid"] for event in events]


def repeated(events: Iterable[Mapping[str, Any]]) -> set[str]:
    """The uuids that are there more than once."""
    return {uuid for uuid, count in Counter(uuids(events)).items() if count > 1}


def wait_for_all(bridge: Bridge, simulator: Simulator) -> None:
    """Wait until all that was sent is accepted, and all of that is delivered."""
    until(lambda: value(bridge.metrics(), "events_accepted_total") == len(simulator.sent_uuids()), "all that was sent is heard")
    until(lambda: bridge.pending() == 0, "everything is delivered", 60.0)


def assert_order_per_resource(events: Iterable[Mapping[str, Any]], sent: Iterable[str]) -> None:
    """The first arrivals of each resource's events are in the order in which they were sent."""
    place = {uuid: index for index, uuid in enumerate(sent)}
    last: dict[str, int] = {}
    seen: set[str] = set()
    for event in events:
        if event["uuid"] in seen:
            continue
        seen.add(event["uuid"])
        index = place[event["uuid"]]
        resource = event["resource_uri"]
        assert last.get(resource, -1) < index, f"{resource}: {event['uuid']} came after a later one"
        last[resource] = index
