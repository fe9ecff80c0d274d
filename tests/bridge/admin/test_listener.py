"""Connections: how many, how large, how long."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from email.message import Message
from http import HTTPStatus
from http.client import HTTPConnection, HTTPResponse
from threading import Thread

import pytest

from bridge.admin import listener
from bridge.admin.headers import BODY
from bridge.admin.listener import CONNECTIONS, HEAD, Listener
from bridge.admin.route import Request, Response, Route, text_response

TIMEOUT = 20.0
POST = "/change"
PROBE = "/healthz"


class Tokens:
    """Refuses whoever has a header `Refuse`, or a wrong token."""

    def __init__(self) -> None:
        self.wrong: list[str] = []

    def is_command(self, _: Message) -> bool:
        return False

    def is_trusted(self, headers: Message) -> bool:
        return headers.get("Authorization") == "Bearer right"

    def refusal(self, headers: Message, *, needed: bool) -> Response | None:
        wrong = "Authorization" in headers and not self.is_trusted(headers)
        return text_response(HTTPStatus.UNAUTHORIZED, "no") if wrong or (needed and "Refuse" in headers) else None

    def note_wrong_token(self, client: str) -> None:
        self.wrong.append(client)


class Place:
    """A listener that says what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.delay = 0.0
        get, post = Route("GET", self._respond, is_operation=True), Route("POST", self._respond, is_operation=True)
        self.tokens = Tokens()
        self._listener = Listener(
            ("127.0.0.1", 0), {POST: post, PROBE: Route("GET", self._respond, is_probe=True)}, get, None, self.tokens
        )
        self.port: int = self._listener.server_address[1]
        Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT)

    def status_of(self, *lines: str, body: bytes = b"") -> int:
        """The status of the answer to a raw request, after which the connection must be closed by the other side."""
        with closing(self.connect()) as client:
            client.sendall("\r\n".join([*lines, "Host: localhost", "", ""]).encode() + body)
            answer = read_all(client)
        assert answer.count(b"HTTP/1.1 ") == 1
        return int(answer.split()[1])

    def _respond(self, request: Request) -> Response:
        self.asked.append(request)
        time.sleep(self.delay)
        return text_response(HTTPStatus.OK, request.accept or "ok", {"X-Asked": request.query})


@pytest.fixture
def place() -> Iterator[Place]:
    with closing(Place()) as made:
        yield made


def read_all(client: socket.socket) -> bytes:
    """Everything until the other side closes."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def ask_again(client: socket.socket) -> int:
    """The status of a request over a connection that is kept; its answer is read to the end, however it is cut on the way."""
    client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with closing(HTTPResponse(client)) as response:
        response.begin()
        response.read()
        return response.status


def ask(place: Place, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    with closing(HTTPConnection("127.0.0.1", place.port, timeout=TIMEOUT)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


def test_a_request_arrives_with_all_its_parts(place: Place) -> None:
    assert ask(place, "GET", "/look?a=1&b=2", Accept="text/x")[1] == "text/x\n"
    assert ask(place, "POST", f"{POST}?c=3", b'{"a":1}', **{"Content-Type": "application/json; charset=utf-8"})[0] == 200

    assert place.asked == [
        Request("GET", "/look", "a=1&b=2", accept="text/x", client="127.0.0.1"),
        Request("POST", POST, "c=3", b'{"a":1}', client="127.0.0.1"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("POST", "/look", "GET"), ("GET", POST, "POST"), ("HEAD", POST, "POST")]
)
def test_another_method_is_told_the_right_one(place: Place, method: str, path: str, allowed: str) -> None:
    with closing(HTTPConnection("127.0.0.1", place.port, timeout=TIMEOUT)) as connection:
        connection.request(method, path)
        response = connection.getresponse()

        assert (response.status, response.headers["Allow"]) == (405, allowed)
    assert place.asked == []


def test_who_is_refused_is_not_read_any_further(place: Place) -> None:
    """What comes behind the headers would be taken for another request, were the connection kept."""
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"

    assert place.status_of(f"POST {POST} HTTP/1.1", "Refuse: yes", f"Content-Length: {len(smuggled)}", body=smuggled) == 401
    assert place.asked == []


@pytest.mark.parametrize("header", ["Content-Length: 35", "Transfer-Encoding: chunked"])
def test_a_body_where_none_belongs_is_not_taken_for_a_request(place: Place, header: str) -> None:
    assert place.status_of("GET /look HTTP/1.1", header, body=b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n") == 200
    assert [request.path for request in place.asked] == ["/look"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (["Content-Length: 2"], 415),
        (["Content-Length: 2", "Content-Type: text/plain"], 415),
        (["Content-Length: 2", "Content-Type: application/x-www-form-urlencoded"], 415),
        (["Content-Type: application/json", "Content-Length: -1"], 411),
        (["Content-Type: application/json", "Content-Length: 1_0"], 411),
        (["Content-Type: application/json", "Content-Length: ²"], 411),
        (["Content-Type: application/json", "Content-Length: 2", "Transfer-Encoding: chunked"], 411),
        (["Content-Type: application/json", f"Content-Length: {BODY + 1}"], 413),
        (["Content-Type: application/json", "Content-Length: " + "9" * 5000], 413),
    ],
)
def test_a_body_that_can_t_be_read_is_refused_in_words(place: Place, headers: list[str], status: int) -> None:
    assert place.status_of(f"POST {POST} HTTP/1.1", *headers, body=b"{}") == status
    assert place.asked == []


def test_without_a_length_there_is_no_body_and_what_follows_is_no_request(place: Place) -> None:
    assert place.status_of(f"POST {POST} HTTP/1.1", body=b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n") == 200
    assert [(request.path, request.body) for request in place.asked] == [(POST, b"")]


def test_the_largest_body_is_read(place: Place) -> None:
    assert ask(place, "POST", POST, b" " * BODY, **{"Content-Type": "application/json"})[0] == 200
    assert len(place.asked[0].body) == BODY


def test_for_a_connection_too_many_the_one_that_waits_longest_makes_room(place: Place) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(closing(place.connect())) for _ in range(CONNECTIONS)]
        for client in held:
            # Each of them has its thread: it was answered, and is kept.
            assert ask_again(client) == 200
        for _ in range(3):
            assert place.status_of("GET / HTTP/1.1", "Connection: close") == 200
        assert ask_again(held[-1]) == 200
        assert held[0].recv(1) == b""


def test_a_request_of_an_operator_is_not_given_up_for_others(place: Place) -> None:
    place.delay = 1.0
    with ExitStack() as stack:
        operator = stack.enter_context(closing(place.connect()))
        operator.sendall(b"GET /look HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        while not place.asked:
            time.sleep(0.01)
        for _ in range(2 * CONNECTIONS):
            stack.enter_context(closing(place.connect()))
        assert b" 200 " in read_all(operator)


@pytest.mark.parametrize("host", ["localhost:x@evil.example", "[::1]evil.example", "a b", "localhost:999999", "<script>"])
def test_a_host_that_is_none_is_refused(place: Place, host: str) -> None:
    with closing(place.connect()) as client:
        client.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        assert b" 400 " in read_all(client)


BUSY = """
import http.client, sys, threading

def ask():
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=5)
            while True:
                connection.request("GET", sys.argv[2], headers={"Authorization": sys.argv[3]} if sys.argv[3] else {})
                connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            pass

for _ in range(200):
    threading.Thread(target=ask, daemon=True).start()
threading.Event().wait(60)
"""


@pytest.mark.parametrize("token", ["", "Bearer wrong"])
def test_probes_get_through_beside_clients_that_ask_without_a_pause(place: Place, token: str) -> None:
    place.delay = 0.01
    with subprocess.Popen([sys.executable, "-c", BUSY, str(place.port), "/status", token]) as busy:
        try:
            time.sleep(1.5)
            durations = []
            for _ in range(12):
                began = time.monotonic()
                assert ask(place, "GET", PROBE)[0] == 200
                durations.append(time.monotonic() - began)
        finally:
            busy.kill()
    assert max(durations) < 2.0


HOSTILE = """
import asyncio, sys

async def attack(number):
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
            head = b"GET / HTTP/1.1\\r\\nX: "
            writer.write(head[: number % 30] if number % 2 else head + b"x" * 15_000)
            await reader.read(1)
            writer.close()
        except OSError:
            pass
        await asyncio.sleep(0.1)

async def main():
    await asyncio.gather(*map(attack, range(200)))

asyncio.run(main())
"""


def test_probes_get_through_beside_hostile_clients_that_come_again_whenever_they_are_cut_off(place: Place) -> None:
    with subprocess.Popen([sys.executable, "-c", HOSTILE, str(place.port)]) as hostile:
        try:
            time.sleep(0.5)
            assert [ask(place, "GET", PROBE)[0] for _ in range(40)] == [200] * 40
        finally:
            hostile.kill()


@pytest.mark.parametrize(
    "head", [b"GET /" + b"x" * HEAD, b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 3000]
)
def test_a_head_that_is_too_large_is_refused_without_reading_it_all(place: Place, head: bytes) -> None:
    with closing(place.connect()) as client:
        client.sendall(head[: HEAD + 1])
        assert b" 431 " in read_all(client)
    assert place.asked == []


def test_a_wrong_token_costs_its_client_time_on_every_path_but_probes(place: Place) -> None:
    began = time.monotonic()
    assert ask(place, "GET", "/status", Authorization="Bearer wrong")[0] == 401
    assert time.monotonic() - began > 0.4
    assert ask(place, "GET", PROBE, Authorization="Bearer wrong")[0] == 200
    assert ask(place, "GET", "/status", Authorization="Bearer right")[0] == 200
    assert place.tokens.wrong == ["127.0.0.1"]


@pytest.mark.parametrize(
    "lines",
    [
        ("no header at all",),
        ("Host: y",),
        ("Content-Length: 1", "Content-Length: 2"),
        ("Authorization: Bearer right", "Authorization: Bearer wrong"),
        ("Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"),
        ("X: a\0b",),
        ("X: a\x0bb",),
        ("X: folded", " over two lines"),
    ],
)
def test_malformed_headers_are_refused(place: Place, lines: tuple[str, ...]) -> None:
    assert place.status_of("GET / HTTP/1.1", *lines) == 400
    assert place.asked == []


@pytest.mark.parametrize(
    "beginning", [b"GET /", b"GET / HTTP/1.1\r\nX: ", f"POST {POST} HTTP/1.1\r\nContent-Length: 60000\r\nX: ".encode()]
)
def test_a_client_that_sends_a_byte_now_and_then_does_not_keep_its_place(
    place: Place, monkeypatch: pytest.MonkeyPatch, beginning: bytes
) -> None:
    monkeypatch.setattr(listener, "_CLIENT_TIMEOUT", 0.3)
    with closing(place.connect()) as client:
        client.sendall(beginning)
        client.settimeout(0.02)
        for _ in range(1000):
            try:
                if client.recv(1000) == b"":
                    return
            except TimeoutError:
                client.sendall(b"x")
            except ConnectionResetError:
                return
        pytest.fail("it is still connected")


def test_a_client_that_waits_long_for_its_answer_is_not_hung_up_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_CLIENT_TIMEOUT", 0.1)
    place.delay = 0.3

    assert ask(place, "GET", "/")[0] == 200
    assert ask(place, "POST", POST, b"{}", **{"Content-Type": "application/json"})[0] == 200


def test_nothing_is_said_of_the_language_it_is_written_in(place: Place) -> None:
    with closing(HTTPConnection("127.0.0.1", place.port, timeout=TIMEOUT)) as connection:
        connection.request("GET", "/")
        response = connection.getresponse()

        assert response.headers["Server"].strip() == "event-bridge"
