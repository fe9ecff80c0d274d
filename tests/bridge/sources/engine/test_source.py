"""`EngineSource` on real sockets, against an Engine of our own that also does what a real one seldom does."""

import contextlib
import itertools
import json
import os
import queue
import shutil
import socket
import socketserver
import ssl
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import pytest
from structlog.testing import capture_logs

from bridge.event import Malformed, Reception, normalize
from bridge.journal import Journal, JournalSettings
from bridge.metrics import Metrics, StreamMetrics
from bridge.pipeline.stream import Stream
from bridge.source import Ended, Read
from bridge.sources.engine.connection import Address
from bridge.sources.engine.settings import EngineSettings
from bridge.sources.engine.source import EngineSession, EngineSource
from bridge.sources.engine.wire import MAX_OBJECT_BYTES
from tests.support.engine_samples import (
    CLUSTER,
    CLUSTER_URI,
    DAEMON,
    NODE,
    NODE_URI,
    NOW,
    SERVICE_URI,
    STACK_URI,
    SWARM_LABELS,
    chunked,
    engine_event,
    line,
)
from tests.support.waiting import until


@pytest.mark.parametrize(
    ("url", "tls", "expected"),
    [
        ("unix:///var/run/docker.sock", False, Address("/var/run/docker.sock")),
        ("tcp://engine:2375", False, Address("", "engine", 2375)),
        ("tcp://engine", False, Address("", "engine", 2375)),
        ("tcp://engine/", True, Address("", "engine", 2376)),
        ("tcp://[::1]:99", False, Address("", "::1", 99)),
    ],
)
def test_the_addresses_that_docker_uses_are_understood(url: str, tls: bool, expected: Address) -> None:
    assert Address.parse(url, tls=tls) == expected


@pytest.mark.parametrize(
    "url", ["", "unix://relative/path", "/var/run/docker.sock", "ssh://host", "tcp://u:secret@host", "tcp:///"]
)
def test_another_address_is_refused_with_words_that_help_and_without_its_secrets(url: str) -> None:
    with pytest.raises(ValueError, match=r"unix:///var/run/docker\.sock or tcp://127\.0\.0\.1:2375") as refused:
        EngineSource(EngineSettings(type="engine", url=url))

    assert "secret" not in str(refused.value)


# ------------------------------------------------------------------------------- against an Engine of our own

INFO: Final = {"ID": DAEMON, "SystemTime": "2026-11-23T20:05:56.682930123Z", "Swarm": {"NodeID": ""}}
Answer = tuple[int, bytes]


class FakeEngine:
    """Answers like an Engine; what it says in `/events` comes from the test, byte by byte."""

    def __init__(self, server: socketserver.BaseServer, url: str) -> None:
        self.url = url
        self.requests: list[str] = []
        self.answers: dict[str, Answer] = {"/info": (200, json.dumps(INFO).encode()), "/_ping": (200, b"OK")}
        self.events_headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}
        self.early = b""
        self.silent: set[str] = set()
        self.dripping: set[str] = set()
        self.stopping = threading.Event()
        self._server = server
        self._streams: list[queue.Queue[tuple[bytes, threading.Event]]] = []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def say(self, data: bytes) -> None:
        """Write to the newest stream, and return when it is written; nothing means the end of the connection."""
        written = threading.Event()
        self._streams[-1].put((data, written))
        assert written.wait(10)

    def tell(self, *raws: dict[str, Any]) -> None:
        """Write events, each in a chunk as the Engine does."""
        self.say(chunked(*(line(raw) for raw in raws)))

    def stop(self) -> None:
        self.stopping.set()
        for stream in self._streams:
            stream.put((b"", threading.Event()))
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        self.requests.append(request.path)
        if path in self.silent:
            self.stopping.wait(10)
        elif path in self.dripping:
            while not self.stopping.wait(0.02):
                request.wfile.write(b"H")
                request.wfile.flush()
        elif path in self.answers:
            status, body = self.answers[path]
            request.send_response(status)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)
        else:
            self._stream(request)

    def _stream(self, request: BaseHTTPRequestHandler) -> None:
        stream: queue.Queue[tuple[bytes, threading.Event]] = queue.Queue()
        self._streams.append(stream)
        request.send_response(200)
        for name, value in self.events_headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(self.early)
        request.close_connection = True
        data, written = b"nothing yet", threading.Event()
        while data:
            request.wfile.flush()
            written.set()
            data, written = stream.get()
            request.wfile.write(data)
        request.connection.shutdown(socket.SHUT_RDWR)
        written.set()


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class TcpServer(socketserver.ThreadingTCPServer):
    daemon_threads = True


@contextlib.contextmanager
def serving(server_class: type[UnixServer | TcpServer], at: Any, context: ssl.SSLContext | None = None) -> Iterator[FakeEngine]:
    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # What belongs together is written at once.

        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                fake.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = server_class(at, Request)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    where: Any = server.server_address
    fake = FakeEngine(server, f"unix://{where}" if isinstance(where, str) else f"tcp://localhost:{where[1]}")
    try:
        yield fake
    finally:
        fake.stop()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path that is short enough for a socket, and open to every user."""
    path = Path(tempfile.mkdtemp(prefix="engine-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def engine(directory: Path) -> Iterator[FakeEngine]:
    with serving(UnixServer, str(directory / "docker.sock")) as engine:
        yield engine


def source_of(engine: FakeEngine, clock: Callable[[], float] = lambda: 0.0, **changes: Any) -> EngineSource:
    settings = EngineSettings(type="engine", url=engine.url, namespace="acme", connect_timeout=10)
    times = {name: changes.pop(name) for name in ("read_timeout", "quiet") if name in changes}
    return EngineSource(settings.model_copy(update=changes), clock, **times)


@contextlib.contextmanager
def session_of(engine: FakeEngine, position: str | None = None, **changes: Any) -> Iterator[EngineSession]:
    """A session after its first read."""
    session = source_of(engine, **changes).open(position)
    try:
        assert session.read().messages == ()
        yield session
    finally:
        session.close()


def ended(call: Callable[[], object]) -> Ended:
    with pytest.raises(Ended) as info:
        call()
    return info.value


def query_of(request: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(request).query)


def test_a_first_session_asks_for_what_happens_from_now_on_by_the_engine_s_clock(engine: FakeEngine) -> None:
    source_of(engine).open(None).close()

    assert engine.requests[0] == "/info"
    assert urlsplit(engine.requests[1]).path == "/events"
    assert query_of(engine.requests[1]) == {"since": ["1795464356.682930000"], "filters": ['{"type": ["container"]}']}


def test_a_session_asks_for_everything_since_a_little_before_its_position(engine: FakeEngine) -> None:
    source_of(engine).open("1795464300000000007").close()

    assert query_of(engine.requests[1])["since"] == ["1795464270.000000007"]


def test_the_first_read_says_from_where_to_resume_before_anything_has_come(engine: FakeEngine) -> None:
    session = source_of(engine).open(None)
    first = session.read()
    session.close()
    again = source_of(engine).open(first.position)
    second = again.read()
    again.close()

    assert first == Read(heard=True, position="1795464356682930000+")
    assert second.position == first.position
    assert query_of(engine.requests[-1])["since"] == ["1795464356.682930000"]


def test_a_session_that_resumes_starts_with_the_position_it_was_given(engine: FakeEngine) -> None:
    session = source_of(engine).open("1795464300000000007")

    assert session.read().position == "1795464300000000007"
    session.close()


def test_the_engine_s_time_may_have_a_zone_and_few_digits(engine: FakeEngine) -> None:
    engine.answers["/info"] = (200, json.dumps({**INFO, "SystemTime": "2026-11-23T22:05:56.5+02:00"}).encode())
    source_of(engine).open(None).close()

    assert query_of(engine.requests[1])["since"] == ["1795464356.500000000"]


def test_one_read_brings_everything_that_the_socket_holds(engine: FakeEngine) -> None:
    with session_of(engine) as session:
        engine.tell(*(engine_event(nanos=NOW + number) for number in range(200)))
        read = session.read()

    assert [json.loads(event)["time_nano"] for event in read.messages] == [NOW + number for number in range(200)]
    assert read.heard
    assert read.position == str(NOW + 199)


def test_what_comes_together_with_the_headers_is_not_lost(engine: FakeEngine) -> None:
    whole = chunked(line(engine_event(nanos=NOW + 1)), line(engine_event("die", nanos=NOW + 2)))
    engine.early = whole[:-60]
    with session_of(engine) as session:
        early = session.read()
        engine.say(whole[-60:])
        late = session.read()

    assert [json.loads(event)["state"] for event in (*early.messages, *late.messages)] == ["Running", "Stopped"]


def test_a_body_without_chunks_is_read_too(engine: FakeEngine) -> None:
    engine.events_headers = {"Connection": "close"}
    with session_of(engine) as session:
        engine.say(line(engine_event(nanos=NOW)))

        assert len(session.read().messages) == 1


def test_the_position_is_the_greatest_time_that_was_seen_and_never_goes_back(engine: FakeEngine) -> None:
    with session_of(engine) as session:
        engine.tell(engine_event(nanos=NOW + 7), engine_event("die", nanos=NOW + 5))
        first = session.read()
        engine.tell(engine_event("destroy", nanos=NOW + 6))
        second = session.read()

    assert (first.position, second.position) == (str(NOW + 7), str(NOW + 7))
    assert (len(first.messages), len(second.messages)) == (2, 1)


def test_a_kill_after_many_events_without_a_counterpart_makes_no_event_missing(engine: FakeEngine, tmp_path: Path) -> None:
    """The Engine remembers its last 256 events, of all kinds: a position that stands still falls out of that."""
    ignored = [line(engine_event("exec_create: sh", nanos=NOW + number)) for number in range(1, 301)]
    now = itertools.count(0.0, 0.5)
    journal = Journal(JournalSettings(path=tmp_path / "journal.db", durability="normal"))

    def stream() -> Stream:
        metrics = StreamMetrics(Metrics("test"), "host")
        source = source_of(engine)
        return Stream(
            "host", source.settings, source, journal, metrics=metrics, max_event_bytes=10_000, monotonic=lambda: next(now)
        )

    threading.Thread(target=stream().step, daemon=True).start()
    until(lambda: len(engine.requests) == 2, "the session is open")
    engine.tell(engine_event("start", nanos=NOW))
    for one in ignored:
        engine.say(chunked(one))
    until(lambda: str(journal.position("host")).startswith(str(NOW + 300)), "the position has moved")

    engine.early = chunked(*ignored[-256:])
    after = stream()
    with capture_logs() as logs:
        thread = threading.Thread(target=after.step)
        thread.start()
        until(lambda: len(engine.requests) == 4, "the next session is open")
        engine.tell(engine_event("die", nanos=NOW + 1000))
        until(lambda: journal.counters().streams["host"].accepted == 2, "an event arrives")
        after.stop()
        thread.join(10)
    assert not [entry for entry in logs if "missing" in entry["event"]]
    journal.close()


def test_what_has_no_counterpart_is_counted_and_moves_the_position(engine: FakeEngine) -> None:
    with session_of(engine) as session:
        engine.tell(engine_event("exec_start: ls", nanos=NOW + 1), engine_event("kill", nanos=NOW + 2, signal="1"))

        assert session.read() == Read([], heard=True, ignored=2, position=str(NOW + 2))


@pytest.mark.parametrize(
    "broken",
    [
        b"not json",
        b"[1,2]",
        b"{}",
        b'{"Type":"\xff"}',
        b'{"Type":5}',
        b'{"Type":"container","timeNano":-1}',
        b'{"Type":"x","Actor":"x"}',
    ],
)
def test_what_is_no_engine_event_is_passed_on_as_it_is_and_the_session_goes_on(engine: FakeEngine, broken: bytes) -> None:
    with session_of(engine) as session:
        engine.say(chunked(broken + b"\n", line(engine_event(nanos=NOW))))
        read = session.read()

    assert (read.messages[0], len(read.messages)) == (broken, 2)
    assert isinstance(normalize(broken, Reception.at("acme", datetime.now(UTC)), MAX_OBJECT_BYTES), Malformed)


def test_a_manager_s_events_tell_its_cluster(engine: FakeEngine) -> None:
    swarm = {"NodeID": NODE, "Cluster": {"ID": CLUSTER}}
    engine.answers["/info"] = (200, json.dumps({**INFO, "Swarm": swarm}).encode())
    with session_of(engine) as session:
        engine.tell(engine_event(**SWARM_LABELS))
        read = session.read()

    assert json.loads(read.messages[0])["parents"] == [SERVICE_URI, NODE_URI, STACK_URI, CLUSTER_URI]


def test_a_clock_that_was_set_back_is_said_and_everything_is_read_again(engine: FakeEngine) -> None:
    with capture_logs() as logs, session_of(engine, "1795469999000000000") as session:
        engine.tell(engine_event(nanos=NOW))
        read = session.read()

    assert query_of(engine.requests[1])["since"] == ["0.000000000"]
    assert read.position == str(NOW)
    assert [entry["event"] for entry in logs] == ["the engine's clock was set back, reading again all it still has"]


def test_a_position_of_another_kind_of_stream_is_said_and_the_session_begins_now(engine: FakeEngine) -> None:
    with capture_logs() as logs, session_of(engine, "topic:0:17"):
        pass

    assert query_of(engine.requests[1])["since"] == ["1795464356.682930000"]
    assert [entry["event"] for entry in logs] == ["position not understood, beginning now"]


@pytest.mark.parametrize(
    ("replayed", "complete"),
    [([NOW - 5, NOW, NOW + 5], True), ([NOW + 5, NOW + 6], False), ([NOW - 5], True)],
    ids=["with the last one", "without", "not that far yet"],
)
def test_a_replay_without_the_last_event_seen_is_said_to_be_incomplete(
    engine: FakeEngine,
    replayed: list[int],
    complete: bool,
) -> None:
    with capture_logs() as logs, session_of(engine, str(NOW)) as session:
        engine.tell(*(engine_event(nanos=nanos) for nanos in replayed))
        session.read()

    missing = [entry for entry in logs if entry["event"].startswith("events may be missing")]
    assert len(missing) == (0 if complete else 1)


def test_nothing_is_missing_if_nothing_had_been_seen(engine: FakeEngine) -> None:
    with capture_logs() as logs, session_of(engine, f"{NOW}+") as session:
        engine.tell(engine_event(nanos=NOW + 5))
        session.read()

    assert logs == []


# --------------------------------------------------------------------------------------------- how it ends


def test_a_closed_connection_ends_the_session_after_what_came_before(engine: FakeEngine) -> None:
    with session_of(engine) as session:
        engine.tell(engine_event())
        engine.say(b"")

        assert len(session.read().messages) == 1
        assert ended(session.read).reason == "closed"


def test_the_last_chunk_ends_the_session_after_what_came_before(engine: FakeEngine) -> None:
    with session_of(engine) as session:
        engine.say(chunked(line(engine_event())) + b"0\r\n\r\n")

        assert len(session.read().messages) == 1
        assert ended(session.read).reason == "closed"


def test_broken_chunks_end_the_session(engine: FakeEngine) -> None:
    with session_of(engine) as session:
        engine.say(b"what is this?\r\n")

        assert ended(session.read).reason == "protocol"


def test_abort_wakes_a_blocked_read(engine: FakeEngine) -> None:
    ends: list[Ended] = []
    with session_of(engine, read_timeout=60) as session:
        reader = threading.Thread(target=lambda: ends.append(ended(session.read)))
        reader.start()
        session.abort()
        session.abort()
        reader.join(10)

    assert [end.reason for end in ends] == ["closed"]


def test_a_session_can_be_closed_and_aborted_in_any_order(engine: FakeEngine) -> None:
    with session_of(engine) as session:
        session.close()
        session.abort()
        session.close()

        assert ended(session.read).reason in {"closed", "network"}


def test_a_silent_stream_returns_in_time_with_nothing(engine: FakeEngine) -> None:
    with session_of(engine, read_timeout=0.02) as session:
        assert session.read() == Read(position=f"{NOW}+")
        assert session.read() == Read(position=f"{NOW}+")
        engine.tell(engine_event())
        assert len(session.read().messages) == 1

    assert not [request for request in engine.requests if request == "/_ping"]


@pytest.mark.parametrize("answer", [(200, b"OK"), (403, b"not allowed by the socket proxy")])
def test_an_answer_to_a_ping_is_life(engine: FakeEngine, answer: Answer) -> None:
    engine.answers["/_ping"] = answer
    time = [100.0]
    with session_of(engine, clock=lambda: time[0], read_timeout=0.02, quiet=30) as session:
        time[0] = 129.9
        assert not session.read().heard
        time[0] = 130.0
        assert session.read().heard
        time[0] = 159.9
        assert not session.read().heard

    assert engine.requests.count("/_ping") == 1


def test_an_event_is_life_too(engine: FakeEngine) -> None:
    time = [100.0]
    with session_of(engine, clock=lambda: time[0], read_timeout=0.02) as session:
        time[0] = 120.0
        engine.tell(engine_event())
        session.read()
        time[0] = 149.9
        assert not session.read().heard

    assert "/_ping" not in engine.requests


def test_an_engine_that_does_not_answer_a_ping_is_dead(engine: FakeEngine) -> None:
    engine.silent.add("/_ping")
    time = [100.0]
    with session_of(engine, clock=lambda: time[0], read_timeout=0.02, connect_timeout=0.2) as session:
        time[0] = 130.0
        end = ended(session.read)

    assert end.reason == "dead"
    assert "silent for 30 s" in str(end)


# ------------------------------------------------------------------------------------- how it does not begin


@pytest.mark.parametrize("path", ["/info", "/events"])
def test_an_engine_that_does_not_answer_is_given_up_in_time(engine: FakeEngine, path: str) -> None:
    engine.silent.add(path)

    end = ended(lambda: source_of(engine, connect_timeout=0.2).open(None))

    assert (end.reason, "no answer within 0.2 s" in str(end)) == ("network", True)


def test_an_engine_that_answers_drop_by_drop_is_given_up_in_time(engine: FakeEngine) -> None:
    engine.dripping.add("/info")

    end = ended(lambda: source_of(engine, connect_timeout=0.3).open(None))

    assert (end.reason, "no answer within 0.3 s" in str(end)) == ("network", True)


def test_sessions_of_every_end_leave_nothing_behind(engine: FakeEngine) -> None:
    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    info = engine.answers["/info"]
    before = held()
    for number in range(300):
        engine.answers["/info"] = (500, b'{"message":"busy"}') if number % 3 == 0 else info
        try:
            session = source_of(engine).open(None)
        except Ended:
            continue
        session.read()
        if number % 3 == 1:
            session.close()
        engine.say(b"")
        session.close()
    until(lambda: held() <= before, "the Engine's threads, which may be a moment behind, have closed theirs")


def test_a_missing_socket_is_named_with_what_helps(directory: Path) -> None:
    end = ended(lambda: EngineSource(EngineSettings(type="engine", url=f"unix://{directory}/docker.sock")).open(None))

    assert end.reason == "network"
    assert str(end) == f"{directory}/docker.sock: no such socket; is the Docker daemon running, and its socket mounted here?"


def test_a_socket_without_a_listener_is_named_with_what_helps(directory: Path) -> None:
    path = directory / "docker.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    end = ended(lambda: EngineSource(EngineSettings(type="engine", url=f"unix://{path}")).open(None))

    assert (end.reason, "is the Docker daemon running" in str(end)) == ("network", True)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """What root may do, nobody may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_socket_that_may_not_be_used_is_named_with_its_group(engine: FakeEngine, directory: Path) -> None:
    (directory / "docker.sock").chmod(0)
    with unprivileged():
        end = ended(lambda: source_of(engine).open(None))

    assert end.reason == "network"
    assert f"permission denied; add the bridge's user to the socket's group, {os.getegid()} (" in str(end)


def test_a_socket_in_a_closed_directory_is_named_as_such(engine: FakeEngine, directory: Path) -> None:
    directory.chmod(0)
    with unprivileged():
        end = ended(lambda: source_of(engine).open(None))
    directory.chmod(0o755)

    assert "permission denied; its directory can't be entered by the bridge's user" in str(end)


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        ((500, b'{"message":"daemon is shutting down"}'), "refused", "HTTP 500: daemon is shutting down"),
        ((404, b"page not found\n"), "refused", "HTTP 404: page not found"),
        ((301, b""), "refused", "HTTP 301: Moved Permanently"),
        ((403, b""), "unauthorized", "a socket proxy must allow /info, /events and /_ping"),
        ((401, b'{"message":"who are you?"}'), "unauthorized", "HTTP 401: who are you?"),
    ],
)
@pytest.mark.parametrize("path", ["/info", "/events"])
def test_a_refusal_is_told_with_the_engine_s_own_words(
    engine: FakeEngine, path: str, answer: Answer, reason: str, words: str
) -> None:
    engine.answers[path] = answer
    end = ended(lambda: source_of(engine).open(None))

    assert end.reason == reason
    assert f"GET {path}: " in str(end)
    assert words in str(end)


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"[]", b"{}", b'{"ID":"x","SystemTime":"soon"}', b'{"ID":"x","SystemTime":"2026-11-23T20:05:56"}'],
)
def test_an_info_that_is_not_an_engine_s_is_a_broken_protocol(engine: FakeEngine, body: bytes) -> None:
    engine.answers["/info"] = (200, body)
    end = ended(lambda: source_of(engine).open(None))

    assert (end.reason, "/info is not that of a Docker Engine" in str(end)) == ("protocol", True)


def test_an_answer_with_an_end_is_no_stream(engine: FakeEngine) -> None:
    engine.answers["/events"] = (200, b"[]")
    end = ended(lambda: source_of(engine).open(None))

    assert (end.reason, "GET /events: 2 bytes instead of a stream" in str(end)) == ("refused", True)


def test_something_else_than_http_is_a_broken_protocol(directory: Path) -> None:
    path = directory / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def greet() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                peer.recv(1000)

        greeter = threading.Thread(target=greet)
        greeter.start()
        end = ended(lambda: EngineSource(EngineSettings(type="engine", url=f"unix://{path}")).open(None))
        greeter.join(10)

    assert (end.reason, "not HTTP" in str(end)) == ("protocol", True)


# ---------------------------------------------------------------------------------------------- TCP and TLS


def test_an_engine_on_tcp_is_followed() -> None:
    with serving(TcpServer, ("127.0.0.1", 0)) as engine, session_of(engine) as session:
        engine.tell(engine_event())

        assert len(session.read().messages) == 1


def test_a_closed_port_is_named_with_what_helps() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        end = ended(lambda: EngineSource(EngineSettings(type="engine", url=f"tcp://127.0.0.1:{port}")).open(None))

    assert end.reason == "network"
    assert str(end).startswith(f"127.0.0.1:{port}: connection refused")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`server` and `client`, each a certificate of its own making with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("making certificates needs openssl")
    path = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client"):
        make = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "1"]
        make += ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost"]
        make += ["-keyout", str(path / f"{name}.key"), "-out", str(path / f"{name}.crt")]
        subprocess.run(make, check=True, capture_output=True)
    return path


@contextlib.contextmanager
def secure_engine(certificates: Path) -> Iterator[FakeEngine]:
    """An Engine as `dockerd --tlsverify` is one: it asks for a certificate, too."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates / "client.crt")
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    with serving(TcpServer, ("127.0.0.1", 0), context) as engine:
        yield engine


def client_files(certificates: Path, name: str = "client") -> dict[str, Path]:
    return {"cert_file": certificates / f"{name}.crt", "key_file": certificates / f"{name}.key"}


def test_an_engine_with_tls_is_followed_and_a_blocked_read_woken(certificates: Path) -> None:
    files: dict[str, Any] = {"ca_file": certificates / "server.crt", **client_files(certificates)}
    ends: list[Ended] = []
    with (
        secure_engine(certificates) as engine,
        session_of(engine, **files, read_timeout=60) as session,
    ):
        engine.tell(*(engine_event(nanos=NOW + number) for number in range(100)))
        times: list[int] = []
        while len(times) < 100:
            times += [json.loads(event)["time_nano"] for event in session.read().messages]
        reader = threading.Thread(target=lambda: ends.append(ended(session.read)))
        reader.start()
        session.abort()
        reader.join(10)

    assert times == [NOW + number for number in range(100)]
    assert len(ends) == 1


def test_a_silent_tls_stream_returns_in_time_and_goes_on(certificates: Path) -> None:
    files: dict[str, Any] = {"ca_file": certificates / "server.crt", **client_files(certificates)}
    with (
        secure_engine(certificates) as engine,
        session_of(engine, **files, read_timeout=0.02) as session,
    ):
        assert session.read() == Read(position=f"{NOW}+")
        engine.tell(engine_event())
        assert len(session.read().messages) == 1


@pytest.mark.parametrize(
    ("ca", "cert", "words"),
    [
        ("client.crt", "client", "CERTIFICATE_VERIFY_FAILED"),
        ("client.crt", None, "CERTIFICATE_VERIFY_FAILED"),
        ("server.crt", None, "does the engine want a certificate of ours (cert_file, key_file)?"),
        ("missing.crt", None, "can't use the certificates"),
        ("server.crt", "missing", "can't use the certificates"),
    ],
)
def test_a_certificate_that_is_not_accepted_is_told(certificates: Path, ca: str, cert: str | None, words: str) -> None:
    files: dict[str, Any] = {"ca_file": certificates / ca, **(client_files(certificates, cert) if cert else {})}
    with secure_engine(certificates) as engine:
        end = ended(lambda: source_of(engine, **files).open(None))

    assert end.reason == "tls"
    assert words in str(end)
    assert ("does the engine want" in str(end)) == words.startswith("does the engine want")
