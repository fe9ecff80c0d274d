"""The websocket kind of stream on real sockets: against an independent server, and against one that misbehaves by hand."""

import logging
import socket
import struct
import threading
import traceback
from contextlib import closing, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from websockets.frames import Frame
from websockets.protocol import SERVER, Protocol
from websockets.sync.server import ServerConnection

from bridge.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, encode
from bridge.source import Ended, Read
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.source import DockerCloudSource
from tests.support.servers.websocket_server import (
    DEADLINE,
    SECRET,
    RawServer,
    StartRaw,
    StartServer,
    Tls,
    answering,
    drip,
    failure,
    opened,
    read_messages,
    read_until_end,
    response,
    source,
    stay,
    with_header,
)

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


def end_after(start_raw: StartRaw, sent: bytes, **changes: Any) -> tuple[list[bytes], Ended, list[tuple[int, bytes]]]:
    """Let a server send these bytes and wait; also returns the frames that it heard until the client left."""
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
    reader = Protocol(SERVER)
    reader.receive_data(bytes(heard))
    return (
        messages,
        ended,
        [(event.opcode, bytes(event.data)) for event in reader.events_received() if isinstance(event, Frame)],
    )


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "no code"),
        (b"\x03", "no code"),
        (b"\x03\xe8", "1000"),
        (b"\x03\xf0too\nfast\x1b[31m", "1008 too fast [31m"),
        (b"\x03\xe9\xff", "1001 \N{REPLACEMENT CHARACTER}"),
        (b"\x03\xf0no secret%2dkey", "1008 no ***"),
    ],
)
def test_a_close_frame_ends_the_session_after_its_messages_and_is_answered(
    payload: bytes, words: str, start_raw: StartRaw
) -> None:
    sent = encode(TEXT, b"one") + encode(TEXT, b"two") + encode(CLOSE, payload) + encode(TEXT, b"late")
    messages, ended, heard = end_after(start_raw, sent)
    assert messages == [b"one", b"two"]
    assert (ended.reason, str(ended)) == ("closed", f"closed by the server: {words}")
    assert heard == [(CLOSE, struct.pack("!H", 1000))]


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
    messages, ended, heard = end_after(start_raw, encode(TEXT, b"one") + sent)
    assert messages == [b"one"]
    assert ended.reason == "protocol"
    assert heard == [(CLOSE, struct.pack("!H", code))]


def test_a_message_beyond_the_limit_ends_the_session(start_raw: StartRaw) -> None:
    sent = encode(BINARY, b"x" * 1024) + encode(TEXT, b"x" * 1025)
    messages, ended, _ = end_after(start_raw, sent, max_frame_bytes=1024)
    assert messages == [b"x" * 1024]
    assert (ended.reason, str(ended)) == ("protocol", "the server broke the protocol: a message is larger than 1024 bytes")


def test_only_the_last_of_several_pings_is_answered(start_raw: StartRaw) -> None:
    sent = b"".join(encode(PING, b"%d" % number) for number in range(50)) + encode(CLOSE, b"")
    _, _, heard = end_after(start_raw, sent)
    assert heard == [(PONG, b"49"), (CLOSE, struct.pack("!H", 1000))]


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
    _, ended, heard = end_after(start_raw, encode(TEXT, b"one"), ping_interval=0.05, ping_timeout=0.05)
    assert (ended.reason, str(ended)) == ("dead", "nothing was heard for 0.1 s, not even an answer to a ping")
    assert heard == [(PING, b"")]


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


def test_a_session_without_events_is_ended_as_idle_although_alive_and_says_goodbye(start_server: StartServer) -> None:
    codes: SimpleQueue[int | None] = SimpleQueue()

    def serve_one(connection: ServerConnection) -> None:
        stay(connection)
        codes.put(connection.close_code)

    with opened(start_server(serve_one), ping_interval=0.02, idle_timeout=0.2) as session:
        messages, ended = read_until_end(session)
    assert messages == []
    assert codes.get(timeout=DEADLINE) == 1001
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


def test_what_is_read_comes_with_the_credentials_that_no_log_may_show(start_raw: StartRaw) -> None:
    server = start_raw(lambda server, connection: server.upgrade(connection, after=encode(TEXT, b"x")))
    with opened(server.url) as session:
        assert SECRET in session.read().secrets
