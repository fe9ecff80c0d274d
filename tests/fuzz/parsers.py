"""The parsers of bytes from outside, each with inputs to begin with and with inputs that were made to be slow."""

import json
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from email.message import Message
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple, cast
from unittest.mock import patch
from urllib.parse import urlsplit

import h11
import msgspec

from bridge.admin.listener import _Reader
from bridge.admin.route import Request
from bridge.admin.routes import Access, operation_routes
from bridge.event import Reception, normalize
from bridge.field_types import duration, parse_time
from bridge.frames import FrameReader, encode
from bridge.policy import Filter, parse_retry_after
from bridge.sink import Entry, Unavailable
from bridge.source import Ended
from bridge.sources.dockercloud.errors import BadAnswerError, close_text, refusal, secrets_in
from bridge.sources.dockercloud.handshake import _ask, proxy_for
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.source import DockerCloudSource
from bridge.sources.engine.connection import Address, Connection
from bridge.sources.engine.events import EngineEvent, Identity, Info, Position, to_event
from bridge.sources.engine.source import _require_ok
from bridge.sources.engine.wire import ObjectReader
from bridge.text import without
from config.yaml_file import ReadError, read_document
from sinks.kafka import errors as kafka_errors
from sinks.kafka.errors import Refusal, is_of_the_record, logged_reason
from sinks.kafka.records import RecordMaker
from sinks.mqtt import packets
from sinks.mqtt.connection import Connection as MqttConnection
from sinks.mqtt.packets import varint
from sinks.mqtt.publication import PublicationEncoder
from sinks.mqtt.settings import MqttSettings
from sinks.mqtt.transport import Profile as MqttProfile
from sinks.webhook.client import Response
from sinks.webhook.errors import classify

if TYPE_CHECKING:
    from bridge.journal import Journal

EVENT = (
    b'{"type":"container","action":"update","state":"Running","resource_uri":"/api/app/v1/acme/container/0b0e3538/","parents":[],'
    b'"uuid":"093ba3bb-08dd-48f0-8f12-4d3b85ef85b3","datetime":"2016-02-01T16:47:28Z","namespace":"acme"}'
)
ENGINE = (
    b'{"status":"die","id":"4ae0","from":"img","Type":"container","Action":"die","Actor":{"ID":"4ae0","Attributes":{"exitCode":"1",'
    b'"com.docker.compose.project":"p","com.docker.compose.service":"s"}},"time":1,"timeNano":1000000001}'
)


class Parser(NamedTuple):
    """A parser.

    Attributes:
        run: Parses bytes as the product does; raises only what the product expects of it.
        seeds: Inputs to begin with.
        hostile: Inputs of about so many bytes that take long if the parser does anything again and again.
    """

    run: Callable[[bytes], object]
    seeds: Sequence[bytes]
    hostile: Callable[[int], Sequence[bytes]]


def frames(data: bytes) -> None:
    reader = FrameReader(1 << 24)
    for begin in range(0, len(data), 1 << 14):
        if reader.feed(data[begin : begin + (1 << 14)]).error:
            return


def event(data: bytes) -> None:
    normalize(data, Reception.at("acme", datetime.now(UTC)), 1 << 24)


def engine(data: bytes) -> None:
    for text in ObjectReader().feed(data):
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            to_event(msgspec.json.decode(text, type=EngineEvent), Identity("daemon", "", ""), "acme")


def engine_info(data: bytes) -> None:
    with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        repr(msgspec.json.decode(data, type=Info).identity)


class EngineConnection(Connection):
    """A connection to an Engine that answers with these bytes."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(Address("/x"), 10, None)
        self._ours = sock

    def _connect(self) -> socket.socket:
        self._socket = self._ours
        return self._ours


def engine_answer(data: bytes) -> None:
    """What an Engine answers: its head, its body as chunks, the words of a refusal."""
    with answering(data) as ours, suppress(OSError, h11.ProtocolError, Ended):
        connection = EngineConnection(ours)
        connection.get("/info")
        _require_ok("GET /info", connection)
        connection.read_all()


def engine_pieces(data: bytes) -> None:
    """A stream that arrives in small pieces."""
    reader = ObjectReader()
    for begin in range(0, len(data), 64):
        reader.feed(data[begin : begin + 64])


SECRETS = secrets_in("Basic Ym9iOnNlY3JldA==")


def cloud_answer(data: bytes) -> None:
    """What a Docker Cloud server says when it refuses, sets cookies or closes."""
    fields = Message()
    for line in data.decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    for status in (101, 302, 401, 429, 500):
        repr(refusal(status, fields, data, SECRETS))
    close_text(data, SECRETS)
    settings = DockerCloudSettings.model_validate({"url": "ws://stream.example"})
    source = DockerCloudSource(settings, lambda: settings, user_agent="x")
    source._keep_cookies(fields)
    source._fields(None)


def mqtt_session(data: bytes) -> None:
    """What a broker sends from its CONNACK on."""
    for protocol in ("5", "3.1.1"):
        with answering(data) as ours, patch("sinks.mqtt.connection.Transport", lambda _, sock=ours: BrokerTransport(sock)):
            profile = MqttProfile(MqttSettings(url="mqtt://x", topic="a"), protocol, "x", None)
            with suppress(Unavailable), closing(MqttConnection(profile)) as connection, connection.in_use():
                while True:
                    connection.receive(time.monotonic() + 10)


class BrokerTransport:
    """A connection to a broker that sends these bytes."""

    pending = 0

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.stream = sock

    def quickack(self) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None:
        self.stream.close()


def mqtt(data: bytes) -> None:
    with suppress(packets.Malformed):
        for kind, body in packets.take_packets(bytearray(data), 1 << 24):
            if packets.is_whole(kind, body) and kind in packets.ACKNOWLEDGEMENTS:
                packets.read_acknowledgement(body)


def text(parse: Callable[[str], object]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        with suppress(ValueError):
            parse(data.decode("latin-1"))

    return run


def http_head(data: bytes) -> None:
    reader = _Reader(BytesIO(data))
    with suppress(HTTPException):
        while reader.readline(1 << 16):
            pass


def operations(data: bytes) -> None:
    routes = operation_routes(cast("Journal", None))
    for path in ("/dead-letters", "/journal/events"):
        with suppress(AttributeError):  # There is no journal.
            routes[path].respond(Request("GET", path, data.decode("latin-1")))
    with suppress(AttributeError):
        routes["/dead-letters/drop"].respond(Request("POST", "/dead-letters/drop", body=data))


def access(data: bytes) -> None:
    headers = Message()
    with suppress(ValueError):
        headers["Authorization"] = data.decode("latin-1")
        Access("secret", lambda: "token", lambda _: None).refusal(headers, needed=True)


def yaml(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with suppress(ReadError):
            read_document(Path(file.name), {"X": "y"})


ALL_FIELDS = "{namespace}.{type}.{action}.{state}.{resource_uuid}"
RECORDS = RecordMaker("events-{namespace}-{type}", "{resource_uuid}-{state}")
PUBLICATIONS = PublicationEncoder(MqttSettings(url="mqtt://x", topic="a/{namespace}/{type}/{resource_uuid}"), "5", 0)
FILTER = Filter([{"state": ["*a*a*a*b", "[a-z]*c"], "resource_uri": ["*/x/*/y/*"]}], [{"parents": ["*q*q*"]}])


def webhook(data: bytes) -> None:
    """What a receiver answers."""
    for status in (200, 302, 400, 401, 429, 500):
        classify(Response(status, data, data), "http://x", ["secret"], datetime.now(UTC))


def kafka(data: bytes) -> None:
    """What a broker says of a record, and what the client logs of a broker."""
    said = data.decode("latin-1")
    for code in (None, 32, 87, 44, 4711):
        refusal = Refusal(code, without(["secret"], said))
        is_of_the_record(refusal)
        kafka_errors.classify(refusal)
    logged_reason([said] * 100)
    logged_reason(said.split("\n"))


def handshake(data: bytes) -> None:
    """What a Docker Cloud server answers."""
    with answering(data) as ours, suppress(OSError, BadAnswerError):
        _ask(ours, ["GET / HTTP/1.1"], time.monotonic() + 60)


class Dripping:
    """A socket that gives a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = BytesIO(data)

    def sendall(self, data: bytes) -> None: ...

    def settimeout(self, seconds: float) -> None: ...

    def recv(self, size: int) -> bytes:
        return self._data.read(min(size, 4))


def handshake_pieces(data: bytes) -> None:
    with suppress(OSError, BadAnswerError):
        _ask(cast("socket.socket", Dripping(data)), ["GET / HTTP/1.1"], time.monotonic() + 60)


def frame_pieces(data: bytes) -> None:
    reader = FrameReader(1 << 24)
    for begin in range(0, len(data), 16):
        if reader.feed(data[begin : begin + 16]).error:
            return


@contextmanager
def answering(data: bytes) -> Iterator[socket.socket]:
    """A socket whose peer sends these bytes and no more."""
    ours, theirs = socket.socketpair()
    sender = Thread(target=_send, args=(theirs, data), daemon=True)
    with ours:
        sender.start()
        yield ours
    sender.join()


def _send(peer: socket.socket, data: bytes) -> None:
    with peer, suppress(OSError):
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(1 << 16):  # Who closed at once would break a request that is sent later.
            pass


def proxy(data: bytes) -> None:
    text = data.decode("latin-1")
    for environment in ({"http_proxy": text}, {"http_proxy": "x:1", "no_proxy": text}):
        with suppress(ValueError):
            proxy_for(urlsplit("ws://stream.example/x"), None, environment)


def sinks(data: bytes) -> None:
    """What sinks make of the fields of an event."""
    found = normalize(data, Reception.at("acme", datetime.now(UTC)), 1 << 24)
    body = getattr(found, "json", None)
    if isinstance(body, bytes):
        entry = Entry(1, 0.0, body)
        FILTER.accepts(entry.fields)
        RECORDS.make([entry])
        PUBLICATIONS(entry)


def with_field(name: str, value: str) -> bytes:
    return json.dumps(json.loads(EVENT) | {name: value}).encode()


def _json_like(size: int) -> Sequence[bytes]:
    return [
        b'{"uuid":"' + b"x" * size,
        b'{"uuid":"' + b'\\"' * (size // 2),
        b'"' * size,
        b"[" * size,
        b"{" * size,
        b'{"a":' * (size // 5),
        b'["' * (size // 2),
        b"\\" * size,
        b" " * size,
        b"9" * size,
        b"-" * size,
        EVENT[:-1] + b',"x":"' + b"[" * size,
    ]


def _fields(size: int) -> Sequence[bytes]:
    texts = (
        "/" * size,
        "a" * size,
        "/a" * (size // 2),
        " " * size,
        "::" * (size // 2),
        "é" * (size // 2),
        "a/" * (size // 2) + "x",
    )
    names = ("resource_uri", "state", "type", "action", "datetime", "uuid")
    return [with_field(name, value) for name in names for value in texts]


def _text(size: int) -> Sequence[bytes]:
    return [
        char * (size // len(char))
        for char in (b" ", b"1", b"a", b"1 ", b"-", b":", b"T", b"=", b"&a=", b"%41", b"\t", b"Bearer ")
    ]


def _answers(size: int) -> Sequence[bytes]:
    head = b"HTTP/1.1 429 x\r\n"
    return [
        head + b"Retry-After: a" + b" " * size + b"b\r\n\r\n",
        head + b"Retry-After:" + b" " * size + b"\r\n\r\n",
        head + b"Retry-After: 1\r\n" * (size // 16) + b"\r\n",
        head + b"Location: /" + b"?" * size + b"\r\n\r\n",
        head + b"Location: http://" + b"[" * size + b"\r\n\r\n",
        head + b"a: b\r\n" * (size // 6) + b"\r\n",
        head + b"\r" * size,
        head + b"\n" * size,
        b"HTTP/1.1 " * (size // 9),
        b"x" * size,
        b"secret" * (size // 6),
        b"\xff" * size,
        b"<script " * (size // 8),
        b"<script>" + b"</scrip" * (size // 7),
        b"<!--" * (size // 4),
        b"secre<b>t" * (size // 9),
        b"secre%74" * (size // 8),
        b"\xe2\x80\x8b" * (size // 3),
        b"<" * size,
        b"&" * size,
    ]


def _engine_answers(size: int) -> Sequence[bytes]:
    head = b"HTTP/1.1 500 x\r\n"
    chunked = b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [
        b"HTTP/1.1 100 x\r\n\r\n" * (size // 18),
        b"HTTP/1.1 200 x\r\nContent-Length: " + b"9" * size + b"\r\n\r\n",
        head + b"a: b\r\n" * (size // 6),
        head + b"\r\n" * size,
        chunked + b"1\r\nx\r\n" * (size // 6),
        chunked + b"0" * size,
        chunked + b"1;" + b"x" * size,
        *[head + b"\r\n" + body for body in _json_like(size)],
        *[head + b'\r\n{"message":' + body for body in _json_like(size)],
    ]


def _frames(size: int) -> Sequence[bytes]:
    return [
        encode(1, b"x" * size),
        encode(1, b"") * (size // 2),
        encode(1, b"a", fin=False) + encode(0, b"b", fin=False) * (size // 3),
    ]


def _cookies(size: int) -> Sequence[bytes]:
    values = (b"a=", b"a=b;", b" ", b";", b"=", b'a="', b"\\", b'\\"', b"1 ", b"a=b; expires=", b",")
    starts = (b"", b"a=b; expires=", b"a=b; max-age=", b'a="', b"a=b; port=", b"a=b; expires=1 Jan ")
    return [b"Set-Cookie: " + start + value * (size // len(value)) for start in starts for value in (*values, b"9")] + [
        b"Set-Cookie: a=b\r\n" * (size // 17)
    ]


def _sessions(size: int) -> Sequence[bytes]:
    def accepted(properties: bytes) -> bytes:
        length = len(properties)
        properties = varint(length) + properties
        return b"\x20" + varint(2 + len(properties)) + b"\x00\x00" + properties

    return [
        accepted(b"\x26\x00\x00\x00\x00" * (min(size, 60_000) // 5)),
        accepted(b"\x1f" + struct.pack(">H", min(size, 60_000)) + b"x" * min(size, 60_000)),
        accepted(b"\xff" * min(size, 60_000)),
        CONNACK + b"\xd0\x00" * (size // 2),
        CONNACK + b"\x40\x02\x00\x01" * (size // 4),
        CONNACK + b"\xe0\x01\x8e" * (size // 3),
        b"\x20" * size,
    ]


CONNACK = b"\x20\x06\x00\x00\x03\x21\x00\x14"
LOGGED = (
    b"Handshake failed: ",
    b"alert ",
    b"alert a ",
    b"retrying : ",
    b"retrying (",
    b"Topic x",
    b"CERTIFICATE_VERIFY_FAILED",
    b"[SSL: A",
    b"Timestamp 1 of message ",
    b"Timestamp 1 of message x within [1",
    b"secre",
    b"<!--",
    b"%73",
)


def _logged(size: int) -> Sequence[bytes]:
    repeated = [text * (size // len(text)) for text in LOGGED]
    return [*repeated, b"Timestamp " + b"9" * size + b" of message x within [1, ", b"Topic " + b"x" * size]


ANSWER = b"HTTP/1.1 429 Slow Down\r\nRetry-After: 7\r\nLocation: https://x/y?z\r\nContent-Length: 2\r\n\r\nno"

PARSERS = {
    "webhook": Parser(webhook, [ANSWER, b"HTTP/1.1 302 Found\r\nLocation: //x\r\n\r\n"], _answers),
    "kafka": Parser(
        kafka,
        [b"Timestamp 1 of message x within [3, 5]", b"Handshake failed: [SSL: X] EOF", b"retrying (1): NotEnoughReplicasError"],
        _logged,
    ),
    "handshake": Parser(handshake, [ANSWER, b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nSet-Cookie: a=b\r\n\r\n"], _answers),
    "handshake pieces": Parser(handshake_pieces, [ANSWER], _answers),
    "proxy": Parser(proxy, [b"http://u:p@proxy:3128", b"10.0.0.0/8,.example,*"], _text),
    "frames": Parser(
        frames,
        [encode(1, EVENT), encode(9, b"x") + encode(1, b"a", fin=False) + encode(0, b"b"), encode(8, b"\x03\xe8bye")],
        _frames,
    ),
    "frame pieces": Parser(frame_pieces, [encode(1, EVENT) * 2], _frames),
    "event": Parser(
        event,
        [EVENT, b'{"type":"auth"}', b'{"type":"error","data":{"errorMessage":"UNAUTHORIZED"}}'],
        lambda n: [*_json_like(n), *_fields(n)],
    ),
    "engine": Parser(
        engine,
        [ENGINE + b"\n", b"\x1e" + ENGINE, ENGINE * 2],
        lambda n: [*_json_like(n), b"{}" * (n // 2), b"} {" * (n // 3), b"\n" * n],
    ),
    "engine info": Parser(
        engine_info, [b'{"ID":"x","SystemTime":"2026-01-01T00:00:00.5Z","Swarm":{"NodeID":"n"}}'], _json_like
    ),
    "engine answer": Parser(
        engine_answer,
        [
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            b'HTTP/1.1 403 No\r\n\r\n{"message":"forbidden"}',
        ],
        _engine_answers,
    ),
    "engine pieces": Parser(
        engine_pieces,
        [ENGINE * 2, b"\x1e" + ENGINE],
        lambda n: [
            *_json_like(n),
            b"{}" * (n // 2),
            b"[" + b"{},".ljust(63) * (n // 64),
            b"[{},".ljust(63) + b"{}," * (n // 3),
        ],
    ),
    "cloud answer": Parser(
        cloud_answer,
        [ANSWER, b"Set-Cookie: a=b; Path=/; Max-Age=9; Expires=Fri, 31 Dec 1999 23:59:59 GMT\r\nx: y", b'{"error":"secret"}'],
        lambda n: [*_answers(n), *_cookies(n), *_json_like(n)],
    ),
    "mqtt session": Parser(
        mqtt_session,
        [CONNACK, b"\x20\x02\x00\x05", CONNACK + b"\xe0\x06\x8e\x04\x1f\x00\x01x", CONNACK + b"\xd0\x00\x40\x03\x00\x01\x87"],
        _sessions,
    ),
    "mqtt": Parser(
        mqtt,
        [b"\x40\x02\x00\x01", b"\x40\x03\x00\x01\x87\xd0\x00"],
        lambda n: [b"\xd0\x00" * (n // 2), b"\x40\x02\x00\x01" * (n // 4), b"\x40\xff\xff\x7f" + b"x" * n],
    ),
    "retry-after": Parser(
        text(lambda it: parse_retry_after(it, datetime.now(UTC))), [b"120", b"Fri, 31 Dec 1999 23:59:59 GMT"], _text
    ),
    "position": Parser(text(Position.parse), [b"1000000001:3"], _text),
    "duration": Parser(text(duration), [b"2.5h", b"500ms"], _text),
    "time": Parser(text(lambda it: parse_time(it, datetime.now(UTC))), [b"2026-11-23T10:00:00Z", b"2h"], _text),
    "http head": Parser(
        http_head, [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], lambda n: [b"x" * n, b"\n" * n, b"a: b\r\n" * (n // 6)]
    ),
    "operations": Parser(operations, [b"sink=a&limit=3&since=2h", b'{"ids":[1,2]}'], lambda n: [*_text(n), *_json_like(n)]),
    "token": Parser(access, [b"Bearer token", b"Basic eA=="], _text),
    "yaml": Parser(
        yaml,
        [b"sinks: {a: {type: stdout}}\n", b"a: &x [1]\nb: *x\n", b"a: ${X:-y} $${z}\n"],
        lambda n: [
            b"a" * n,
            b"- a\n" * (n // 4),
            b"[" * min(n, 400),
            b"# " * (n // 2),
            b"a: '" + b"${" * (n // 2) + b"'",
            b"a: '" + b"${a:-" * (n // 5) + b"'",
        ],
    ),
    "sinks": Parser(sinks, [EVENT], _fields),
}
