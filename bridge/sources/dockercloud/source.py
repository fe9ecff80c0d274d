"""The Docker Cloud Stream API as a source: a websocket without replay. docs/events.md describes service and clients.

websocket-client makes the frames that are sent. Reading is ours: one read takes whatever the socket holds, and `bridge.frames`
cuts it into messages. So is the handshake: the library's follows redirects with the credentials, keeps cookies for the whole
process, and has no time limit.
"""

import math
import os
import select
import socket
import ssl
import struct
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from email.message import Message
from http.cookiejar import CookieJar
from http.cookies import CookieError, SimpleCookie
from threading import Lock
from types import SimpleNamespace
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import Request
from warnings import filterwarnings

from websocket import ABNF

from bridge import frames
from bridge.policy import Keepalive
from bridge.source import Ended, Read
from bridge.sources.dockercloud.errors import close_text, failure, refusal, secrets_in
from bridge.sources.dockercloud.handshake import dial, proxy_for, read_body, upgrade
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.url import stream_url
from bridge.tls import shared_context

_MAX_READ_BYTES: Final = 1024 * 1024
_MIN_READ_BYTES: Final = 4 * 1024
_LIFE_BYTES: Final = 1024
"""So much of an unfinished message counts as life. With less, a server that sends a byte a second would live for ever."""

_MAX_COOKIES: Final = 50
_MAX_COOKIE_CHARS: Final = 4096
# At an age that it can't read, `CookieJar` prints a traceback, with the text of the server in it.
filterwarnings("ignore", "http.cookiejar bug", UserWarning)

_TLS_RECORD_BYTES: Final = 16 * 1024


class DockerCloudSource:
    """Opens sessions of one stream; cookies outlive them, since the original service balanced its load by one (`liveid`).

    Args:
        settings: Where and how to connect.
        current: Gives the settings with their present secrets; asked at every opening.
        user_agent: Value of the User-Agent header.
        clock: Monotonic clock.
    """

    def __init__(
        self,
        settings: DockerCloudSettings,
        current: Callable[[], DockerCloudSettings],
        *,
        user_agent: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._user_agent = user_agent
        self._current = current
        self._clock = clock
        self._url = urlsplit(stream_url(settings))
        self._http_url = "http" + self._url.geturl().removeprefix("ws")
        self._cookies = CookieJar()

    def open(self, position: str | None) -> "DockerCloudSession":  # noqa: ARG002 - this kind of stream has no replay
        """Open a session within `connect_timeout`; `position` is ignored, since the service can't resume.

        Raises:
            Ended: It could not be opened.
        """
        settings = self._current()
        authorization = authorization_of(settings)
        if authorization is not None and not authorization.isprintable():
            raise Ended("the credentials contain a line break or another control character", "unauthorized")
        until = time.monotonic() + settings.connect_timeout
        proxy = None if settings.proxy is None else settings.proxy.get_secret_value()
        context, fields, secrets = self._tls_context(), self._fields(authorization), secrets_in(authorization or "")
        try:
            with ExitStack() as stack:
                way = proxy_for(self._url, proxy, os.environ)
                sock = stack.enter_context(dial(self._url, way, context, until))
                answer = upgrade(sock, self._url, fields, until)
                self._keep_cookies(answer.fields)
                if answer.status != 101:
                    body = read_body(sock, answer, until)
                    raise refusal(answer.status, answer.fields, body, secrets)
                stack.pop_all()
        except (OSError, ValueError) as error:
            raise failure(error) from None
        return DockerCloudSession(sock, answer.rest, self._settings, self._clock, secrets)

    def _tls_context(self) -> ssl.SSLContext | None:
        try:
            return shared_context(self._settings.ca_file) if self._url.scheme == "wss" else None
        except OSError as error:
            why = error.strerror or "it holds no certificate"
            raise Ended(f"ca_file {self._settings.ca_file} can't be used: {why}", "tls") from None

    def _fields(self, authorization: str | None) -> list[str]:
        """Return our fields of the request."""
        request = Request(self._http_url)
        self._cookies.add_cookie_header(request)
        fields = {"User-Agent": self._user_agent, "Authorization": authorization, "Cookie": request.get_header("Cookie")}
        return [f"{name}: {value}" for name, value in fields.items() if value is not None]

    def _keep_cookies(self, fields: Message) -> None:
        if len(self._cookies) > _MAX_COOKIES:
            self._cookies.clear()
        # One by one: `CookieJar` loses all of a response with one that it can't read.
        for line in fields.get_all("Set-Cookie", [])[:_MAX_COOKIES]:
            with suppress(CookieError):
                if len(line) <= _MAX_COOKIE_CHARS:
                    SimpleCookie(line)
                    kept = Message()
                    kept["Set-Cookie"] = line
                    response: Any = SimpleNamespace(info=lambda kept=kept: kept)  # All that the jar looks at.
                    self._cookies.extract_cookies(response, Request(self._http_url))


class DockerCloudSession:
    """One open websocket; made by `DockerCloudSource.open`."""

    def __init__(
        self,
        sock: socket.socket,
        early: bytes,
        settings: DockerCloudSettings,
        clock: Callable[[], float],
        secrets: Sequence[str],
    ) -> None:
        self._socket = sock
        self._early = early  # Came with the handshake.
        self._tls = self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._settings = settings
        self._clock = clock
        self._secrets = secrets
        self._keepalive = Keepalive(settings.ping_interval, settings.ping_timeout, settings.idle_timeout, clock())
        self._frames = frames.FrameReader(settings.max_frame_bytes)
        self._room = _MIN_READ_BYTES
        self._unfinished = 0
        self._ending: Ended | None = None
        self._lock = Lock()  # Held by abort and close, so that abort can't meet a file descriptor that was closed and reused.
        self._aborted = False

    def read(self) -> Read:
        """Wait until something arrives or a ping is due, at most a minute, and take all that has arrived.

        Raises:
            Ended: The session is over. What came before was returned by earlier calls.
        """
        if self._early:
            early, self._early = self._early, b""
            return self._take(early)
        # Arrived data comes before the clock: after a pause of this process an answer may be waiting.
        if self._ending is None and not self._readable(self._keepalive.wait(self._clock())):
            self._keep_alive()
            return Read()
        data = self._receive() if self._ending is None else b""
        if data:
            return self._take(data)
        if self._ending is not None:
            raise self._ending
        return Read()

    def abort(self) -> None:
        """Wake a blocked `read`, which then raises `Ended`. Never raises, may be called twice."""
        with self._lock:
            self._aborted = True
            # Not `SSLSocket.shutdown`, which would take the TLS state from under the reading thread.
            with suppress(OSError):
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Send a close frame if there is room for it, and release the socket. Never raises, may be called twice."""
        with self._lock:
            if self._ending is None or self._ending.reason == "idle":
                with suppress(OSError):
                    self._socket.send(_frame(frames.CLOSE, struct.pack("!H", 1001)))
            self._socket.close()

    def _readable(self, seconds: float) -> bool:
        if self._tls is not None and self._tls.pending():
            return True
        return bool(self._poll.poll(math.ceil(min(seconds, 60.0) * 1000)))

    def _keep_alive(self) -> None:
        match self._keepalive.due(self._clock()):
            case "ping":
                self._send(frames.PING, b"")
            case "dead":
                silence = self._settings.ping_interval + self._settings.ping_timeout
                self._ending = Ended(f"nothing was heard for {silence:g} s, not even an answer to a ping", "dead")
            case "idle":
                self._ending = Ended(f"alive, but without an event for {self._settings.idle_timeout:g} s", "idle")

    def _receive(self) -> bytes:
        """Take what has arrived; if nothing can follow, set `_ending`.

        The room grows with the traffic, so that a thousand silent streams don't hold a large buffer each. TLS gives at most one
        record at a time, of any size, and so is asked again.
        """
        chunks: list[bytes] = []
        room = _MAX_READ_BYTES if self._tls is not None else self._room
        try:
            while room > 0:
                chunk = self._socket.recv(min(room, _TLS_RECORD_BYTES) if self._tls is not None else room)
                if not chunk:
                    self._ending = Ended("the connection was closed without a close frame", "network")
                    break
                chunks.append(chunk)
                room -= len(chunk) if self._tls is not None else room
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            self._ending = failure(error)
        if self._ending is not None and self._aborted:
            self._ending = Ended("closed by us", "closed")
        data = b"".join(chunks)
        self._room = max(_MIN_READ_BYTES, min(_MAX_READ_BYTES, 2 * len(data)))
        return data

    def _take(self, data: bytes) -> Read:
        messages, controls, error = self._frames.feed(data)
        self._unfinished += len(data)
        if messages or controls or self._unfinished >= _LIFE_BYTES:
            self._keepalive.heard(self._clock(), event=bool(messages))
            self._unfinished = 0
        if controls:
            self._answer(controls)
        if controls and controls[-1].opcode == frames.CLOSE:
            self._send(frames.CLOSE, struct.pack("!H", 1000))
            text = close_text(controls[-1].payload, self._secrets)
            self._ending = Ended(f"closed by the server: {text}", "closed")
        if error is not None:
            self._send(frames.CLOSE, struct.pack("!H", error.code))
            self._ending = Ended(f"the server broke the protocol: {error}", "protocol")
        return Read(messages, heard=True, secrets=self._secrets)

    def _answer(self, controls: Sequence[frames.Control]) -> None:
        pings = [control.payload for control in controls if control.opcode == frames.PING]
        if pings:
            # RFC 6455, section 5.5.3: of several pings only the last needs an answer.
            self._send(frames.PONG, pings[-1])

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send a control frame. A closed connection is left for `read` to find: earlier data is still there."""
        self._socket.settimeout(self._settings.ping_timeout)
        try:
            self._socket.sendall(_frame(opcode, payload))
        except TimeoutError:
            self._ending = Ended(f"the server took nothing for {self._settings.ping_timeout:g} s", "dead")
        except OSError:
            pass
        finally:
            self._socket.setblocking(False)


def _frame(opcode: int, payload: bytes) -> bytes:
    """Make a frame as a client sends it, masked."""
    return bytes(ABNF.create_frame(payload, opcode).format())


def authorization_of(settings: DockerCloudSettings) -> str | None:
    """Return the value of the Authorization header, in the original clients' order; None without credentials.

    The order is that of python-dockercloud 1.0.12, `dockercloud/api/auth.py`: the whole value as given, else the user
    with the API key, else the user with the password. The result is a secret.
    """
    if settings.auth is not None:
        return settings.auth.get_secret_value()
    secret = settings.api_key or settings.password
    if settings.username is None or secret is None:
        return None
    return "Basic " + b64encode(f"{settings.username}:{secret.get_secret_value()}".encode()).decode()
