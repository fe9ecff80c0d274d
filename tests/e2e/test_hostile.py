"""A stranger on the network, another user of the machine, a proxy that nobody thought of, and a stream that sends its worst."""

import base64
import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import EVENT_BRIDGE, Bridge, Receiver, uuids
from tests.fuzz.parsers import PARSERS
from tests.support.ports import free_port
from tests.support.waiting import until

SECRET = "a token that nobody guesses"
NOBODY = 65534
MIB = 1 << 20
HOSTILE_SECONDS = float(os.environ.get("HOSTILE_SECONDS", "60"))


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorSettings(port=0, rate=20, malformed=0.2, wait_for_clients=1)) as made:
        yield made


@pytest.fixture
def bridge(tmp_path: Path, simulator: Simulator) -> Iterator[Bridge]:
    """A bridge that runs, with something in its journal that a stranger might want."""
    sinks = {"out": {"type": "stdout"}, "away": {"type": "webhook", "url": "http://127.0.0.1:1", "token": SECRET}}
    with Bridge(tmp_path / "data", {"streams": {"acme": {"url": simulator.url}}, "sinks": sinks}) as made:
        until(lambda: made.status()["streams"]["acme"]["accepted"] > 0, "events arrive")
        yield made


def memory(bridge: Bridge) -> int:
    return int(psutil.Process(bridge.pid).memory_info().rss)


def probe(bridge: Bridge) -> float:
    """How long the liveness probe takes in seconds; it must say yes."""
    began = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{bridge.port}/healthz", timeout=5) as answer:
        assert answer.status == 200
    return time.monotonic() - began


# --- a stream that sends its worst --------------------------------------------------------------------------------------


class Attack:
    """Sends all that is known to be bad, again and again, as fast as it is taken.

    Attributes:
        sent: The messages that were sent over each connection.
    """

    def __init__(self) -> None:
        self.sent: list[int] = []
        self._inputs = [data.decode("latin-1") for name in ("event", "sinks") for data in PARSERS[name].hostile(200_000)]

    def __call__(self, connection: ServerConnection) -> None:
        index = len(self.sent)
        self.sent.append(0)
        with contextlib.suppress(ConnectionClosed, OSError):
            for number, data in enumerate(itertools.cycle(self._inputs)):
                error = f'{{"type":"error","data":{{"errorMessage":"\\u001b[2J{"z" * 100_000}{number}"}}}}'
                # The list is one message, in fragments.
                for message in (data, ["a"] * 500, *["x"] * 500, error):
                    connection.send(message, text=True)
                    self.sent[index] += 1
                connection.ping(f"{number:0125}")


@contextmanager
def hostile_server(attack: Attack) -> Iterator[str]:
    server: Server = serve(attack, "127.0.0.1", 0, compression=None)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()


@pytest.mark.timeout(HOSTILE_SECONDS + 120)
def test_a_hostile_stream_stops_nobody_and_fills_nothing(tmp_path: Path) -> None:
    """Probes are answered within a second, other streams lose nothing, and memory stays within 64 MiB of where it was."""
    simulated, attack = SimulatorSettings(port=0, rate=200, seed=3, record=True, wait_for_clients=1), Attack()
    with Simulator(simulated) as good, hostile_server(attack) as url, Receiver() as receiver:
        streams = {"good": {"url": good.url}}
        sinks = {"all": {"type": "webhook", "url": receiver.url, "format": "batch"}}
        bridge = Bridge(tmp_path, {"streams": streams, "sinks": sinks})
        with bridge:
            until(lambda: receiver.count() > 500, "good events arrive")
            before = memory(bridge)
            bridge.configure({"streams": {**streams, "bad": {"url": url}}, "sinks": sinks})
            bridge.hang_up()
            slowest, largest, ends = 0.0, 0, time.monotonic() + HOSTILE_SECONDS
            while time.monotonic() < ends:
                slowest, largest = max(slowest, probe(bridge)), max(largest, memory(bridge))
                time.sleep(0.2)
            assert len(attack.sent) == 1, "the attack has ended, and begun anew"
            assert attack.sent[0] > 1000 * HOSTILE_SECONDS, "the attack has ended early"  # Some 80,000 are usual.
            assert slowest < 1.0
            assert largest - before < 64 * MIB
            status = bridge.status()["streams"]
            assert status["bad"]["malformed"], "nothing bad has arrived"
            assert bridge.log.stat().st_size < 2 * MIB
            assert b"\x1b" not in bridge.log.read_bytes()
            good.stop()
            until(lambda: set(good.sent_uuids()) <= set(uuids(receiver.events())), "everything good has arrived", seconds=60)


# --- the port -----------------------------------------------------------------------------------------------------------


def test_two_hundred_hostile_connections_cost_no_probe_and_little_memory(bridge: Bridge) -> None:
    before = memory(bridge)
    heads = [
        b"",
        b"GET /status HTTP/1.1\r\nX: ",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 15_000,
        b"POST /dead-letters/drop HTTP/1.1\r\nContent-Length: 60000\r\n\r\n",
    ]
    with contextlib.ExitStack() as stack:
        for head in itertools.islice(itertools.cycle(heads), 200):
            client = stack.enter_context(closing(socket.create_connection(("127.0.0.1", bridge.port), timeout=10)))
            client.sendall(head)
        assert max(probe(bridge) for _ in range(100)) < 1.0
        assert memory(bridge) - before < 32 * MIB


PATHS = ("/dead-letters", "/quarantine", "/journal", "/journal/events", "/journal/verify", "/journal/check")
CHANGES = ("/dead-letters/replay", "/dead-letters/drop", "/journal/prune")


def statuses(port: int, **headers: str) -> set[int]:
    """What a stranger gets from all operations."""
    found = set()
    for path in (*PATHS, *CHANGES):
        body = b'{"ids":[1],"sink":"out"}' if path in CHANGES else None
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json", **headers}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                found.add(answer.status)
        except urllib.error.HTTPError as error:
            found.add(error.code)
    return found


NGINX = """
daemon off; pid {directory}/pid; error_log {directory}/error.log; events {{}}
http {{ access_log off; client_body_temp_path {directory}/b; proxy_temp_path {directory}/p;
fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
server {{ listen 127.0.0.1:{listen}; location / {{ proxy_pass http://127.0.0.1:{port}; }} }} }}
"""
HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen all
  bind 127.0.0.1:{listen}
  server bridge 127.0.0.1:{port}
"""


def proxy_command(name: str, directory: Path, listen: int, port: int) -> list[str]:
    """A proxy as somebody sets it up who has not read our documentation."""
    config = directory / f"{name}.conf"
    match name:
        case "nginx":
            config.write_text(NGINX.format(directory=directory, listen=listen, port=port))
            return ["nginx", "-c", str(config)]
        case "haproxy":
            config.write_text(HAPROXY.format(listen=listen, port=port))
            return ["haproxy", "-f", str(config)]
    return ["socat", f"TCP-LISTEN:{listen},bind=127.0.0.1,fork,reuseaddr", f"TCP:127.0.0.1:{port}"]


@pytest.mark.parametrize("name", ["nginx", "haproxy", "socat"])
def test_a_proxy_opens_the_operations_to_nobody(tmp_path: Path, bridge: Bridge, name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    listen = free_port()
    with subprocess.Popen(proxy_command(name, tmp_path, listen, bridge.port), stderr=subprocess.DEVNULL) as proxy:
        try:
            until(lambda: answers(listen), f"{name} listens")
            assert statuses(listen) == {401}
            assert statuses(listen, Authorization="Bearer guessed", Host="localhost") == {401}
        finally:
            proxy.terminate()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# --- another user of the machine ----------------------------------------------------------------------------------------


def as_nobody(*command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command],
        capture_output=True,
        check=False,
        timeout=30,
    )


@pytest.mark.skipif(os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can be another user")
def test_another_user_reads_nothing_and_keeps_nobody_from_starting(tmp_path: Path, bridge: Bridge) -> None:
    for parent in (tmp_path, *tmp_path.parents):
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    files = sorted(bridge.directory.glob("journal.db*"))
    assert {file.name for file in files} >= {"journal.db", "journal.db-wal", "journal.db.lock"}
    for file in files:
        assert as_nobody("cat", str(file)).returncode != 0, file
        assert as_nobody("sh", "-c", f"exec 9>>{file}").returncode != 0, file
    lock = bridge.directory / "journal.db.lock"
    assert as_nobody("flock", "--shared", "--nonblock", str(lock), "true").returncode != 0
    assert SECRET.encode() not in as_nobody("ps", "-ef", "ww").stdout


def test_the_commands_of_the_bridge_s_own_user_need_no_setting(bridge: Bridge) -> None:
    for command in (
        ("backlog",),
        ("dead-letters", "list"),
        ("quarantine", "list"),
        ("journal", "verify"),
        ("journal", "prune"),
    ):
        done = subprocess.run(
            [EVENT_BRIDGE, *command, "--config", str(bridge.config)], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
    assert statuses(bridge.port) == {401}


def test_operations_leave_a_line_with_the_peer_and_wrong_tokens_are_counted(bridge: Bridge) -> None:
    subprocess.run(
        [EVENT_BRIDGE, "journal", "prune", "--config", str(bridge.config)], check=True, capture_output=True, timeout=60
    )
    began = time.monotonic()
    assert statuses(bridge.port, Authorization="Bearer guessed") == {401}

    assert time.monotonic() - began > 0.4 * len((*PATHS, *CHANGES)), "guessing costs no time"
    (line,) = bridge.said("an operator changed the journal")
    assert line["attributes"]["operation"] == "/journal/prune"
    assert line["attributes"]["client"] == "127.0.0.1"
    metrics: Any = bridge.metrics()
    assert metrics["event_bridge_http_wrong_tokens_total", frozenset()] == len((*PATHS, *CHANGES))


# --- secrets ------------------------------------------------------------------------------------------------------------


def test_no_secret_reaches_any_output(tmp_path: Path) -> None:
    """Secrets stand wherever they can, peers refuse and repeat them, and everything that the program writes is searched."""
    names = ["stream", "proxy", "hook", "header", "basic", "kafka", "mqtt", "token", "file"]
    secrets = {name: f"planted-{name}-0123456789" for name in names}
    (tmp_path / "secret").write_text(secrets["file"])

    def echo(connection: socket.socket) -> None:
        """Refuse a request, and repeat it in the answer."""
        with contextlib.suppress(OSError), connection:
            connection.settimeout(10)
            head = connection.recv(65536)
            connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\r\n" + head)

    with echo_server(echo) as port:
        web = f"http://127.0.0.1:{port}/hook"
        streams = {
            "key": {"url": f"ws://127.0.0.1:{port}", "username": "bob", "api_key": secrets["stream"]},
            "proxied": {"url": "ws://stream.example", "proxy": f"http://bob:{secrets['proxy']}@127.0.0.1:{port}"},
        }
        sinks = {
            "hook": {"type": "webhook", "url": web, "token": secrets["hook"], "headers": {"X-Key": secrets["header"]}},
            "basic": {"type": "webhook", "url": web, "username": "bob", "password": secrets["basic"]},
            "file": {"type": "webhook", "url": web, "token_file": str(tmp_path / "secret")},
            "kafka": {
                "type": "kafka",
                "bootstrap_servers": f"127.0.0.1:{port}",
                "topic": "t",
                "sasl": "PLAIN",
                "username": "bob",
                "password": secrets["kafka"],
            },
            "mqtt": {"type": "mqtt", "url": f"mqtt://127.0.0.1:{port}", "username": "bob", "password": secrets["mqtt"]},
        }
        bridge = Bridge(tmp_path, {"streams": streams, "sinks": sinks, "log": {"level": "debug"}})
        everything = {**streams, "good": {"url": "ws://127.0.0.1:1"}}
        settings = {"streams": everything, "sinks": sinks, "log": {"level": "debug"}}
        http = {"listen": f"127.0.0.1:{bridge.port}", "token": secrets["token"]}
        bridge.configure({**settings, "http": http})
        written: list[str] = []
        with bridge:
            until(lambda: all(sink["error"] for sink in bridge.status()["sinks"].values()), "every sink was refused")
            until(lambda: all(stream["error"] for stream in bridge.status()["streams"].values()), "every stream was refused")
            for command in (("check",), ("check", "--connect"), ("backlog",), ("dead-letters", "list"), ("schema",)):
                config = () if command == ("schema",) else ("--config", str(bridge.config))
                done = subprocess.run(
                    [EVENT_BRIDGE, *command, *config], capture_output=True, text=True, check=False, timeout=120
                )
                written += [done.stdout, done.stderr]
            bridge.configure({**settings, "http": {**http, "tokn": "x"}})
            bridge.hang_up()
            written += [bridge.get(path)[1] for path in ("/status", "/metrics", "/readyz", "/")]
            written.append(Path(f"/proc/{bridge.pid}/cmdline").read_text())
        written += [bridge.log.read_text(), bridge.output.read_text()]

    shown = "\n".join(written)
    assert "401" in shown or "unauthorized" in shown
    for name, secret in secrets.items():
        assert secret not in shown, name
        assert base64.b64encode(f"bob:{secret}".encode()).decode().rstrip("=") not in shown, name


@contextmanager
def echo_server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that talks to every connection in a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    Thread(target=talk, args=(connection,), daemon=True).start()

        Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
