"""Opening a session: refusals, limits in time, cookies and proxies."""

import base64
import socket
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bridge.frames import CLOSE, TEXT, encode
from bridge.source import Ended
from tests.support.servers.websocket_server import (
    AUTHORIZATION,
    DEADLINE,
    SECRET,
    RawServer,
    StartRaw,
    answering,
    drip,
    failure,
    opened,
    read_messages,
    read_until_end,
    response,
    source,
)
from tests.support.waiting import until

# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason", "words", "retry_after"),
    [
        (response("401 Unauthorized"), "unauthorized", "the server answered 401 Unauthorized", None),
        (
            response("403 Forbidden", '{"error": "Quota limit\\nexceeded"}'),
            "unauthorized",
            "the server answered 403 Forbidden: Quota limit exceeded",
            None,
        ),
        (
            response("429 Slow Down", '{"detail": "Too many login attempts."}', "Retry-After: 7\r\n"),
            "throttled",
            "the server answered 429 Too Many Requests: Too many login attempts.",
            7.0,
        ),
        (response("429 Slow Down"), "throttled", "the server answered 429 Too Many Requests", None),
        (
            response("503 Down", headers="Retry-After: 30\r\n"),
            "throttled",
            "the server answered 503 Service Unavailable",
            30.0,
        ),
        (response("503 Down"), "refused", "the server answered 503 Service Unavailable", None),
        (response("500 Oops", "<html>" + "x" * 1000), "refused", "the server answered 500 Internal Server Error", None),
        (response("500 Oops", '{"error": ["no text"]}'), "refused", "the server answered 500 Internal Server Error", None),
        (response("200 OK", "{}"), "refused", "the server answered 200 OK", None),
        (response("799 Odd"), "refused", "the server answered 799", None),
        (
            response("401 No", f'{{"error": "bad credentials {AUTHORIZATION} or secret-key"}}'),
            "unauthorized",
            "the server answered 401 Unauthorized: bad credentials Basic *** or ***",
            None,
        ),
    ],
)
def test_a_refused_handshake_is_told_apart_by_its_status(
    answer: str, reason: str, words: str, retry_after: float | None, start_raw: StartRaw
) -> None:
    server = start_raw(answering(answer))
    ended = failure(server.url)
    assert (ended.reason, str(ended), ended.retry_after) == (reason, words, retry_after)
    assert server.left.wait(DEADLINE)


def test_an_error_text_is_cut_short(start_raw: StartRaw) -> None:
    ended = failure(start_raw(answering(response("500 Oops", '{"error": "' + "long " * 1_000 + '"}'))).url)
    assert "long long" in str(ended)
    assert len(str(ended)) < 300


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("SSH-2.0-OpenSSH_9.6\r\n", "protocol"),
        ("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", "protocol"),
        ("HTTP/1.1 101 Switching Protocols\r\nno colon\r\n\r\n", "protocol"),
        ("\r\n\r\n", "protocol"),
    ],
)
def test_an_answer_that_is_no_websocket_is_a_protocol_failure(answer: str, reason: str, start_raw: StartRaw) -> None:
    assert failure(start_raw(answering(answer)).url).reason == reason


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_but_shown_without_credentials(status: int, start_raw: StartRaw) -> None:
    other = start_raw(answering(response("401 Unauthorized")))
    location = f"ws://user:hunter2@127.0.0.1:{other.port}/events?auth=hunter2#hunter2"
    server = start_raw(answering(response(f"{status} Elsewhere", headers=f"Location: {location}\r\n")))
    ended = failure(server.url)
    assert ended.reason == "refused"
    assert f"redirects ({status}) to ws://127.0.0.1:{other.port}/events: " in str(ended)
    assert "hunter2" not in str(ended)
    assert other.requests == []


@pytest.mark.parametrize("headers", ["", "Location: //[\r\n"])
def test_a_redirect_to_nowhere_is_a_refusal(headers: str, start_raw: StartRaw) -> None:
    assert failure(start_raw(answering(response("302 Found", headers=headers))).url).reason == "refused"


def test_a_port_where_nobody_listens_is_a_network_failure() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    ended = failure(f"ws://127.0.0.1:{port}")
    assert (ended.reason, str(ended)) == ("network", "Connection refused")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_server_that_hangs_up_during_the_handshake_is_a_network_failure(scheme: str, start_raw: StartRaw) -> None:
    def script(_: RawServer, connection: socket.socket) -> None:
        connection.recv(10_000)
        connection.shutdown(socket.SHUT_RDWR)

    assert failure(f"{scheme}://127.0.0.1:{start_raw(script).port}").reason == "network"


def test_a_name_that_does_not_resolve_is_a_network_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # A real look-up would leave this machine.
    ended = failure("ws://stream.invalid")
    assert ended.reason == "network"
    assert "Name or service not known" in str(ended)


def test_credentials_with_a_line_break_are_refused_before_anything_is_sent(start_raw: StartRaw) -> None:
    server = start_raw(answering(response("401 Unauthorized")))
    ended = failure(server.url, authorization=f"{AUTHORIZATION}\r\nX-Injected: 1")
    assert ended.reason == "unauthorized"
    assert SECRET not in str(ended)
    assert server.requests == []


# --- limits in time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_server_that_says_nothing_is_given_up(scheme: str, start_raw: StartRaw) -> None:
    server = start_raw(RawServer.wait_for_leaving)
    ended = failure(f"{scheme}://127.0.0.1:{server.port}", connect_timeout=0.2)
    assert (ended.reason, str(ended)) == ("network", "no answer in time")
    assert server.left.wait(DEADLINE)


def test_a_dripping_handshake_is_given_up_and_its_socket_released(start_raw: StartRaw) -> None:
    server = start_raw(drip)
    ended = failure(server.url, connect_timeout=0.3)
    assert (ended.reason, str(ended)) == ("network", "no answer in time")
    assert server.left.wait(DEADLINE)


def test_a_resolver_that_hangs_is_given_up_and_what_it_brings_too_late_is_released(
    start_raw: StartRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    resolve = socket.getaddrinfo

    def hang(host: str, port: int, *rest: Any) -> Any:
        answer.wait(DEADLINE)
        return resolve(host, port, *rest)

    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection)
        server.wait_for_leaving(connection)

    server = start_raw(script)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    ended = failure(server.url, connect_timeout=0.1)
    assert (ended.reason, str(ended)) == ("network", "no answer in time")
    answer.set()
    assert server.left.wait(DEADLINE)


def test_a_thousand_sessions_of_every_end_leave_nothing_behind(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        match len(server.requests) % 4:
            case 0:
                server.upgrade(connection, after=encode(TEXT, b"one") + encode(CLOSE, b""))
            case 1:
                server.upgrade(connection)
            case 2:
                server.request(connection)
                connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
            case 3:
                server.request(connection)
        connection.close()

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    server = start_raw(script)
    dialer = source(server.url)
    before = held()
    reasons: set[str] = set()
    for _ in range(1000):
        try:
            with closing(dialer.open(None)) as session:
                reasons.add(read_until_end(session)[1].reason)
        except Ended as ended:
            reasons.add(ended.reason)
    assert len(reasons) >= 3, reasons
    until(lambda: held() <= before, "the server's threads, which may be a moment behind, have closed theirs")


# --- cookies -----------------------------------------------------------------------------------------------------------


def cookies(server: RawServer) -> list[list[str]]:
    """The cookies of each request."""
    lines = [[line for line in request.splitlines() if line.startswith("Cookie: ")] for request in server.requests]
    return [sorted(line[0].removeprefix("Cookie: ").split("; ")) if line else [] for line in lines]


def test_cookies_are_kept_over_reconnects_and_by_this_stream_alone(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection, f"Set-Cookie: liveid=a{len(server.requests)}; Path=/; HttpOnly\r\nSet-Cookie: b=2\r\n")

    server = start_raw(script)
    stream = source(server.url)
    for _ in range(3):
        stream.open(None).close()
    source(server.url).open(None).close()
    assert cookies(server) == [[], ["b=2", "liveid=a0"], ["b=2", "liveid=a1"], []]


def test_a_cookie_for_a_whole_domain_does_not_reach_other_streams(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection, "Set-Cookie: account=1; Domain=localhost\r\n")

    server = start_raw(script)
    url = f"ws://localhost:{server.port}"
    source(url).open(None).close()
    source(url).open(None).close()
    assert cookies(server) == [[], []]


def test_a_cookie_of_a_refusal_is_kept_and_an_expired_one_is_not(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.request(connection)
        age = "; Max-Age=0" if len(server.requests) > 1 else ""
        connection.sendall(response("503 Down", headers=f"Set-Cookie: liveid=a{age}\r\n").encode())

    server = start_raw(script)
    stream = source(server.url)
    for _ in range(3):
        with pytest.raises(Ended):
            stream.open(None)
    assert cookies(server) == [[], ["liveid=a"], []]


def test_an_invalid_cookie_costs_nothing(start_raw: StartRaw) -> None:
    server = start_raw(lambda server, connection: server.upgrade(connection, "Set-Cookie: a/b=1\r\n"))
    stream = source(server.url)
    stream.open(None).close()
    stream.open(None).close()
    assert cookies(server) == [[], []]


# --- proxies -----------------------------------------------------------------------------------------------------------


def tunnel(server: RawServer, connection: socket.socket) -> None:
    """A proxy that is its own destination."""
    server.request(connection)
    connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    server.upgrade(connection, after=encode(TEXT, b"through the proxy"))
    server.wait_for_leaving(connection)


def test_a_proxy_is_used_with_its_own_credentials_and_never_sees_ours(start_raw: StartRaw) -> None:
    proxy = start_raw(tunnel)
    with opened("ws://stream.invalid", proxy=f"http://us%40er:pass%3Aword@127.0.0.1:{proxy.port}") as session:
        assert read_messages(session, 1) == [b"through the proxy"]
    connect, upgrade = proxy.requests
    assert connect.startswith("CONNECT stream.invalid:80 HTTP/1.1\r\n")
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'us@er:pass:word').decode()}\r\n" in connect
    assert SECRET not in connect
    assert SECRET in upgrade
    assert "Proxy-Authorization" not in upgrade


def test_the_proxy_of_the_environment_is_used_except_for_the_hosts_in_no_proxy(
    start_raw: StartRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = start_raw(tunnel)
    direct = start_raw(lambda server, connection: server.upgrade(connection))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    source("ws://stream.invalid").open(None).close()
    assert len(proxy.requests) == 2
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    source(direct.url).open(None).close()
    assert len(proxy.requests) == 2
    assert len(direct.requests) == 1


@pytest.mark.parametrize(("status", "reason"), [("407 Proxy Authentication Required", "unauthorized"), ("502 Bad", "network")])
def test_a_proxy_that_refuses_is_named(status: str, reason: str, start_raw: StartRaw) -> None:
    proxy = start_raw(answering(f"HTTP/1.1 {status}\r\n\r\n"))
    ended = failure("ws://stream.invalid", proxy=f"http://user:hunter2@127.0.0.1:{proxy.port}")
    assert ended.reason == reason
    assert "proxy" in str(ended)
    assert "hunter2" not in str(ended)


def test_a_broken_proxy_variable_is_said_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://user:hunt/er2@127.0.0.1:9")
    ended = failure("ws://stream.invalid")
    assert ended.reason == "refused"
    assert "http_proxy" in str(ended)
    assert "hunt" not in str(ended)
