"""The websocket kind of stream on real sockets: against an independent server, and against one that misbehaves by hand."""

import base64
import hashlib
import logging
import socket
import struct
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any

import pytest
from pydantic import SecretStr
from websockets.sync.server import Server, ServerConnection, serve

from bridge.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, FrameReader, encode
from bridge.source import Ended, Read
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.source import DockerCloudSession, DockerCloudSource
from tests.support.waiting import until

DEADLINE = 20.0
SECRET = "c2VjcmV0LXVzZXI6c2VjcmV0LWtleQ=="  # secret-user:secret-key
AUTHORIZATION = f"Basic {SECRET}"


# --- helpers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def source(url: str, *, authorization: str | None = AUTHORIZATION, **changes: Any) -> DockerCloudSource:
    settings = DockerCloudSettings(url=url, **changes)
    return DockerCloudSource(settings, lambda: with_header(settings, authorization), user_agent="event-bridge")


def with_header(settings: DockerCloudSettings, authorization: str | None) -> DockerCloudSettings:
    return settings.model_copy(update={"auth": None if authorization is None else SecretStr(authorization)})


def opened(url: str, **changes: Any) -> closing[DockerCloudSession]:
    return closing(source(url, **changes).open(None))


def failure(url: str, **changes: Any) -> Ended:
    """Why no session could be opened."""
    with pytest.raises(Ended) as caught:
        source(url, **changes).open(None)
    return caught.value


def read_until_end(session: DockerCloudSession) -> tuple[list[bytes], Ended]:
    messages: list[bytes] = []
    end_of_patience = time.monotonic() + DEADLINE
    while time.monotonic() < end_of_patience:
        try:
            messages += session.read().messages
        except Ended as ended:
            return messages, ended
    raise AssertionError("the session did not end")


def read_messages(session: DockerCloudSession, count: int) -> list[bytes]:
    messages: list[bytes] = []
    end_of_patience = time.monotonic() + DEADLINE
    while len(messages) < count and time.monotonic() < end_of_patience:
        messages += session.read().messages
    return messages


Script = Callable[[socket.socket], None]


class RawServer:
    """Gives each connection to the script, in a thread; what a script raises because the client left is ignored."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self.requests: list[str] = []
        self.left = threading.Event()
        self.port: int = self.listener.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self._connections.append(connection)
                threading.Thread(target=self._run, args=(connection,), daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        with suppress(OSError):
            self._script(connection)

    def request(self, connection: socket.socket) -> str:
        """Read one request head and remember it."""
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            received = connection.recv(1)
            if not received:
                raise ConnectionResetError
            head += received
        self.requests.append(head.decode())
        return head.decode()

    def upgrade(self, connection: socket.socket, headers: str = "", after: bytes = b"") -> None:
        """Accept the websocket and send `after` in the same packet."""
        key = next(line for line in self.request(connection).splitlines() if line.startswith("Sec-WebSocket-Key: "))
        digest = hashlib.sha1(key.split()[1].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        answer += f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}\r\n{headers}\r\n"
        connection.sendall(answer.encode() + after)

    def wait_for_leaving(self, connection: socket.socket) -> None:
        """Read until the client has closed the connection."""
        with suppress(OSError):
            while connection.recv(4096):
                pass
        self.left.set()

    def close(self) -> None:
        for opened_socket in [self.listener, *self._connections]:
            with suppress(OSError):
                opened_socket.shutdown(socket.SHUT_RDWR)
            opened_socket.close()


StartRaw = Callable[[Callable[[RawServer, socket.socket], None]], RawServer]


@pytest.fixture
def start_raw() -> Iterator[StartRaw]:
    """Start a raw server whose script gets the server and the connection."""
    servers: list[RawServer] = []

    def start(script: Callable[[RawServer, socket.socket], None]) -> RawServer:
        server = RawServer(lambda connection: script(server, connection))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


StartServer = Callable[..., str]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start a server of the `websockets` library; returns its URL with the host as given."""
    servers: list[Server] = []

    def start(serve_one: Callable[[ServerConnection], None], *, tls: SSLContext | None = None, host: str = "127.0.0.1") -> str:
        server = serve(serve_one, "127.0.0.1", 0, ssl=tls, compression=None)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"{'wss' if tls else 'ws'}://{host}:{server.socket.getsockname()[1]}"

    yield start
    for server in servers:
        server.shutdown()


class Tls:
    """A private authority, and the context of a server that it vouches for under the name localhost."""

    def __init__(self, folder: Path) -> None:
        self.ca_file = str(folder / "ca.pem")
        key, request, certificate, extension = (folder / name for name in ("key.pem", "request.pem", "cert.pem", "names.txt"))
        extension.write_text("subjectAltName=DNS:localhost\n")
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        authority = ["-x509", "-subj", "/CN=test authority", "-keyout", str(folder / "ca.key"), "-out", self.ca_file]
        self._openssl("req", *new_key, *authority)
        self._openssl("req", *new_key, "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(request))
        signed_by = ["-CA", self.ca_file, "-CAkey", str(folder / "ca.key"), "-CAcreateserial", "-extfile", str(extension)]
        self._openssl("x509", "-req", "-in", str(request), "-out", str(certificate), *signed_by)
        self.context = SSLContext(PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)

    @staticmethod
    def _openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))


def stay(connection: ServerConnection) -> None:
    """Read until the client goes."""
    for _ in connection:
        pass


# --- an orderly server -------------------------------------------------------------------------------------------------


def test_messages_arrive_in_order_whatever_their_kind_size_and_fragmentation(start_server: StartServer) -> None:
    def serve_one(connection: ServerConnection) -> None:
        connection.send("text ä")
        connection.send(b"binary")
        connection.send(["frag", "men", "ted"])
        connection.send("x" * 300_000)
        for number in range(5_000):
            connection.send(f"event {number}")
        connection.close(1001, "restarting")

    with opened(start_server(serve_one)) as session:
        messages, ended = read_until_end(session)
    assert messages[:4] == ["text ä".encode(), b"binary", b"fragmented", b"x" * 300_000]
    assert messages[4:] == [b"event %d" % number for number in range(5_000)]
    assert (ended.reason, str(ended)) == ("closed", "closed by the server: 1001 restarting")


def test_the_request_carries_path_filters_and_fresh_credentials(start_server: StartServer) -> None:
    seen: list[tuple[str, str | None, str | None]] = []

    def serve_one(connection: ServerConnection) -> None:
        request = connection.request
        assert request is not None
        seen.append((request.path, request.headers.get("Authorization"), request.headers.get("User-Agent")))

    credentials = iter(["Basic first", "TutumAccessKey second", None])
    settings = DockerCloudSettings(url=start_server(serve_one), namespace="acme", types=["node"])
    stream = DockerCloudSource(settings, lambda: with_header(settings, next(credentials)), user_agent="probe/1")
    for _ in range(3):
        with closing(stream.open("a position means nothing here")) as session:
            read_until_end(session)
    path = "/api/audit/v1/acme/events?type=node"
    assert seen == [
        (path, "Basic first", "probe/1"),
        (path, "TutumAccessKey second", "probe/1"),
        (path, None, "probe/1"),
    ]


def test_a_silent_session_is_kept_alive_by_pings_and_answers_those_of_the_server(start_server: StartServer) -> None:
    answered = threading.Event()

    def serve_one(connection: ServerConnection) -> None:
        if connection.ping(b"are you there").wait(DEADLINE):
            answered.set()
        stay(connection)

    with opened(start_server(serve_one), ping_interval=0.02, ping_timeout=DEADLINE) as session:
        pongs = 0
        while pongs < 5 or not answered.is_set():
            read = session.read()
            assert not read.messages
            pongs += read.heard


def test_closing_says_goodbye_and_may_be_repeated(start_server: StartServer) -> None:
    codes: list[int | None] = []
    done = threading.Event()

    def serve_one(connection: ServerConnection) -> None:
        stay(connection)
        codes.append(connection.close_code)
        done.set()

    session = source(start_server(serve_one)).open(None)
    session.close()
    session.close()
    session.abort()
    assert done.wait(DEADLINE)
    assert codes == [1001]


# --- TLS ---------------------------------------------------------------------------------------------------------------


def test_tls_with_a_private_authority_carries_everything(start_server: StartServer, tls: Tls) -> None:
    def serve_one(connection: ServerConnection) -> None:
        connection.send("x" * 300_000)
        for number in range(3_000):
            connection.send(f"event {number}")

    with opened(start_server(serve_one, tls=tls.context, host="localhost"), ca_file=tls.ca_file) as session:
        messages, ended = read_until_end(session)
    assert messages == [b"x" * 300_000, *(b"event %d" % number for number in range(3_000))]
    assert ended.reason == "closed"


def test_what_tls_has_decrypted_but_one_read_did_not_take_is_not_waited_for(
    start_server: StartServer, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.sources.dockercloud.source._MAX_READ_BYTES", 1_000)

    def serve_one(connection: ServerConnection) -> None:
        connection.send("x" * 5_000)  # In one TLS record.
        stay(connection)

    url = start_server(serve_one, tls=tls.context, host="localhost")
    with opened(url, ca_file=tls.ca_file, ping_interval=1_000.0) as session:
        assert read_messages(session, 1) == [b"x" * 5_000]


def test_an_unknown_authority_is_a_tls_failure(start_server: StartServer, tls: Tls) -> None:
    ended = failure(start_server(stay, tls=tls.context, host="localhost"))
    assert ended.reason == "tls"
    assert "certificate" in str(ended)


def test_a_certificate_for_another_name_is_a_tls_failure(start_server: StartServer, tls: Tls) -> None:
    ended = failure(start_server(stay, tls=tls.context, host="127.0.0.1"), ca_file=tls.ca_file)
    assert ended.reason == "tls"
    assert "127.0.0.1" in str(ended)


def test_tls_spoken_to_a_plain_server_is_a_tls_failure(start_raw: StartRaw) -> None:
    server = start_raw(lambda _, connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    assert failure(f"wss://127.0.0.1:{server.port}").reason == "tls"


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), ("not a certificate", "certificate")])
def test_an_unusable_ca_file_is_named(content: str | None, why: str, tmp_path: Path) -> None:
    ca_file = tmp_path / "authority.pem"
    if content is not None:
        ca_file.write_text(content)
    ended = failure("wss://127.0.0.1:9", ca_file=str(ca_file))
    assert ended.reason == "tls"
    assert str(ca_file) in str(ended)
    assert why.lower() in str(ended).lower()


def test_a_tls_record_that_stops_in_the_middle_does_not_block_reading(
    start_server: StartServer, start_raw: StartRaw, tls: Tls
) -> None:
    hold_back = threading.Event()

    def serve_one(connection: ServerConnection) -> None:
        connection.send("before")
        hold_back.wait(DEADLINE)
        connection.send("x" * 1_000)
        stay(connection)

    port = int(start_server(serve_one, tls=tls.context).rpartition(":")[2])

    def relay(_: RawServer, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as server:
            threading.Thread(target=pump, args=(client, server), daemon=True).start()
            while data := server.recv(65_536):
                if hold_back.is_set():
                    client.sendall(data[:10])
                    return
                client.sendall(data)

    def pump(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65_536):
                server.sendall(data)

    url = f"wss://localhost:{start_raw(relay).port}"
    with opened(url, ca_file=tls.ca_file, ping_interval=0.5, ping_timeout=0.5) as session:
        assert read_messages(session, 1) == [b"before"]
        hold_back.set()
        messages, ended = read_until_end(session)
    assert messages == []
    assert ended.reason == "dead"


# --- abort -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("secure", [False, True])
def test_abort_wakes_a_blocked_read(secure: bool, start_server: StartServer, tls: Tls) -> None:
    url = start_server(stay, tls=tls.context if secure else None, host="localhost")
    with opened(url, ca_file=tls.ca_file, ping_interval=1_000.0) as session:
        endings: list[Ended] = []
        reader = threading.Thread(target=lambda: endings.append(read_until_end(session)[1]))
        reader.start()
        session.abort()
        session.abort()
        reader.join(DEADLINE)
    assert [(ended.reason, str(ended)) for ended in endings] == [("closed", "closed by us")]


# --- how sessions end --------------------------------------------------------------------------------------------------


def end_after(start_raw: StartRaw, sent: bytes, **changes: Any) -> tuple[list[bytes], Ended, FrameReader, bytes]:
    """Let a server send these bytes and wait; also returns what it heard until the client left."""
    heard = bytearray()

    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection, after=sent)
        while data := connection.recv(4096):
            heard.extend(data)
        server.left.set()

    server = start_raw(script)
    with opened(server.url, **changes) as session:
        messages, ended = read_until_end(session)
    assert server.left.wait(DEADLINE)
    return messages, ended, FrameReader(1_000, masked=True), bytes(heard)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "no code"),
        (b"\x03", "no code"),
        (b"\x03\xe8", "1000"),
        (b"\x03\xf0too\nfast\x1b[31m", "1008 too fast [31m"),
        (b"\x03\xe9\xff", "1001 \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_close_frame_ends_the_session_after_its_messages_and_is_answered(
    payload: bytes, words: str, start_raw: StartRaw
) -> None:
    sent = encode(TEXT, b"one") + encode(TEXT, b"two") + encode(CLOSE, payload) + encode(TEXT, b"late")
    messages, ended, reader, heard = end_after(start_raw, sent)
    assert messages == [b"one", b"two"]
    assert (ended.reason, str(ended)) == ("closed", f"closed by the server: {words}")
    assert reader.feed(heard).controls == [(CLOSE, struct.pack("!H", 1000))]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\xff\xff\xff\xff garbage", 1002),
        (encode(CONTINUATION, b"of nothing"), 1002),
        (b"\x82\x7f" + (1 << 40).to_bytes(8, "big"), 1009),
    ],
)
def test_a_broken_protocol_ends_the_session_after_its_messages_and_is_answered(
    sent: bytes, code: int, start_raw: StartRaw
) -> None:
    messages, ended, reader, heard = end_after(start_raw, encode(TEXT, b"one") + sent)
    assert messages == [b"one"]
    assert ended.reason == "protocol"
    assert reader.feed(heard).controls == [(CLOSE, struct.pack("!H", code))]


def test_a_message_beyond_the_limit_ends_the_session(start_raw: StartRaw) -> None:
    sent = encode(BINARY, b"x" * 1024) + encode(TEXT, b"x" * 1025)
    messages, ended, _, _ = end_after(start_raw, sent, max_frame_bytes=1024)
    assert messages == [b"x" * 1024]
    assert (ended.reason, str(ended)) == ("protocol", "the server broke the protocol: a message is larger than 1024 bytes")


def test_only_the_last_of_several_pings_is_answered(start_raw: StartRaw) -> None:
    sent = b"".join(encode(PING, b"%d" % number) for number in range(50)) + encode(CLOSE, b"")
    _, _, reader, heard = end_after(start_raw, sent)
    assert reader.feed(heard).controls == [(PONG, b"49"), (CLOSE, struct.pack("!H", 1000))]


def test_a_connection_closed_without_a_close_frame_is_a_network_failure(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection, after=encode(TEXT, b"one") + b"\x81\x7e")
        connection.close()

    with opened(start_raw(script).url) as session:
        messages, ended = read_until_end(session)
    assert messages == [b"one"]
    assert (ended.reason, str(ended)) == ("network", "the connection was closed without a close frame")


def test_a_reset_connection_is_a_network_failure(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection)
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    with opened(start_raw(script).url, ping_interval=0.01) as session:
        _, ended = read_until_end(session)
    assert ended.reason == "network"


def test_a_half_open_connection_is_found_by_a_ping_without_an_answer(start_raw: StartRaw) -> None:
    _, ended, reader, heard = end_after(start_raw, encode(TEXT, b"one"), ping_interval=0.05, ping_timeout=0.05)
    assert (ended.reason, str(ended)) == ("dead", "nothing was heard for 0.1 s, not even an answer to a ping")
    assert reader.feed(heard).controls == [(PING, b"")]


def test_a_message_that_comes_drop_by_drop_is_no_life(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection, after=encode(TEXT, b"one") + b"\x81\x7e\xff\xff")
        drip(server, connection)

    server = start_raw(script)
    with opened(server.url, ping_interval=0.1, ping_timeout=0.2) as session:
        messages, ended = read_until_end(session)
    assert messages == [b"one"]
    assert (ended.reason, str(ended)) == ("dead", "nothing was heard for 0.3 s, not even an answer to a ping")


def test_a_large_message_may_take_longer_than_silence(start_raw: StartRaw) -> None:
    large = encode(TEXT, b"x" * 60_000)

    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection)
        for start in range(0, len(large), 2000):
            connection.sendall(large[start : start + 2000])
            server.left.wait(0.02)
        server.wait_for_leaving(connection)

    with opened(start_raw(script).url, ping_interval=0.1, ping_timeout=0.2) as session:
        assert read_messages(session, 1) == [b"x" * 60_000]


def test_a_session_without_events_is_ended_as_idle_although_alive(start_server: StartServer) -> None:
    with opened(start_server(stay), ping_interval=0.02, idle_timeout=0.2) as session:
        messages, ended = read_until_end(session)
    assert messages == []
    assert (ended.reason, str(ended)) == ("idle", "alive, but without an event for 0.2 s")


def test_what_waits_to_be_read_comes_before_the_clock(start_raw: StartRaw) -> None:
    proceed = threading.Event()

    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection)
        proceed.wait(DEADLINE)
        connection.sendall(encode(TEXT, b"one"))
        server.left.set()
        connection.recv(100)

    now = 0.0
    server = start_raw(script)
    settings = DockerCloudSettings(url=server.url)
    stream = DockerCloudSource(settings, lambda: settings, user_agent="probe", clock=lambda: now)
    with closing(stream.open(None)) as session:
        now = 10.0
        assert session.read() == Read()  # The ping.
        proceed.set()
        assert server.left.wait(DEADLINE)
        now = 1_000.0  # As after the process was stopped for a while.
        assert session.read().messages == [b"one"]


def test_a_peer_that_takes_nothing_is_given_up(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection)
        # Of the pings in one read only the last is answered: what is on its way is kept short.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        while True:
            connection.sendall(encode(PING, b"p" * 125))

    server = start_raw(script)
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    with opened(server.url, ping_timeout=0.1, ping_interval=0.5) as session:
        _, ended = read_until_end(session)
    assert ended.reason == "dead"


def test_after_the_end_close_releases_the_connection(start_raw: StartRaw) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.upgrade(connection, after=encode(CLOSE, struct.pack("!H", 1000)))
        server.wait_for_leaving(connection)

    server = start_raw(script)
    session = source(server.url).open(None)
    read_until_end(session)
    assert not server.left.is_set()
    session.close()
    assert server.left.wait(DEADLINE)


# --- refusals ----------------------------------------------------------------------------------------------------------


def answering(answer: str) -> Callable[[RawServer, socket.socket], None]:
    def script(server: RawServer, connection: socket.socket) -> None:
        server.request(connection)
        connection.sendall(answer.encode())
        server.wait_for_leaving(connection)

    return script


def response(status: str, body: str = "", headers: str = "") -> str:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body.encode())}\r\nX-Internal: {SECRET}\r\n{headers}\r\n{body}"


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


def drip(server: RawServer, connection: socket.socket) -> None:
    """Send an answer that never ends, in pieces that come soon enough for any timeout of a single read."""
    try:
        while not server.left.wait(0.01):
            connection.sendall(b"H")
    except OSError:
        server.left.set()


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


# --- secrets -----------------------------------------------------------------------------------------------------------


def test_neither_credentials_nor_cookies_are_logged(start_raw: StartRaw, caplog: pytest.LogCaptureFixture) -> None:
    def script(server: RawServer, connection: socket.socket) -> None:
        if server.requests:
            answering(response("401 Unauthorized", '{"error": "no"}'))(server, connection)
        else:
            server.upgrade(connection, "Set-Cookie: liveid=hunter2\r\n", after=encode(PING, b""))

    stream = source(start_raw(script).url)
    with caplog.at_level(logging.DEBUG):
        session = stream.open(None)
        session.read()
        session.close()
        with pytest.raises(Ended) as caught:
            stream.open(None)
    shown = caplog.text + "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert "hunter2" not in shown
