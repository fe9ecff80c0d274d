"""HTTP over real connections, about a real journal, stream and forwarder."""

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from bridge.admin.health import Health, Status
from bridge.admin.routes import Access, operation_routes
from bridge.admin.server import Server, url_of
from bridge.admin.settings import HealthSettings
from bridge.journal import Journal, JournalSettings
from bridge.metrics import Metrics, SinkMetrics, StreamMetrics
from bridge.pipeline.forwarder import Forwarder
from bridge.pipeline.stream import Stream
from bridge.pipeline.supervisor import Running
from bridge.sink import Entry, Failure, SinkSettings
from bridge.source import Ended, Session, SourceSettings
from tests.support.waiting import until

TIMEOUT = 20.0
SECRET = "geheim"


class Unreachable:
    """A source that can't be reached."""

    def open(self, position: str | None) -> Session:
        del position
        raise Ended("connection refused", "network")


class Box:
    """A sink that takes everything."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        del entries
        return []


class Bench:
    """A server over everything that it tells about; `ago` is for how many seconds the stream and the sink have been down."""

    def __init__(self, path: Path) -> None:
        self.ago = 0.0
        self.last_tick = time.monotonic()
        self.metrics = Metrics("1.2.3")
        self.journal = Journal(JournalSettings(path=path / "journal.db", durability="normal"))
        self.journal.add_sink("audit", "latest")
        until(lambda: self.journal.accepts)
        stream = Stream(
            "acme",
            SourceSettings(namespace="acme"),
            Unreachable(),
            self.journal,
            metrics=StreamMetrics(self.metrics, "acme"),
            max_event_bytes=1_000_000,
            clock=lambda: time.time() - 100.0,
        )
        forwarder = Forwarder(
            "audit",
            Box(),
            SinkSettings(type="box"),
            self.journal,
            metrics=SinkMetrics(self.metrics, "audit"),
            clock=lambda: time.time() - 100.0,
        )
        stream.step()
        self.grace = HealthSettings(stream_grace=1000.0, sink_grace=1000.0)
        running = partial(Running, [stream], [forwarder])
        self.health = Health(self.journal, running, settings=self.grace, version="1.2.3")
        self.hasty = Health(self.journal, running, settings=HealthSettings(stream_grace=50.0, sink_grace=50.0), version="1.2.3")
        self.metrics.observe(self.health)

    def serve(self, health: Health | None = None, host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> Server:
        access = Access(SECRET, lambda: token, lambda _: None)
        return Server(
            host,
            port,
            health=health or self.health,
            registry=self.metrics.registry,
            last_tick=lambda: self.last_tick,
            operations=operation_routes(self.journal),
            access=access,
        )


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: str


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.journal.close()


@pytest.fixture
def server(bench: Bench) -> Iterator[Server]:
    with closing(bench.serve()) as made:
        yield made


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> Answer:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)) as connection:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read().decode())


# --- the paths ---------------------------------------------------------------------------------------------------------


def test_a_process_that_ticks_is_healthy(server: Server) -> None:
    answer = ask(server, "/healthz")

    assert (answer.status, answer.body) == (200, "ok\n")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"


def test_a_process_that_does_not_tick_any_more_is_not(bench: Bench, server: Server) -> None:
    bench.last_tick = time.monotonic() - 3600.0

    assert ask(server, "/healthz")[0::2] == (503, "the main thread does not tick any more\n")


def test_a_process_that_can_do_its_job_is_ready(server: Server) -> None:
    assert ask(server, "/readyz")[0::2] == (200, "ok\n")


def test_a_process_that_can_not_do_its_job_says_why_line_by_line(bench: Bench) -> None:
    with closing(bench.serve(bench.hasty)) as server:
        answer = ask(server, "/readyz", Authorization=f"Bearer {SECRET}")

    assert answer.status == 503
    stream, sink = answer.body.splitlines()
    assert stream.startswith("stream acme: not connected for ")
    assert stream.endswith(": connection refused")
    assert sink.startswith("sink audit: unavailable for ")


def test_everybody_is_told_which_parts_are_not_ready_and_not_in_whose_words(bench: Bench) -> None:
    with closing(bench.serve(bench.hasty)) as server:
        stream, sink = ask(server, "/readyz").body.splitlines()

    assert re.fullmatch(r"stream acme: not connected for \d+ s", stream)
    assert re.fullmatch(r"sink audit: unavailable for \d+ s", sink)


def test_the_status_is_json(server: Server) -> None:
    answer = ask(server, "/status")

    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    status = json.loads(answer.body)
    assert (status["version"], status["problems"]) == (
        "1.2.3",
        [
            "stream acme: not connected for 100 s (within its grace of 1000 s)",
            "sink audit: unavailable for 100 s (within its grace of 1000 s)",
        ],
    )
    assert ask(server, "/readyz").status == 200
    assert status["streams"]["acme"]["reason"] == "network"
    assert status["sinks"]["audit"]["up"] is False


def test_the_metrics_are_there_for_prometheus(server: Server) -> None:
    answer = ask(server, "/metrics")

    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    names = {family.name for family in text_string_to_metric_families(answer.body)}
    assert {"event_bridge_build_info", "event_bridge_events_received", "event_bridge_sink_pending_events"} <= names


# As Prometheus 3 asks.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,*/*;q=0.2"
)


@pytest.mark.parametrize("accept", ["application/openmetrics-text", PROMETHEUS])
def test_who_asks_for_open_metrics_gets_them(server: Server, accept: str) -> None:
    answer = ask(server, "/metrics", Accept=accept)

    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert answer.body.endswith("# EOF\n")
    assert "event_bridge_events_received" in {family.name for family in parse_openmetrics(answer.body)}  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    "accept", ["*/*", "text/html", "", "text/plain;version=x", "application/openmetrics-text;version=1.0.x"]
)
def test_who_asks_for_something_else_gets_plain_text(server: Server, accept: str) -> None:
    answer = ask(server, "/metrics", Accept=accept)

    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")


def test_the_root_tells_what_there_is(server: Server) -> None:
    answer = ask(server, "/")

    assert answer.status == 200
    assert all(path in answer.body for path in ("/metrics", "/healthz", "/readyz", "/status"))


@pytest.mark.parametrize("path", ["/metricsx", "/status/", "/favicon.ico", "/../etc/passwd"])
def test_anything_else_is_not_found_and_told_what_there_is(server: Server, path: str) -> None:
    answer = ask(server, path)

    assert answer.status == 404
    assert "/metrics" in answer.body


def test_a_query_does_not_matter(server: Server) -> None:
    assert ask(server, "/healthz?verbose=1").status == 200


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/status", "/", "/nothing"])
def test_head_answers_like_get_without_the_body(server: Server, path: str) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=TIMEOUT)) as connection:
        connection.request("HEAD", path)
        head = connection.getresponse()
        assert head.read() == b""
        # The connection is still in step: a body that was sent would be taken for the next answer.
        connection.request("GET", path)
        get = connection.getresponse()
        get.read()

    assert (head.status, head.headers["Content-Type"]) == (get.status, get.headers["Content-Type"])
    assert int(head.headers["Content-Length"]) > 0


@pytest.mark.parametrize(("method", "status"), [("POST", 405), ("PUT", 501), ("DELETE", 501), ("OPTIONS", 501)])
def test_nothing_can_be_changed(server: Server, method: str, status: int) -> None:
    assert ask(server, "/status", method).status == status


# --- the operations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "of the configuration"])
def test_the_operations_need_a_token_and_are_not_for_web_pages(bench: Bench, token: str | None) -> None:
    with closing(bench.serve(token=token)) as server:
        valid = [given for given in (SECRET, token) if given]
        assert {ask(server, "/journal", Authorization=f"Bearer {given}").status for given in valid} == {200}
        assert ask(server, "/journal", Authorization="Bearer other").status == 401
        assert ask(server, "/journal", Authorization=f"Bearer {SECRET}", Origin="http://127.0.0.1").status == 403
        assert ask(server, "/journal").status == 401
        assert ask(server, "/dead-letters/drop", "POST").status == 401


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/status", "/"])
def test_everything_else_stays_open(bench: Bench, path: str) -> None:
    with closing(bench.serve(token=SECRET)) as server:
        assert ask(server, path).status == 200
        assert ask(server, path, Host="localhost:1", **{"Sec-Fetch-Site": "none"}).status == 200


@pytest.mark.parametrize("headers", [{"Origin": "http://x"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "rebound.example"}])
def test_a_web_page_gets_nothing_but_probes(server: Server, headers: dict[str, str]) -> None:
    found = {
        path: ask(server, path, **headers).status for path in ("/metrics", "/status", "/", "/nothing", "/healthz", "/readyz")
    }

    assert set(found.values()) == {200, 403}
    assert {path for path, status in found.items() if status == 200} == {"/healthz", "/readyz"}


def test_the_words_of_peers_are_for_clients_with_a_token(server: Server) -> None:
    everybody, trusted = (
        json.loads(ask(server, "/status", **headers).body) for headers in ({}, {"Authorization": f"Bearer {SECRET}"})
    )

    assert trusted["streams"]["acme"]["error"] == "connection refused"
    assert everybody["streams"]["acme"]["error"] == "see the log"
    assert everybody["streams"]["acme"]["reason"] == "network"
    assert everybody["sinks"]["audit"].keys() == trusted["sinks"]["audit"].keys()


def test_the_operations_say_so_while_the_process_stops(bench: Bench, server: Server) -> None:
    bench.journal.close()

    assert ask(server, "/journal", Authorization=f"Bearer {SECRET}")[0::2] == (503, "the process is stopping\n")


# --- clients and bugs --------------------------------------------------------------------------------------------------


def test_a_slow_client_blocks_nobody(server: Server) -> None:
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    try:
        for number, client in enumerate(slow):
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"[: number + 1])

        assert ask(server, "/healthz").status == 200
        assert ask(server, "/metrics").status == 200
    finally:
        for client in slow:
            client.close()


def test_clients_are_answered_at_the_same_time(bench: Bench) -> None:
    class Waiting(Health):
        """The first one who asks is answered when the second one has asked."""

        asked = threading.Barrier(2, timeout=TIMEOUT)

        def problems(self, *, within_grace: bool = False, texts: bool = True) -> list[str]:
            self.asked.wait()
            return []

    waiting = Waiting(bench.journal, Running, settings=bench.grace, version="1.2.3")
    answers: list[int] = []
    with closing(bench.serve(waiting)) as server:
        clients = [threading.Thread(target=lambda: answers.append(ask(server, "/readyz").status)) for _ in range(2)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(TIMEOUT)

    assert answers == [200, 200]


def test_a_client_that_goes_away_in_the_middle_is_nobody_s_business(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):
        with closing(socket.create_connection(("127.0.0.1", server.port))) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert ask(server, "/healthz").status == 200
    assert capfd.readouterr() == ("", "")


def test_junk_is_answered_as_a_bad_request(server: Server) -> None:
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT)) as client:
        client.sendall(b"\x16\x03\x01\x02 \x00 \x01\r\n\r\n")

        assert b"400" in client.recv(1000)


def test_a_bug_is_answered_and_logged_and_the_server_lives_on(bench: Bench) -> None:
    class Buggy(Health):
        def status(self, *, texts: bool = True) -> Status:
            raise ZeroDivisionError(SECRET)

    buggy = Buggy(bench.journal, Running, settings=bench.grace, version="1.2.3")
    with closing(bench.serve(buggy)) as server, capture_logs() as logs:
        answer = ask(server, "/status")

        assert (answer.status, answer.body) == (500, "internal error, see the log\n")
        assert [(line["log_level"], line["path"], line["exc_info"]) for line in logs] == [("error", "/status", True)]
        assert ask(server, "/healthz").status == 200


def test_while_the_process_stops_it_says_so(bench: Bench, server: Server) -> None:
    bench.journal.close()

    with capture_logs() as logs:
        assert ask(server, "/metrics")[0::2] == (503, "the process is stopping\n")
        assert ask(server, "/status").status == 503
    assert logs == []
    assert ask(server, "/healthz").status == 200


# --- the address -------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_an_error(bench: Bench, server: Server) -> None:
    with pytest.raises(OSError, match="in use"):
        bench.serve(port=server.port)


@pytest.mark.parametrize(("host", "url"), [("127.0.0.1", "http://127.0.0.1:{}"), ("0.0.0.0", "http://127.0.0.1:{}")])
def test_the_url_leads_to_the_server_from_this_machine(bench: Bench, host: str, url: str) -> None:
    with closing(bench.serve(host=host)) as server:
        assert server.url == url.format(server.port)
        assert ask(server, "/healthz").status == 200


def test_the_url_of_an_address_can_be_told_without_a_server() -> None:
    assert url_of("::", 9477) == "http://127.0.0.1:9477"
    assert url_of("::1", 9477) == "http://[::1]:9477"
    assert url_of("10.0.0.5", 1) == "http://10.0.0.5:1"


def test_an_address_of_the_newer_kind_is_written_in_brackets(bench: Bench) -> None:
    try:
        server = bench.serve(host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with closing(server):
        connection = http.client.HTTPConnection("::1", server.port, timeout=TIMEOUT)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()

    assert server.url == f"http://[::1]:{server.port}"


def test_nobody_s_name_is_looked_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("asked the name server"))

    with closing(bench.serve()) as server:
        assert ask(server, "/healthz").status == 200


def test_after_close_nobody_answers(bench: Bench) -> None:
    server = bench.serve()
    server.close()

    with pytest.raises(ConnectionRefusedError):
        ask(server, "/healthz")
