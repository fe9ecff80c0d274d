"""The Docker Cloud Stream API as a source: a websocket without replay. docs/events.md describes service and clients.

websocket-client does handshake, TLS, proxies, masking and sending. Reading is ours: one read takes whatever the socket holds,
and `bridge.frames` cuts it into messages. Three habits of websocket-client are wrong for a daemon and are avoided here: it
follows redirects with the credentials, keeps cookies for the whole process, and has no time limit for connecting.
"""

import math
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from email.message import Message
from http.cookiejar import CookieJar
from http.cookies import CookieError, SimpleCookie
from threading import Lock
from types import SimpleNamespace
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit
from urllib.request import Request

import websocket
from pydantic import SecretStr
from websocket import _handshake
from websocket._cookiejar import SimpleCookieJar

from bridge import frames
from bridge.deadline import call_within
from bridge.policy import Keepalive
from bridge.source import Ended, Read
from bridge.sources.dockercloud.errors import close_text, failure, redirection, refusal
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.url import stream_url
from bridge.tls import shared_context

_MAX_READ_BYTES: Final = 1024 * 1024
_MIN_READ_BYTES: Final = 4 * 1024
_LIFE_BYTES: Final = 1024
"""So much of an unfinished message counts as life. With less, a server that sends a byte a second would live for ever."""

_TLS_RECORD_BYTES: Final = 16 * 1024
# A small send buffer shows soon that the peer has stopped reading; Linux would let it grow to megabytes.
_SEND_BUFFER: Final = (socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)


class _NoCookies(SimpleCookieJar):
    """Keeps nothing. The library's own jar is one for the whole process, so that accounts would share their cookies."""

    def add(self, set_cookie: str | None) -> None:
        pass


_handshake.CookieJar = _NoCookies()


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
        self._url = stream_url(settings)
        self._cookies = CookieJar()

    def open(self, position: str | None) -> "DockerCloudSession":  # noqa: ARG002 - this kind of stream has no replay
        """Open a session within `connect_timeout`; `position` is ignored, since the service can't resume.

        Raises:
            Ended: It could not be opened.
        """
        authorization = self._current().authorization()
        if authorization is not None and not authorization.isprintable():
            raise Ended("the credentials contain a line break or another control character", "unauthorized")
        web = self._websocket()
        try:
            self._connect(web, self._request(authorization))
        except websocket.WebSocketBadStatusException as error:
            self._keep_cookies(error.resp_headers or {})
            raise refusal(error, authorization or "") from None
        except (websocket.WebSocketException, OSError, ValueError) as error:
            raise redirection(web) or failure(error) from None
        self._keep_cookies(web.getheaders() or {})
        return DockerCloudSession(web, self._settings, self._clock)

    def _connect(self, web: websocket.WebSocket, request: dict[str, Any]) -> None:
        """Connect within `connect_timeout`; the library's timeout is one per system call.

        A call that is given up ends by that timeout, or because its socket was cut. Only a proxy that drips could keep it,
        since the library shows the socket after the tunnel has been made.
        """
        call_within(
            self._settings.connect_timeout,
            lambda: web.connect(self._url, **request),  # type: ignore[no-untyped-call]  # It has no annotations.
            cut=lambda: _cut(web),
            discard=lambda _: web.shutdown(),  # type: ignore[no-untyped-call]
        )

    def _websocket(self) -> websocket.WebSocket:
        tls: dict[str, Any] = {}
        if self._url.startswith("wss:"):
            try:
                tls["context"] = shared_context(self._settings.ca_file)
            except OSError as error:
                why = error.strerror or "it holds no certificate"
                raise Ended(f"ca_file {self._settings.ca_file} can't be used: {why}", "tls") from None
        return websocket.WebSocket(sockopt=[_SEND_BUFFER], sslopt=tls, skip_utf8_validation=True)

    def _request(self, authorization: str | None) -> dict[str, Any]:
        request = Request(self._http_url())
        self._cookies.add_cookie_header(request)
        headers = {"User-Agent": self._user_agent, "Authorization": authorization}
        return {
            "header": headers,
            "cookie": request.get_header("Cookie"),
            # The library would send the credentials to wherever a redirect points.
            "redirect_limit": 0,
            "timeout": self._settings.connect_timeout,
            **_proxy(self._settings.proxy),
        }

    def _keep_cookies(self, headers: dict[str, str]) -> None:
        answer = Message()
        with suppress(CookieError):
            # The library has joined several Set-Cookie lines into one.
            for cookie in SimpleCookie(headers.get("set-cookie", "")).values():
                answer["Set-Cookie"] = cookie.OutputString()
        response: Any = SimpleNamespace(info=lambda: answer)  # All that the jar looks at.
        self._cookies.extract_cookies(response, Request(self._http_url()))

    def _http_url(self) -> str:
        return "http" + self._url.removeprefix("ws")


class DockerCloudSession:
    """One open websocket; made by `DockerCloudSource.open`."""

    def __init__(self, web: websocket.WebSocket, settings: DockerCloudSettings, clock: Callable[[], float]) -> None:
        self._web = web
        self._socket = cast("socket.socket", web.sock)
        self._tls = self._socket if isinstance(self._socket, ssl.SSLSocket) else None
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._settings = settings
        self._clock = clock
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
            _cut(self._web)

    def close(self) -> None:
        """Send a close frame if there is room for it, and release the socket. Never raises, may be called twice."""
        with self._lock:
            if self._ending is None:
                with suppress(websocket.WebSocketException, OSError, ValueError):
                    self._web.send_close(1001)
            # Not the library's close: it waits for an answer, and does nothing after a close of the peer's.
            self._web.shutdown()  # type: ignore[no-untyped-call]  # It has no annotations.

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
            self._ending = Ended(f"closed by the server: {close_text(controls[-1].payload)}", "closed")
        if error is not None:
            self._send(frames.CLOSE, struct.pack("!H", error.code))
            self._ending = Ended(f"the server broke the protocol: {error}", "protocol")
        return Read(messages, heard=True)

    def _answer(self, controls: Sequence[frames.Control]) -> None:
        pings = [control.payload for control in controls if control.opcode == frames.PING]
        if pings:
            # RFC 6455, section 5.5.3: of several pings only the last needs an answer.
            self._send(frames.PONG, pings[-1])

    def _send(self, opcode: int, payload: bytes) -> None:
        """Send a control frame. A closed connection is left for `read` to find: earlier data is still there."""
        self._socket.settimeout(self._settings.ping_timeout)
        try:
            self._web.send(payload, opcode)
        except (websocket.WebSocketTimeoutException, TimeoutError):
            self._ending = Ended(f"the server took nothing for {self._settings.ping_timeout:g} s", "dead")
        except (websocket.WebSocketException, OSError):
            pass
        finally:
            self._socket.setblocking(False)


def _cut(web: websocket.WebSocket) -> None:
    """End both directions at once; a thread that is blocked on the socket wakes.

    Not the library's abort, which does nothing during the handshake. Not `SSLSocket.shutdown`, which would take the TLS
    state from under the reading thread.
    """
    if web.sock is not None:
        with suppress(OSError):
            socket.socket.shutdown(web.sock, socket.SHUT_RDWR)


def _proxy(url: SecretStr | None) -> dict[str, Any]:
    if url is None:
        return {}  # The library reads the environment.
    proxy = urlsplit(url.get_secret_value())
    login = (unquote(proxy.username), unquote(proxy.password or "")) if proxy.username else None
    return {"http_proxy_host": proxy.hostname, "http_proxy_port": proxy.port or 80, "http_proxy_auth": login}
