"""A Docker Engine's `/events` as a stream: the other kind of source, one that can resume.

`events` decides what the Engine's events mean and from where to resume, `wire` finds them in the bytes read. Here are the
connections: one for `/info`, which tells who the Engine is and what time its clock says, then one for `/events`.

**Life.** An idle Engine is silent. After `quiet` seconds, `/_ping` on another connection proves that the daemon lives.

The Engine's API is powerful (who may create containers is root), so this module only ever sends GET.
"""

import contextlib
import grp
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec
import structlog

from bridge.source import Ended, EndReason, Read
from bridge.sources.engine.events import UNREADABLE, Identity, Info, Position, Progress, decode_event, resume, to_event
from bridge.sources.engine.settings import EngineSettings
from bridge.sources.engine.wire import ChunkReader, ObjectReader

log = structlog.get_logger(__name__)

_READ_SIZE: Final = 256 * 1024
_MAX_BODY: Final = 1024 * 1024
_FILTERS: Final = json.dumps({"type": ["container"]})


class Address(NamedTuple):
    """Where an Engine listens: a path, or a host and a port."""

    path: str
    host: str = "localhost"
    port: int = 0

    @classmethod
    def parse(cls, url: str, *, tls: bool = False) -> "Address":
        """Read `unix:///path` or `tcp://host[:port]`; other addresses are no `EngineUrl`."""
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return cls(parts.path)
        return cls("", parts.hostname or "localhost", parts.port or (2376 if tls else 2375))

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket or TCP, with TLS if there is a context for it."""

    def __init__(self, address: Address, timeout: float, tls: ssl.SSLContext | None) -> None:
        super().__init__(address.host, address.port or None, timeout)
        self._address = address
        self._tls = tls
        self.expired = False

    def connect(self) -> None:
        if self._address.path:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._address.path)
            return
        self.sock = socket.create_connection((self.host, self.port), self.timeout)
        # A dead peer is found in a minute instead of never: the stream itself has no heartbeat.
        for option, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                self.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._tls:
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock.do_handshake()

    def expire(self) -> None:
        """End whatever is going on; a socket's own timeout starts anew with every byte."""
        self.expired = True
        _shut(self.sock)


def _shut(sock: socket.socket | None) -> None:
    """Wake who reads from the socket, also in another thread; a TLS socket's own `shutdown` is not made for that."""
    with contextlib.suppress(OSError):
        if sock is not None:
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


class EngineSource:
    """Opens sessions with one Docker Engine; implements `bridge.source.Source`.

    Args:
        settings: How to reach it.
        clock: Monotonic clock.
        read_timeout: Seconds after which a read of a silent stream returns.
        quiet: Seconds of silence after which the Engine must prove that it lives.
    """

    def __init__(
        self,
        settings: EngineSettings,
        clock: Callable[[], float] = time.monotonic,
        *,
        read_timeout: float = 10.0,
        quiet: float = 30.0,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.read_timeout = read_timeout
        self.quiet = quiet
        self._secure = settings.ca_file is not None or settings.cert_file is not None
        self.address = Address.parse(settings.url, tls=self._secure)

    def open(self, position: str | None) -> "EngineSession":
        """Ask who the Engine is and what its clock says, then for its events; see `bridge.source.Source`."""
        info = self._info()
        known = Position.parse(position) if position else None
        since, start = resume(known, info.nanos)
        if position and not known:
            log.warning("position not understood, beginning now", engine=str(self.address), position=position)
        if known and start != known:
            log.warning("the engine's clock was set back, reading again all it still has", engine=str(self.address))
        # The Engine answers before it listens: without `since`, events between the two would be lost.
        seconds, nanos = divmod(since, 10**9)
        query = urlencode({"since": f"{seconds}.{nanos:09d}", "filters": _FILTERS})
        with self._get(f"/events?{query}") as (sock, response):
            if response.length is not None:
                raise Ended(f"{self.address}: GET /events: {response.length} bytes instead of a stream", "refused")
            return EngineSession(self, info.identity, start, sock, response)

    def ping(self) -> None:
        """Have the Engine prove that it lives, on a connection of its own; a refusal is a proof, too.

        Raises:
            Ended: It does not answer.
        """
        try:
            self._fetch("/_ping")
        except Ended as error:
            if error.reason not in {"refused", "unauthorized"}:
                raise Ended(f"silent for {self.quiet:g} s, and then: {error}", "dead") from error

    def _info(self) -> Info:
        try:
            return msgspec.json.decode(self._fetch("/info"), type=Info)
        except UNREADABLE as error:
            raise Ended(f"{self.address}: /info is not that of a Docker Engine: {error}", "protocol") from error

    def _fetch(self, path: str) -> bytes:
        with self._get(path) as (sock, response), sock, response:
            return response.read(_MAX_BODY)

    @contextlib.contextmanager
    def _get(self, path: str) -> Iterator[tuple[socket.socket, http.client.HTTPResponse]]:
        """Get an answer and let the caller have it, who closes both; every failure, the caller's too, becomes `Ended`."""
        connection = _Connection(self.address, self.settings.connect_timeout, self._context())
        deadline = threading.Timer(self.settings.connect_timeout, connection.expire)
        deadline.daemon = True
        deadline.start()
        try:
            connection.connect()
            sock: socket.socket = connection.sock
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status != HTTPStatus.OK:
                raise _refusal(f"{self.address}: GET {path.partition('?')[0]}", response)
            yield sock, response
        except Ended:
            connection.close()
            raise
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            words, reason = self._explain(TimeoutError() if connection.expired else error)
            raise Ended(f"{self.address}: {words}", reason) from error
        finally:
            deadline.cancel()

    def _explain(self, error: Exception) -> tuple[str, EndReason]:
        """Say why the Engine can't be reached, and what helps."""
        match error:
            case TimeoutError():
                return f"no answer within {self.settings.connect_timeout:g} s", "network"
            case FileNotFoundError():
                advice = "no such socket; is the Docker daemon running, and its socket mounted here?"
            case PermissionError():
                advice = f"permission denied; {_remedy(self.address.path)}"
            case ConnectionRefusedError():
                advice = "connection refused; is the Docker daemon running, and listening there?"
            case ssl.SSLCertVerificationError():
                return str(error), "tls"
            case ssl.SSLError():
                hint = "" if self.settings.cert_file else "; does the engine want a certificate of ours (cert_file, key_file)?"
                return f"{error}{hint}", "tls"
            case OSError():
                advice = str(error) or type(error).__name__
            case _:
                return f"not HTTP: {error!r}", "protocol"
        return advice, "network"

    def _context(self) -> ssl.SSLContext | None:
        """The TLS context, made anew each time so that renewed certificates are found."""
        if not self._secure:
            return None
        settings = self.settings
        try:
            context = ssl.create_default_context(cafile=settings.ca_file)
            if settings.cert_file:
                context.load_cert_chain(settings.cert_file, settings.key_file)
        except OSError as error:  # An SSLError is one.
            files = ", ".join(str(file) for file in (settings.ca_file, settings.cert_file, settings.key_file) if file)
            raise Ended(f"{self.address}: can't use the certificates ({files}): {error}", "tls") from error
        return context


def _remedy(path: str) -> str:
    """Say which group may use a socket."""
    try:
        group = Path(path).stat().st_gid
        name = grp.getgrgid(group).gr_name
    except OSError:
        return "its directory can't be entered by the bridge's user"
    except KeyError:
        name = "without a name here"
    return f"add the bridge's user to the socket's group, {group} ({name})"


def _refusal(what: str, response: http.client.HTTPResponse) -> Ended:
    """Say what an answer other than 200 means."""
    body = response.read(_MAX_BODY)
    try:
        text = str(msgspec.json.decode(body, type=dict[str, Any])["message"])
    except (*UNREADABLE, KeyError):
        text = body[:200].decode(errors="replace").strip() or response.reason
    error = f"{what}: HTTP {response.status}: {text}"
    if response.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return Ended(f"{error} (a socket proxy must allow /info, /events and /_ping)", "unauthorized")
    return Ended(error, "refused")


class EngineSession:
    """One open `/events`; implements `bridge.source.Session`. Made by `EngineSource.open`."""

    def __init__(
        self,
        source: EngineSource,
        identity: Identity,
        start: Position,
        sock: socket.socket,
        response: http.client.HTTPResponse,
    ) -> None:
        self._source = source
        self._identity = identity
        self._progress = Progress(start)
        self._sock = sock
        self._response = response
        self._chunks = ChunkReader() if response.chunked else None
        self._objects = ObjectReader()
        self._begun = False
        self._heard_at = source.clock()
        self._early = self._take_early()

    def read(self) -> Read:
        """Wait up to `read_timeout` (and `connect_timeout` for a ping) for what one read brings.

        The first read waits for nothing: it says from where to resume should nothing ever come.
        """
        if not self._begun:
            self._begun = True
            return Read(heard=True, position=str(self._progress.position))
        if self._chunks and self._chunks.over:
            raise Ended("the engine ended the stream", "closed")
        data = self._receive()
        if data is None:
            return Read(heard=self._lives(), position=str(self._progress.position))
        self._heard_at = self._source.clock()
        try:
            content = self._chunks.feed(data) if self._chunks else data
        except ValueError as error:
            raise Ended(f"the chunks of the stream are broken: {error}", "protocol") from error
        return self._translate(self._objects.feed(content))

    def abort(self) -> None:
        """Wake a blocked `read`, which then raises `Ended`."""
        _shut(self._sock)

    def close(self) -> None:
        """Release the connection."""
        with contextlib.suppress(OSError):
            self._response.close()
        self._sock.close()

    def _take_early(self) -> bytes:
        """Take what came together with the headers out of the response's buffer; from here on the socket is read."""
        self._sock.settimeout(0)
        try:
            return self._response.fp.peek()
        except (BlockingIOError, ssl.SSLWantReadError):
            return b""
        finally:
            self._sock.settimeout(self._source.read_timeout)

    def _receive(self) -> bytes | None:
        """What one read of the socket brings; None if that is nothing within the time."""
        if self._early:
            data, self._early = self._early, b""
            return data
        try:
            data = self._sock.recv(_READ_SIZE)
        except TimeoutError as error:
            if error.errno is None:
                return None
            raise Ended(f"the connection is dead: {error}", "dead") from error
        except OSError as error:
            raise Ended(f"the connection broke: {error}", "network") from error
        if not data:
            raise Ended("the engine closed the connection", "closed")
        return data

    def _lives(self) -> bool:
        """Ask for a proof of life after a long silence."""
        if self._source.clock() - self._heard_at < self._source.quiet:
            return False
        self._source.ping()
        self._heard_at = self._source.clock()
        return True

    def _translate(self, texts: list[bytes]) -> Read:
        events, ignored = [], 0
        for text in texts:
            try:
                event = decode_event(text)
            except UNREADABLE:
                events.append(text)  # It will be counted and kept as malformed.
                continue
            if not self._progress.advance(event.nanos):
                where = str(self._source.address)
                log.warning("events may be missing: the engine no longer has the last one seen", engine=where)
            mapped = to_event(event, self._identity, self._source.settings.namespace)
            if mapped is None:
                ignored += 1
            else:
                events.append(mapped)
        return Read(events, heard=True, ignored=ignored, position=str(self._progress.position))
