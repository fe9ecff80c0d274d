"""Opening a session: refusals, limits in time, cookies and proxies."""

import base64
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bridge.frames import CLOSE, TEXT, encode
from bridge.source import Ended
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.source import DockerCloudSource
from tests.support.servers.silent import refusing_address, resolve, silent_address
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


@pytest.mark.parametrize("secret", ["secret-key", "secret%2Dkey", AUTHORIZATION.removeprefix("Basic ")])
def test_a_redirect_that_repeats_our_credentials_does_not_show_them(secret: str, start_raw: StartRaw) -> None:
    ended = failure(start_raw(answering(response("302 Elsewhere", headers=f"Location: /x/{secret}\r\n"))).url)

    assert "(302) to /x/***: " in str(ended)


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


# --- answers that are not clean ----------------------------------------------------------------------------------------


def sending(*pieces: bytes, reset: bool = False) -> Callable[[RawServer, socket.socket], None]:
    """Answer a request with these bytes, and close the connection in an orderly way or not."""

    def script(server: RawServer, connection: socket.socket) -> None:
        server.request(connection)
        for piece in pieces:
            connection.sendall(piece)
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    return script


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 429 Trop de requ\xeates\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 429 Slow Down\r\nDate: lun., 1 f\xe9vr. 2016\r\nRetry-After: 7\r\n\r\n",
        b"HTTP/1.1 429 Slow Down\r\nX-Next-Line: \x85\r\nRetry-After: 7\r\n\r\n",
        b"HTTP/1.1 429\r\nRetry-After: 7\r\nContent-Length: 1000\r\n\r\n<html>",
        b"HTTP/1.1 429 \r\nRetry-After: 7\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n<html>",
        b"HTTP/1.1 429 Slow Down\r\nContent-Length: some\r\nRetry-After: 7\r\n\r\n",
        b"HTTP/1.1 429 Slow Down\r\nno field\r\n: \r\nRetry-After: 7\r\n\r\n",
        b"HTTP/1.0 429 Slow Down\nRetry-After: 7\n\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 429 Slow Down\r\nRetry-After: 7\r\n\r\n",
    ],
)
def test_an_answer_counts_by_its_status_when_its_head_is_there(answer: bytes, reset: bool, start_raw: StartRaw) -> None:
    ended = failure(start_raw(sending(answer, reset=reset)).url)
    assert (ended.reason, str(ended), ended.retry_after) == ("throttled", "the server answered 429 Too Many Requests", 7.0)


def test_refused_credentials_count_also_if_the_explanation_does_not_come(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.request(connection)
        connection.sendall(b"HTTP/1.1 401 Non autoris\xe9\r\nContent-Length: 100\r\n\r\n{")
        server.wait_for_leaving(connection)

    server = start_raw(script)
    ended = failure(server.url)
    assert (ended.reason, str(ended)) == ("unauthorized", "the server answered 401 Unauthorized")
    assert server.left.wait(DEADLINE)


def test_an_upgrade_counts_whatever_bytes_its_head_has(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection, "X-Server: caf\xe9\r\n", after=encode(TEXT, b"one"))

    with opened(start_raw(script).url) as session:
        assert read_messages(session, 1) == [b"one"]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 abc\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 200 " + b"x" * 70_000])
def test_an_answer_without_a_status_or_an_end_is_a_protocol_failure_and_is_not_shown(
    answer: bytes, start_raw: StartRaw
) -> None:
    ended = failure(start_raw(sending(answer)).url)
    assert (ended.reason, str(ended)) == ("protocol", "the answer is not HTTP")


def test_a_server_that_leaves_in_the_middle_of_the_head_is_a_network_failure(start_raw: StartRaw) -> None:
    ended = failure(start_raw(sending(b"HTTP/1.1 401 Unau")).url)
    assert (ended.reason, str(ended)) == ("network", "the connection was closed during the handshake")


def test_an_upgrade_for_another_key_is_a_protocol_failure(start_raw: StartRaw) -> None:
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    ended = failure(start_raw(sending(head + b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")).url)
    assert (ended.reason, str(ended)) == ("protocol", "the answer is not that of a websocket")


# --- names with several addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("through_proxy", [False, True])
def test_a_silent_first_address_does_not_keep_the_stream_from_the_second(
    through_proxy: bool, start_raw: StartRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_raw(tunnel if through_proxy else lambda server, connection: server.upgrade(connection))
    with silent_address() as silent:
        resolve(monkeypatch, "bridge.test", [silent, ("127.0.0.1", server.port)])
        changes = {"proxy": "http://bridge.test:3128"} if through_proxy else {}
        source("ws://bridge.test", **changes, connect_timeout=5).open(None).close()


# --- limits in time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_server_that_says_nothing_is_given_up(scheme: str, start_raw: StartRaw) -> None:
    server = start_raw(RawServer.wait_for_leaving)
    ended = failure(f"{scheme}://127.0.0.1:{server.port}", connect_timeout=0.2)
    assert (ended.reason, str(ended)) == ("network", "no answer in time")
    assert server.left.wait(DEADLINE)


def test_a_dripping_handshake_is_given_up_and_its_socket_released(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 101 ")
        drip(server, connection)

    server = start_raw(script)
    ended = failure(server.url, connect_timeout=0.3)
    assert (ended.reason, str(ended)) == ("network", "no answer in time")
    assert server.left.wait(DEADLINE)


def test_a_resolver_that_hangs_is_given_up_and_nothing_is_sent_to_what_it_brings_too_late(
    start_raw: StartRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()
    resolve = socket.getaddrinfo

    def hang(host: str, port: int, *rest: Any) -> Any:
        answer.wait(DEADLINE)
        return resolve(host, port, *rest)

    server = start_raw(RawServer.wait_for_leaving)
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    ended = failure(server.url, connect_timeout=0.1)
    assert (ended.reason, str(ended)) == ("network", "no answer in time")
    answer.set()
    until(lambda: all(thread.name != "connect" for thread in threading.enumerate()))
    assert server.connections == []


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


def test_a_server_that_sets_new_cookies_each_time_does_not_fill_the_memory(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        number = len(server.requests)
        lines = [f"Set-Cookie: c{number}-{each}=x\r\n" for each in range(40)]
        answering(response("401 No", headers="".join(lines) + f"Set-Cookie: long={'x' * 5000}\r\n"))(server, connection)

    server = start_raw(script)
    known = source(server.url)
    for _ in range(5):
        with pytest.raises(Ended):
            known.open(None)

    sent = cookies(server)
    assert [len(each) for each in sent] == [0, 40, 80, 40, 80]
    assert not any("long=" in cookie for each in sent for cookie in each)


@pytest.mark.filterwarnings("ignore:http.cookiejar bug")
@pytest.mark.parametrize(
    "age",
    [
        "Max-Age",
        "max-age=" + "9" * 400,
        "max-age=" + "9_" * 400 + "9",
        "expires=1 Jan " + "9" * 4000,
        "expires=Fri, 31 Dyc 1999 23:59:59 GMT",
    ],
)
def test_a_cookie_of_an_absurd_age_costs_no_other(age: str, start_raw: StartRaw) -> None:
    server = start_raw(answering(response("401 No", headers=f"Set-Cookie: a=b; {age}\r\nSet-Cookie: c=d\r\n")))
    known = source(server.url)
    for _ in range(2):
        with pytest.raises(Ended, match="401"):
            known.open(None)

    assert "c=d" in cookies(server)[1]


def test_a_bug_of_the_library_prints_nothing() -> None:
    code = "import http.cookiejar, bridge.sources.dockercloud.source; http.cookiejar._warn_unhandled_exception()"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stderr == b""


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


@pytest.mark.parametrize("form", ["{}", "http://{}", "user:p%40ss@{}"])
def test_a_proxy_variable_is_understood_with_and_without_a_scheme(
    form: str, start_raw: StartRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = start_raw(tunnel)
    monkeypatch.setenv("HTTP_PROXY", form.format(f"127.0.0.1:{proxy.port}"))
    source("ws://stream.invalid").open(None).close()
    login = f"Proxy-Authorization: Basic {base64.b64encode(b'user:p@ss').decode()}\r\n"
    assert (login in proxy.requests[0]) is ("@" in form)


@pytest.mark.parametrize("scheme", ["https", "socks5h"])
def test_a_proxy_of_another_kind_is_refused_and_nothing_is_sent_to_it(
    scheme: str, start_raw: StartRaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = start_raw(tunnel)
    monkeypatch.setenv("http_proxy", f"{scheme}://user:hunter2@127.0.0.1:{proxy.port}")
    ended = failure("ws://stream.invalid")
    assert (ended.reason, str(ended)) == ("refused", f"http_proxy names a proxy with {scheme}://, only http:// is supported")
    assert proxy.connections == []


def test_a_proxys_password_that_has_changed_is_used_for_the_next_session(start_raw: StartRaw) -> None:
    proxy = start_raw(tunnel)
    address = f"127.0.0.1:{proxy.port}"
    first, second = (
        DockerCloudSettings(url="ws://stream.invalid", proxy=SecretStr(f"http://user:{word}@{address}"))
        for word in ("old", "new")
    )
    DockerCloudSource(first, lambda: second, user_agent="probe").open(None).close()
    assert f"Basic {base64.b64encode(b'user:new').decode()}\r\n" in proxy.requests[0]


def test_a_proxy_that_can_t_be_reached_is_named() -> None:
    host, port = refusing_address()
    ended = failure("ws://stream.invalid", proxy=f"http://{host}:{port}")
    assert (ended.reason, str(ended)) == ("network", f"the proxy {host}:{port}: Connection refused")


def test_a_proxys_answer_counts_whatever_bytes_its_head_has(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.request(connection)
        connection.sendall(b"HTTP/1.0 200 Connexion \xe9tablie\r\n\r\n")
        server.upgrade(connection)

    source("ws://stream.invalid", proxy=start_raw(script).url.replace("ws:", "http:")).open(None).close()


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


@pytest.mark.parametrize(
    ("status", "reason"),
    [("407 Proxy Authentication Required", "unauthorized"), ("401 Unauthorized", "unauthorized"), ("502 Bad", "network")],
)
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
