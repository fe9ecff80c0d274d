"""The client, against a real server over a real journal: the same answers as on the journal itself."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry

from bridge.admin.client import Client, OperationError
from bridge.admin.health import Health
from bridge.admin.route import Request, Response
from bridge.admin.routes import Access, operation_routes
from bridge.admin.server import Server
from bridge.admin.settings import HealthSettings
from bridge.event import Malformed
from bridge.journal import DeadLetterQuery, Journal, UnknownSinkError
from bridge.pipeline.supervisor import Running
from tests.support.journal_samples import append, bury, event, opened, uuid

SECRET = "geheim"
EVENTS = [event(number) for number in range(1, 11)]


class Pair(NamedTuple):
    """The two ways to the same operations."""

    here: Journal
    there: Client
    server: Server


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with opened(tmp_path / "journal.db", "alerts", "audit") as journal:
        append(journal, EVENTS, [Malformed("not_json", b"\xff\x00")])
        bury(journal, "alerts", 1, EVENTS, died=1700000000.123456)
        access = Access("", lambda: SECRET, lambda _: None)
        server = Server(
            "127.0.0.1",
            0,
            health=Health(journal, Running, settings=HealthSettings(), version="0"),
            registry=CollectorRegistry(),
            last_tick=lambda: 0.0,
            operations=operation_routes(journal),
            access=access,
        )
        with closing(server):
            yield Pair(journal, Client(server.url + "/", SECRET), server)


@pytest.mark.parametrize(
    "query",
    [
        DeadLetterQuery(),
        DeadLetterQuery(sink="alerts", reason="rejected", type="container"),
        DeadLetterQuery(uuid=uuid(3)),
        DeadLetterQuery(since=datetime.fromtimestamp(1700000000.123456, UTC)),
        DeadLetterQuery(since=datetime.fromtimestamp(1700000000.123457, UTC)),
        DeadLetterQuery(sink="a&b=c/ü"),
    ],
)
def test_dead_letters_are_the_same_there(pair: Pair, query: DeadLetterQuery) -> None:
    assert pair.there.dead_letters(query, 2, 3) == pair.here.dead_letters(query, 2, 3)


def test_everything_that_looks_tells_the_same_there(pair: Pair) -> None:
    assert pair.there.quarantine(0, 10) == pair.here.quarantine(0, 10)
    assert pair.there.extent() == pair.here.extent()
    assert pair.there.events(3, 4) == pair.here.events(3, 4)
    assert pair.there.verify(0, 10) == pair.here.verify(0, 10)
    assert pair.there.check() is None
    assert pair.there.running


def test_everything_that_changes_changes_it_there(pair: Pair) -> None:
    done = pair.there.replay("alerts", [1, 2, 3])

    assert (done.taken, done.replayed, done.retrying, done.room) == (3, 3, 3, 500)
    assert pair.there.discard([4, 5]) == 2
    assert pair.there.prune_all() == 0
    assert [letter.id for letter in pair.here.dead_letters(DeadLetterQuery(), 0, 100).dead_letters] == [6, 7, 8, 9, 10]


def test_a_sink_that_is_not_configured_there_is_an_error_of_its_own(pair: Pair) -> None:
    with pytest.raises(UnknownSinkError, match="no sink other is configured"):
        pair.there.replay("other", [1])


@pytest.mark.parametrize(("token", "said"), [(None, "needs the token"), ("other", "the token is not the one")])
def test_without_the_right_token_one_is_told_where_it_goes(pair: Pair, token: str | None, said: str) -> None:
    with pytest.raises(OperationError, match=said) as raised:
        Client(pair.server.url, token).extent()

    assert "BRIDGE_HTTP__TOKEN" in str(raised.value)
    assert SECRET not in str(raised.value)


def test_what_is_wrong_with_a_request_is_told_in_the_words_of_the_bridge(pair: Pair) -> None:
    with pytest.raises(OperationError, match=r"^http://127\.0\.0\.1:\d+: limit: "):
        pair.there.events(0, 0)


def test_nobody_there_is_told(pair: Pair) -> None:
    pair.server.close()

    with pytest.raises(OperationError, match=r"^http://127\.0\.0\.1:\d+: connection refused; does the bridge run"):
        pair.there.extent()


def answering(reply: bytes) -> tuple[str, threading.Thread]:
    """Somebody who gives everybody the same answer, once."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with listener, closing(listener.accept()[0]) as client:
            client.recv(65536)
            client.sendall(reply)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", thread


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{}", "is no event-bridge, or one of another version"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "is no event-bridge, or one of another version"),
        (b"HTTP/1.0 200 OK\r\n\r\n\xff", "is no event-bridge, or one of another version"),
        (b"HTTP/1.0 404 Nope\r\nContent-Type: text/plain\r\n\r\nno", "HTTP 404; what answers there is no event-bridge"),
        (b"HTTP/1.0 502 Bad\r\nContent-Type: text/html\r\n\r\n<html>", "HTTP 502; what answers there is no event-bridge"),
        (b"HTTP/1.0 301 Moved\r\nLocation: http://10.0.0.1/\r\n\r\n", "HTTP 301"),
        (b"HTTP/1.0 500 Oh\r\nContent-Type: text/plain\r\n\r\nred \x1b[31malert\r\n", r"red  \[31malert$"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
    ],
)
def test_somebody_else_there_is_told(reply: bytes, said: str) -> None:
    url, thread = answering(reply)

    with pytest.raises(OperationError, match=said):
        Client(url, None).extent()
    thread.join(10)


def test_tls_to_who_does_not_speak_it_is_told() -> None:
    url, thread = answering(b"HTTP/1.0 400 Bad\r\n\r\n")

    with pytest.raises(OperationError, match=r"^https://127\.0\.0\.1:\d+: TLS: "):
        Client(url.replace("http:", "https:"), None).extent()
    thread.join(10)


@pytest.mark.parametrize(
    "url", ["", "foo", "127.0.0.1:9477", "ftp://x", "http://", "http://u:p@x", "http://x?a=1", "http://x:99999", "http://[::1"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(OperationError, match=r"must look like http://127\.0\.0\.1:9477"):
        Client(url, None)


def test_a_bridge_may_be_behind_a_path() -> None:
    url, thread = answering(b"HTTP/1.0 200 OK\r\n\r\n" + b'{"first":1,"next":2,"bytes":3}')

    assert Client(url + "/bridge/", None).extent().next == 2
    thread.join(10)


def test_a_name_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)

    with pytest.raises(OperationError, match=r"^http://nowhere\.example: no such host$"):
        Client("http://nowhere.example", None).extent()


def test_a_backlog_asks_without_the_token(pair: Pair) -> None:
    """The status needs none, and the address was typed: a token goes only where it is needed."""
    seen: list[str | None] = []
    respond = pair.server._server.routes["/status"].respond

    def note(request: Request) -> Response:
        seen.append("trusted" if request.is_trusted else None)
        return respond(request)

    routes = dict(pair.server._server.routes)
    pair.server._server.routes = routes | {"/status": routes["/status"]._replace(respond=note)}

    pair.there.backlog()
    Client(pair.server.url, SECRET, verify=False).backlog()

    assert seen == [None, "trusted"]
