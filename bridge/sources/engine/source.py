"""A Docker Engine's `/events` as a source that can resume.

`events` decides what the Engine's events mean and from where to resume, `connection` speaks HTTP, and `wire` finds the events
in the bytes read. A session takes two connections: one for `/info`, which tells who the Engine is and what time its clock says,
then one for `/events`.

An idle Engine is silent. After `quiet` seconds, `/_ping` on another connection proves that the daemon lives. Only GET is sent:
the Engine's API is powerful, since creating containers means being root.
"""

import contextlib
import grp
import json
import ssl
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import h11
import msgspec
import structlog

from bridge.deadline import call_within
from bridge.source import Ended, EndReason, Read
from bridge.sources.engine.connection import Address, Connection
from bridge.sources.engine.events import UNREADABLE, Identity, Info, Position, Progress, decode_event, resume, to_event
from bridge.sources.engine.settings import EngineSettings
from bridge.sources.engine.wire import ObjectReader
from bridge.tls import CertificateError, client_context

log = structlog.get_logger(__name__)

T = TypeVar("T")

_FILTERS: Final = json.dumps({"type": ["container"]})


class EngineSource:
    """Opens sessions with one Docker Engine; implements `bridge.source.Source`.

    Args:
        settings: Address, certificates and timeouts.
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
        """Ask for the Engine's identity and time, then for its events; see `bridge.source.Source`."""
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

        def begin(connection: Connection) -> "EngineSession":
            if connection.length is not None:
                raise Ended(f"{self.address}: GET /events: {connection.length} bytes instead of a stream", "refused")
            return EngineSession(self, info.identity, start, connection)

        return self._get(f"/events?{query}", begin)

    def ping(self) -> None:
        """Ask the Engine for a sign of life on a connection of its own; a refusal is one, too.

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
        def read(connection: Connection) -> bytes:
            with contextlib.closing(connection):
                return connection.read_all()

        return self._get(path, read)

    def _get(self, path: str, use: Callable[[Connection], T]) -> T:
        """Ask for `path` and return the result of `use` on the answer, all within `connect_timeout`.

        Raises:
            Ended: It failed; the connection is closed.
        """
        connection = Connection(self.address, self.settings.connect_timeout, self._context())

        def exchange() -> T:
            try:
                connection.get(path)
                _require_ok(f"{self.address}: GET {path.partition('?')[0]}", connection)
                return use(connection)
            except BaseException:
                connection.close()
                raise

        try:
            timeout = self.settings.connect_timeout
            return call_within(timeout, exchange, cut=connection.cut, discard=lambda _: connection.close())
        except (OSError, h11.ProtocolError) as error:
            text, reason = self._explain(error)
            raise Ended(f"{self.address}: {text}", reason) from error

    def _explain(self, error: Exception) -> tuple[str, EndReason]:
        """Describe why the Engine can't be reached, with advice."""
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
        """Make a TLS context, each time anew so that renewed certificates are found."""
        if not self._secure:
            return None
        files = (self.settings.ca_file, self.settings.cert_file, self.settings.key_file)
        try:
            return client_context(*files)
        except (OSError, CertificateError) as error:
            names = ", ".join(str(file) for file in files if file)
            raise Ended(f"{self.address}: can't use the certificates ({names}): {error}", "tls") from error


def _remedy(path: str) -> str:
    """Name the group that may use a socket."""
    try:
        group = Path(path).stat().st_gid
        name = grp.getgrgid(group).gr_name
    except OSError:
        return "its directory can't be entered by the bridge's user"
    except KeyError:
        name = "without a name here"
    return f"add the bridge's user to the socket's group, {group} ({name})"


def _require_ok(request: str, connection: Connection) -> None:
    """Raise `Ended` for an answer other than 200, with the Engine's own words."""
    if connection.status == HTTPStatus.OK:
        return
    body = connection.read_all()
    try:
        text = str(msgspec.json.decode(body, type=dict[str, Any])["message"])
    except (*UNREADABLE, KeyError):
        text = body[:200].decode(errors="replace").strip() or connection.reason
    error = f"{request}: HTTP {connection.status}: {text}"
    if connection.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise Ended(f"{error} (a socket proxy must allow /info, /events and /_ping)", "unauthorized")
    raise Ended(error, "refused")


class EngineSession:
    """One open `/events`; implements `bridge.source.Session`. Made by `EngineSource.open`."""

    def __init__(self, source: EngineSource, identity: Identity, start: Position, connection: Connection) -> None:
        self._source = source
        self._identity = identity
        self._progress = Progress(start)
        self._connection = connection
        self._connection.wait_at_most(source.read_timeout)
        self._early = connection.buffered()
        self._objects = ObjectReader()
        self._begun = False
        self._heard_at = source.clock()

    def read(self) -> Read:
        """Wait up to `read_timeout` (and `connect_timeout` for a ping) for events.

        The first read does not wait: it returns the position from which to resume if no event ever comes.
        """
        if not self._begun:
            self._begun = True
            return Read(heard=True, position=str(self._progress.position))
        content, self._early = self._early or self._receive(), b""
        if content is None:
            return Read(heard=self._lives(), position=str(self._progress.position))
        self._heard_at = self._source.clock()
        return self._translate(self._objects.feed(content))

    def abort(self) -> None:
        """Wake a blocked `read`, which then raises `Ended`."""
        self._connection.cut()

    def close(self) -> None:
        """Release the connection."""
        self._connection.close()

    def _receive(self) -> bytes | None:
        """Read the socket once; None if nothing came in time."""
        if self._connection.over:
            raise Ended("the engine ended the stream", "closed")
        try:
            content = self._connection.read_more()
        except TimeoutError as error:
            if error.errno is None:
                return None
            raise Ended(f"the connection is dead: {error}", "dead") from error
        except OSError as error:
            raise Ended(f"the connection broke: {error}", "network") from error
        except h11.ProtocolError as error:
            raise Ended(f"the chunks of the stream are broken: {error}", "protocol") from error
        if content is None:
            raise Ended("the engine closed the connection", "closed")
        return content

    def _lives(self) -> bool:
        """Ping the Engine after a long silence; tell whether that was done."""
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
                address = str(self._source.address)
                log.warning("events may be missing: the engine no longer has the last one seen", engine=address)
            mapped = to_event(event, self._identity, self._source.settings.namespace)
            if mapped is None:
                ignored += 1
            else:
                events.append(mapped)
        return Read(events, heard=True, ignored=ignored, position=str(self._progress.position))
