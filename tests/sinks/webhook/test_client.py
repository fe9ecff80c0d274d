import base64
import os
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import pycurl
import pytest

from bridge.sink import Unavailable
from sinks.webhook import client as client_module
from sinks.webhook.client import Client, NoResponse, Response
from sinks.webhook.errors import classify_error
from sinks.webhook.settings import WebhookSettings
from tests.support.servers.receiver import Receiver, drip, make_certificate, reply, server_context
from tests.support.waiting import until

TIMEOUT = 0.4
TOO_LONG = 8.0
"""What a request without a real deadline would exceed by far in these tests; far above `TIMEOUT`, for busy machines."""

LONG = b"x" * 2000

options = client_module._options

Make = Callable[..., Client]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def make_client(certificate: tuple[Path, Path]) -> Iterator[Make]:
    clients = []

    def make(url: str, timeout: float = TIMEOUT, **given: Any) -> Client:
        settings = WebhookSettings.model_validate({"url": url, "timeout": timeout, "ca_file": certificate[0]} | given)
        clients.append(Client(settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture(params=["http", "https"])
def receiver(request: pytest.FixtureRequest, certificate: tuple[Path, Path]) -> Iterator[Receiver]:
    receiver = Receiver(server_context(*certificate) if request.param == "https" else None)
    yield receiver
    receiver.stop()


@pytest.fixture
def plain_receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.stop()


@pytest.fixture
def tls_receiver(certificate: tuple[Path, Path]) -> Iterator[Receiver]:
    receiver = Receiver(server_context(*certificate))
    yield receiver
    receiver.stop()


def end(client: Client, body: bytes = b"{}") -> Response | NoResponse:
    """Send a request, and return its end."""
    requests = iter([(None, "an-id", body)])
    ((_, ended),) = client.send(lambda: next(requests, None))
    return ended


def post(client: Client, body: bytes = b"{}") -> Response:
    ended = end(client, body)
    assert isinstance(ended, Response), ended
    return ended


def failure(error: Response | NoResponse | None) -> str:
    """Return what concerns a failure, its label and its words."""
    assert isinstance(error, NoResponse), error
    failed = classify_error(error, "it", TIMEOUT)
    return f"{failed.scope} {failed.reason}: {failed.error}"


NOT_CONNECTED = "sink unreachable: it: no connection within 0.4 s"
TIMED_OUT = "event timeout: it did not answer within 0.4 s"


class Listener:
    """Accepts one connection after another and lets the test talk on it."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self._talk = talk
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._talk_on, args=(connection,), daemon=True).start()

    def _talk_on(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            self._talk(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def read_slowly(connection: socket.socket) -> None:
    pause = threading.Event()
    while connection.recv(16384):
        pause.wait(0.02)


def test_headers_that_drip_are_cut_at_the_deadline(receiver: Receiver, make_client: Make) -> None:
    receiver.answer = lambda _: drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + LONG)
    started = time.monotonic()

    assert failure(end(make_client(receiver.url))) == TIMED_OUT

    assert time.monotonic() - started < TOO_LONG


def test_a_body_that_drips_is_cut_at_the_deadline_and_the_status_counts(receiver: Receiver, make_client: Make) -> None:
    receiver.answer = lambda _: drip(b"HTTP/1.1 202 Y\r\nContent-Length: 2000\r\n\r\n" + LONG)
    client = make_client(receiver.url, timeout=2.0)
    started = time.monotonic()

    assert post(client).status == 202
    assert time.monotonic() - started < TOO_LONG
    receiver.answer = lambda _: reply(200)
    assert post(client).status == 200

    assert receiver.connections == 2


def test_silence_is_cut_at_the_deadline(receiver: Receiver, make_client: Make) -> None:
    receiver.gate.clear()

    assert failure(end(make_client(receiver.url))) == TIMED_OUT


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_a_large_body_that_is_taken_slowly_is_cut_at_the_deadline(
    make_client: Make, certificate: tuple[Path, Path], *, tls: bool
) -> None:
    context = server_context(*certificate)

    def talk(connection: socket.socket) -> None:
        read_slowly(context.wrap_socket(connection, server_side=True) if tls else connection)

    with Listener(talk) as listener:
        client = make_client(f"{'https' if tls else 'http'}://localhost:{listener.port}/")
        started = time.monotonic()

        assert failure(end(client, b"x" * 20_000_000)) == TIMED_OUT

        assert time.monotonic() - started < TOO_LONG


@pytest.mark.parametrize(
    "talk", [read_slowly, drip(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc" + LONG)], ids=["silent", "dripping"]
)
def test_a_tls_handshake_that_does_not_end_is_cut_at_the_deadline(
    make_client: Make, talk: Callable[[socket.socket], None]
) -> None:
    with Listener(talk) as listener:
        started = time.monotonic()

        assert failure(make_client(f"https://localhost:{listener.port}/").connect()) == NOT_CONNECTED

        assert time.monotonic() - started < TOO_LONG


def test_connecting_that_does_not_end_is_cut_at_the_deadline(make_client: Make) -> None:
    # A listener whose queue is full ignores further connections.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.settimeout(0)
            filler.connect_ex(("127.0.0.1", port))

        assert failure(make_client(f"http://127.0.0.1:{port}/").connect()) == NOT_CONNECTED

        for filler in fillers:
            filler.close()


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 199 x\r\nA: b\r\n\r\nHTTP/1.1 103 y\r\n\r\n",
    ],
)
def test_interim_responses_are_read_over(receiver: Receiver, make_client: Make, interim: bytes) -> None:
    receiver.answer = lambda _: interim + reply(201)
    client = make_client(receiver.url, timeout=10)

    assert [post(client).status for _ in range(3)] == [201, 201, 201]
    assert receiver.connections == 1


def test_interim_responses_without_an_end_are_cut_at_the_deadline(receiver: Receiver, make_client: Make) -> None:
    receiver.answer = lambda _: drip(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)

    assert failure(end(make_client(receiver.url))) == TIMED_OUT


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"X-%d: y\r\n" % number for number in range(1000)),
        b"".join(b"X-%d: y\r\n" % number for number in range(6000)),
        b"X: " + b"y" * 65536 + b"\r\n",
        b"X: " + b"y" * 200_000 + b"\r\n",
        (b"X: " + b"y" * 60_000 + b"\r\n") * 8,
        b"Date: lun., 29 nov. 2026, d\xe9but\r\n",
        b"no colon here\r\n",
        b"X: a\x00b\r\n",
    ],
    ids=["many", "too many", "long", "too long", "too much", "Latin-1", "no colon", "NUL"],
)
def test_the_status_counts_whatever_the_headers_are(receiver: Receiver, make_client: Make, head: bytes) -> None:
    receiver.answer = lambda _: b"HTTP/1.1 429 Trop de requ\xeates\r\nRetry-After: 7\r\n" + head + b"Content-Length: 0\r\n\r\n"

    response = post(make_client(receiver.url, timeout=10))

    assert (response.status, response.header("retry-after")) == (429, "7")


@pytest.mark.parametrize(
    "body", [b"Content-Length: 100\r\n\r\ncut", b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"], ids=["too short", "not chunked"]
)
def test_the_status_counts_whatever_the_body_is(receiver: Receiver, make_client: Make, body: bytes) -> None:
    receiver.answer = lambda _: lambda connection: connection.sendall(b"HTTP/1.1 401 x\r\nRetry-After: 7\r\n" + body)

    response = post(make_client(receiver.url, timeout=10))

    assert (response.status, response.header("Retry-After")) == (401, "7")


@pytest.mark.parametrize("part", [b"HTTP/1.1 200 OK\r\nContent-Len", b"HTTP/1.1 103 x\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n"])
def test_a_head_that_is_cut_off_is_no_answer(receiver: Receiver, make_client: Make, part: bytes) -> None:
    receiver.answer = lambda _: lambda connection: connection.sendall(part)

    ended = end(make_client(receiver.url, timeout=10))

    assert failure(ended) == "event unreachable: it closed the connection instead of an answer"


def test_one_connection_serves_many_requests(receiver: Receiver, make_client: Make) -> None:
    bodies = [reply(200), reply(204), reply(500, b"x" * 60_000), reply(422, b"no"), CHUNKED]
    receiver.answer = lambda _: bodies[len(receiver.requests) % len(bodies)]
    client = make_client(receiver.url, timeout=10)

    for _ in range(20):
        post(client)

    assert receiver.connections == 1
    assert len(receiver.requests) == 20


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [reply(200, b"x" * 70_000), reply(200, b"bye", Connection="close"), b"HTTP/1.0 200 OK\r\n\r\nuntil the end"],
    ids=["a large body", "connection: close", "HTTP/1.0"],
)
def test_a_connection_that_can_not_be_used_again_is_replaced(receiver: Receiver, make_client: Make, answer: bytes) -> None:
    def say(connection: socket.socket) -> None:
        connection.sendall(answer)

    receiver.answer = lambda _: say
    client = make_client(receiver.url, timeout=10)

    assert [post(client).status for _ in range(3)] == [200, 200, 200]

    assert receiver.connections == len(receiver.requests) == 3


def test_an_idle_connection_that_was_closed_is_replaced(receiver: Receiver, make_client: Make) -> None:
    client = make_client(receiver.url, timeout=10)
    post(client)
    receiver.stop()
    receiver.start()

    assert post(client).status == 200

    assert len(receiver.requests) == 2


def test_what_comes_unasked_on_an_idle_connection_is_no_answer(plain_receiver: Receiver, make_client: Make) -> None:
    # HAProxy announces with 408 that it closes an idle connection. libcurl looks at those that were idle for a second.
    announced = threading.Event()

    def announce(connection: socket.socket) -> None:
        connection.sendall(reply(200))
        answered.wait(10)
        connection.sendall(reply(408))
        announced.set()

    answered = threading.Event()
    plain_receiver.answer = lambda _: announce
    client = make_client(plain_receiver.url, timeout=10)

    assert post(client).status == 200
    answered.set()
    announced.wait(10)
    threading.Event().wait(1.1)
    assert post(client).status == 200

    assert [request.connection for request in plain_receiver.requests] == [1, 2]


def test_a_request_is_repeated_once_if_a_used_connection_closes_on_it(receiver: Receiver, make_client: Make) -> None:
    receiver.answer = lambda request: None if (request.connection, len(receiver.requests)) == (1, 2) else reply(200)
    client = make_client(receiver.url, timeout=10)
    post(client)

    assert post(client).status == 200

    assert [request.connection for request in receiver.requests] == [1, 1, 2]


def test_a_new_connection_that_closes_without_an_answer_is_an_error(receiver: Receiver, make_client: Make) -> None:
    receiver.answer = lambda _: None

    ended = end(make_client(receiver.url, timeout=10))

    assert failure(ended) == "event unreachable: it closed the connection instead of an answer"
    assert len(receiver.requests) == 1


def test_an_answer_before_the_end_of_the_body_counts(make_client: Make) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(reply(413, Connection="close"))

    with Listener(talk) as listener:
        assert post(make_client(f"http://127.0.0.1:{listener.port}/", timeout=10), b"x" * 20_000_000).status == 413


def test_what_is_not_http_is_an_error_of_its_own(plain_receiver: Receiver, make_client: Make) -> None:
    plain_receiver.answer = lambda _: b"220 mail.example.com ESMTP\r\n"

    assert failure(end(make_client(plain_receiver.url, timeout=10))) == "sink server_error: it: what it answers is not HTTP"


def test_the_request_is_what_was_asked_for(receiver: Receiver, make_client: Make) -> None:
    headers = {"x-one": "1", "x-empty": ""}
    client = make_client(receiver.url + "/a b?key=value#fragment", timeout=10, method="PUT", headers=headers)

    post(client, "ü".encode())

    request = receiver.requests[0]
    assert (request.method, request.target, request.body) == ("PUT", "/hook/a%20b?key=value", "ü".encode())
    assert (request.headers["x-one"], request.headers["x-empty"]) == ("1", "")
    assert request.headers["webhook-id"] == "an-id"
    assert not {"expect", "cookie", "transfer-encoding"} & request.headers.keys()
    assert request.headers["host"] == f"localhost:{receiver.port}"


def test_an_ipv6_address_works(make_client: Make) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(reply(200))

    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    threading.Thread(target=lambda: talk(listener.accept()[0]), daemon=True).start()

    assert post(make_client(f"http://[::1]:{listener.getsockname()[1]}/", timeout=10)).status == 200
    listener.close()


def test_the_next_address_of_a_name_is_tried_when_the_first_is_silent(
    receiver: Receiver, make_client: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A listener whose queue is full ignores further connections.
    with socket.socket() as silent, ExitStack() as fillers:
        silent.bind(("127.0.0.2", receiver.port))
        silent.listen(0)
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.2", receiver.port))
        both = [f"localhost:{receiver.port}:127.0.0.2,127.0.0.1"]
        monkeypatch.setattr(client_module, "_options", lambda given: options(given) | {pycurl.RESOLVE: both})
        client = make_client(receiver.url, timeout=10)
        started = time.monotonic()

        assert client.connect() is None
        assert post(client).status == 200

        assert time.monotonic() - started < TOO_LONG


SLOW_NAMES = """
    #include <netdb.h>
    #include <unistd.h>
    int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result)
    { sleep(60); return EAI_AGAIN; }
"""
ASK = """
    import time
    from sinks.webhook.client import Client
    from sinks.webhook.settings import WebhookSettings

    client = Client(WebhookSettings(url="http://slow.example/", timeout=0.3))
    requests = iter([(None, "", b"{}")])
    print(client.connect().message)
    print([*client.send(lambda: next(requests, None))][0][1].message)
    client.close()
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_look_up_of_a_name_is_cut_at_the_deadline_and_keeps_nobody_from_ending(tmp_path: Path) -> None:
    library = tmp_path / "slow.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-o", library, "-"], input=SLOW_NAMES, text=True, check=True)

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ASK)],
        env={**os.environ, "LD_PRELOAD": str(library)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert done.stderr == ""
    assert [line[:19] for line in done.stdout.splitlines()] == ["Resolving timed out"] * 2


def test_a_process_with_many_descriptors_can_send(receiver: Receiver, make_client: Make) -> None:
    # select(2) sees those below 1024 only.
    with ExitStack() as files:
        for _ in range(1100):
            files.enter_context(Path("/dev/null").open())

        assert post(make_client(receiver.url, timeout=10)).status == 200


def test_nothing_is_sent_that_was_not_asked_for(
    receiver: Receiver, make_client: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("default login user password geheim\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    receiver.answer = lambda _: reply(307, Location="/elsewhere", Set_Cookie="session=1")
    client = make_client(receiver.url, timeout=10)

    assert [post(client).status for _ in range(2)] == [307, 307]

    assert [request.target for request in receiver.requests] == ["/hook", "/hook"]
    for request in receiver.requests:
        assert not {"cookie", "authorization"} & request.headers.keys()


def test_closing_wakes_a_request_that_hangs(receiver: Receiver, make_client: Make) -> None:
    receiver.gate.clear()
    client = make_client(receiver.url, timeout=60)
    ended: list[Response | NoResponse] = []
    thread = threading.Thread(target=lambda: ended.append(end(client)), daemon=True)
    thread.start()
    until(lambda: len(receiver.requests) == 1)
    for _ in range(3):
        client.close()
    thread.join(10)
    for _ in range(3):
        client.close()

    assert [failure(each) for each in ended] == ["sink unreachable: it: Operation was aborted by an application callback"]
    with pytest.raises(Unavailable, match="closed"):
        end(client)


@pytest.mark.parametrize(
    ("host", "given", "words"),
    [("localhost", {"ca_file": None}, "self-signed certificate"), ("127.0.0.1", {}, "no alternative certificate subject name")],
)
def test_a_certificate_that_is_not_trusted_or_of_another_name_is_refused(
    tls_receiver: Receiver, make_client: Make, host: str, given: dict[str, Any], words: str
) -> None:
    client = make_client(f"https://{host}:{tls_receiver.port}/", timeout=10, **given)

    assert f"sink tls: it: the certificate is not accepted: {words}" in failure(client.connect())
    assert f"sink tls: it: the certificate is not accepted: {words}" in failure(end(client))


def test_the_certificates_of_the_system_are_those_of_python(
    tls_receiver: Receiver, certificate: tuple[Path, Path], tmp_path: Path, make_client: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(certificate[0], tmp_path / "ours.pem")
    subprocess.run(["openssl", "rehash", tmp_path], check=True)
    other, _ = make_certificate(tmp_path, "other")
    for file, folder in ((certificate[0], "/nowhere"), ("/nowhere", tmp_path)):
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        monkeypatch.setenv("SSL_CERT_DIR", str(folder))

        assert make_client(tls_receiver.url, timeout=10, ca_file=None).connect() is None
        error = failure(make_client(tls_receiver.url, timeout=10, ca_file=other).connect())
        assert "the certificate is not accepted: self-signed certificate" in error


class Proxy(Listener):
    """A proxy that knows nothing but CONNECT."""

    def __init__(
        self, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n", tls: ssl.SSLContext | None = None
    ) -> None:
        super().__init__(self._tunnel)
        self._answer = answer
        self._tls = tls
        self.heads: list[bytes] = []

    def _tunnel(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        head = b""
        while b"\r\n\r\n" not in head:
            head += connection.recv(4096)
        self.heads.append(head)
        connection.sendall(self._answer)
        if b" 200 " in self._answer:
            pump_both(connection, int(head.split(b" ")[1].rpartition(b":")[2]))


class Socks(Listener):
    """A SOCKS 5 proxy that asks for a password (RFC 1928, 1929)."""

    def __init__(self) -> None:
        super().__init__(self._tunnel)
        self.heads: list[bytes] = []

    def _tunnel(self, connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"\x05\x02")
        login = connection.recv(4096)
        connection.sendall(b"\x01\x00")
        target = connection.recv(4096)
        self.heads.append(login + target)
        connection.sendall(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00")
        pump_both(connection, int.from_bytes(target[-2:], "big"))


def pump_both(connection: socket.socket, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as far:
        threading.Thread(target=pump, args=(far, connection), daemon=True).start()
        pump(connection, far)


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def test_the_proxy_of_the_environment_is_used_for_https(
    tls_receiver: Receiver, make_client: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:geheim@127.0.0.1:{proxy.port}")
        client = make_client(tls_receiver.url, timeout=10)
        assert [post(client).status for _ in range(3)] == [200, 200, 200]

    assert len(proxy.heads) == 1
    assert proxy.heads[0].startswith(f"CONNECT localhost:{tls_receiver.port} ".encode())
    assert b"Basic " + base64.b64encode(b"user:geheim") in proxy.heads[0]
    assert tls_receiver.requests[0].headers["host"] == f"localhost:{tls_receiver.port}"
    assert "proxy-authorization" not in tls_receiver.requests[0].headers


def test_a_proxy_may_speak_tls_or_socks(
    tls_receiver: Receiver, certificate: tuple[Path, Path], make_client: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Proxy(tls=server_context(*certificate)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"https://us%40er:ge%3Aheim@localhost:{proxy.port}")
        assert post(make_client(tls_receiver.url, timeout=10)).status == 200
    assert b"Basic " + base64.b64encode(b"us@er:ge:heim") in proxy.heads[0]

    for scheme in ("socks5", "socks5h"):
        with Socks() as socks:
            monkeypatch.setenv("HTTPS_PROXY", f"{scheme}://us%40er:ge%3Aheim@localhost:{socks.port}")
            assert post(make_client(tls_receiver.url, timeout=10)).status == 200
        assert b"us@er\x07ge:heim" in socks.heads[0]
        assert (b"localhost" in socks.heads[0]) is (scheme == "socks5h")


@pytest.mark.parametrize("excepted", ["localhost", "example.com, localhost:{port}"])
def test_no_proxy_is_used_for_hosts_that_are_excepted(
    tls_receiver: Receiver, make_client: Make, monkeypatch: pytest.MonkeyPatch, excepted: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", excepted.format(port=tls_receiver.port))

    assert post(make_client(tls_receiver.url, timeout=10)).status == 200


@pytest.mark.parametrize(
    ("excepted", "words"),
    [
        ("127.0.0.0/8", "sink tls: it: the certificate is not accepted"),
        ("10.0.0.0/8, 127.0.0.1", "sink tls: it: the certificate is not accepted"),
        ("*", "sink tls: it: the certificate is not accepted"),
        ("10.0.0.0/8,example.com,localhost", "sink unreachable: it: the proxy: Connection refused"),
    ],
)
def test_networks_are_excepted_from_the_proxy(
    tls_receiver: Receiver, make_client: Make, monkeypatch: pytest.MonkeyPatch, excepted: str, words: str
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", excepted)
    client = make_client(tls_receiver.url.replace("localhost", "127.0.0.1"), timeout=10)

    assert failure(client.connect()).startswith(words)


def test_a_plain_url_is_never_sent_to_a_proxy(
    plain_receiver: Receiver, make_client: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    assert post(make_client(plain_receiver.url, timeout=10)).status == 200


def test_a_proxy_that_refuses_or_drips_is_no_connection(make_client: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        error = failure(make_client("https://localhost:1/", timeout=10).connect())
    assert error == "sink unreachable: it: the proxy refuses: CONNECT tunnel failed, response 407"

    with Listener(drip(LONG)) as listener:
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{listener.port}")
        assert failure(make_client("https://localhost:1/").connect()) == NOT_CONNECTED


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("http://[", "HTTPS_PROXY must look like http://host:port"),
        ("http://u:geheim@127.0.0.1:port", "HTTPS_PROXY must look like http://host:port"),
        ("ftp://u:geheim@127.0.0.1:1", "HTTPS_PROXY must look like http://host:port"),
        ("http://u:geheim@127.0.0.1:1", "the proxy: Connection refused"),
        ("https://u:geheim@127.0.0.1:1", "the proxy: Connection refused"),
        ("socks5h://u:geheim@127.0.0.1:1", "the proxy: Connection refused"),
        ("http://u:geheim@nobody.invalid", "no address for the name of the proxy"),
    ],
)
def test_a_proxy_that_can_not_be_used_is_said_to_be_so(
    make_client: Make, monkeypatch: pytest.MonkeyPatch, proxy: str, words: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)

    assert failure(make_client("https://localhost:1/", timeout=10).connect()) == f"sink unreachable: it: {words}"
