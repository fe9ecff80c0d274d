"""HTTP requests side by side by libcurl, each with a deadline for all of it.

libcurl connects, reuses connections, speaks TLS and reads `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. Its sockets are watched
with `poll`: `CurlMulti.select` does not see descriptors above 1023.
"""

import re
import select
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from typing import Any, Final, NamedTuple, TypeVar

import pycurl

from bridge.tls import tls_context
from sinks.webhook.settings import WebhookSettings, read_url, request_headers

T = TypeVar("T")

_MAX_BYTES: Final = 64 * 1024
_POLL_MASKS: Final = (0, select.POLLIN, select.POLLOUT, select.POLLIN | select.POLLOUT)
# Of curl.h, without a name in pycurl.
_SUPPRESS_CONNECT_HEADERS: Final = 265
_QUICK_EXIT: Final = 322
_TOO_LARGE: Final = 100


class Response(NamedTuple):
    """A response that is not interim, or the beginning of one: all of its head that was read, and up to 64 KiB of its body."""

    status: int
    head: str = ""
    body: str = ""

    def header(self, name: str) -> str | None:
        """Return a header's value."""
        found = re.search(rf"(?im)^{name}:[ \t]*(.*?)\s*$", self.head)
        return found and found[1]


class NoResponse(NamedTuple):
    """The end of a request without a response.

    Attributes:
        number: libcurl's error number.
        message: libcurl's words for it. May hold the URL of a proxy with its password.
        os_error: The `errno` of a connection that could not be opened.
        sent: True if some of the request was sent.
    """

    number: int
    message: str = ""
    os_error: int = 0
    sent: bool = False


class _Handle:
    """A handle of libcurl, for one request at a time."""

    request: tuple[Any, str, bytes]
    repeated: bool

    def __init__(self, options: dict[int, Any]) -> None:
        self.curl = pycurl.Curl()
        self.head, self.body = BytesIO(), BytesIO()
        for option, value in options.items():
            self.curl.setopt(option, value)
        self.curl.setopt(pycurl.HEADERFUNCTION, self.head.write)
        self.curl.setopt(pycurl.WRITEFUNCTION, self.body.write)

    def take(self, error: int, message: str) -> Response | NoResponse:
        """Return how the request ended, and forget it."""
        status, head, body = self.curl.getinfo(pycurl.RESPONSE_CODE), self.head.getvalue(), self.body.getvalue()
        for buffer in (self.head, self.body):
            buffer.seek(0)
            buffer.truncate()
        while head[9:10] == b"1":  # Interim (RFC 9110, 15.2).
            head = head.partition(b"\r\n\r\n")[2]
        # The status counts if the head is whole or malformed after its first line, but not if it was cut off.
        whole = b"\r\n\r\n" in head or b"\n\n" in head or len(head) > _MAX_BYTES
        if status >= 200 and (whole or error in {pycurl.E_FTP_WEIRD_SERVER_REPLY, _TOO_LARGE}):
            return Response(status, head.decode("latin-1"), body.decode("utf-8", "replace"))
        sent = self.curl.getinfo(pycurl.SIZE_UPLOAD_T) > 0
        return NoResponse(error or pycurl.E_GOT_NOTHING, message, self.curl.getinfo(pycurl.OS_ERRNO), sent)


def _options(settings: WebhookSettings) -> dict[int, Any]:
    """Return the options of every request.

    Raises:
        Unavailable: A certificate can't be read.
    """
    url = read_url(settings.url)
    milliseconds = max(1, round(settings.timeout * 1000))
    options: dict[int, Any] = {
        pycurl.URL: url.url,
        pycurl.CUSTOMREQUEST: settings.method,
        pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
        pycurl.USERAGENT: request_headers(settings)["user-agent"],
        pycurl.TIMEOUT_MS: milliseconds,
        pycurl.CONNECTTIMEOUT_MS: milliseconds,
        pycurl.MAXFILESIZE: _MAX_BYTES,
        pycurl.NOSIGNAL: 1,
        pycurl.TCP_KEEPALIVE: 1,
        _SUPPRESS_CONNECT_HEADERS: 1,
        _QUICK_EXIT: 1,
    }
    if url.scheme == "http":
        return options | {pycurl.PROXY: ""}
    tls_context(settings)  # Its errors name the setting and the file.
    paths = ssl.get_default_verify_paths()
    password = settings.key_password.get_secret_value() if settings.key_password else ""
    ca_file, ca_path = (settings.ca_file, None) if settings.ca_file else (paths.cafile, paths.capath)
    files = {
        pycurl.CAINFO: ca_file,
        pycurl.CAPATH: ca_path,
        pycurl.PROXY_CAINFO: ca_file,
        pycurl.PROXY_CAPATH: ca_path,
        pycurl.SSLCERT: settings.cert_file,
        pycurl.SSLKEY: settings.key_file or settings.cert_file,
    }
    options |= {pycurl.SSLVERSION: pycurl.SSLVERSION_TLSv1_2, pycurl.KEYPASSWD: password}
    return options | {option: str(path) for option, path in files.items() if path}


def _watch(poll: select.poll, what: int, fd: int, *_: object) -> None:
    """Watch a socket as libcurl asks for."""
    if what == pycurl.POLL_REMOVE:
        poll.unregister(fd)
    else:
        poll.register(fd, _POLL_MASKS[what])


class Client:
    """Up to `connections` requests under way at the same time, over connections that are kept alive.

    One thread uses it at a time; only `close` may come from another.

    Args:
        settings: The sink's settings.

    Raises:
        Unavailable: A certificate can't be read.
    """

    def __init__(self, settings: WebhookSettings) -> None:
        self._options = _options(settings)
        headers = request_headers(settings)
        self._headers = ["expect:", *(f"{name}: {value}" if value else f"{name};" for name, value in headers.items())]
        self._poll = select.poll()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, partial(_watch, self._poll))
        self._free = [_Handle(self._options) for _ in range(settings.connections)]
        self._busy: dict[pycurl.Curl, _Handle] = {}
        self._used = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Close all connections. Requests in another thread end within a quarter of a second."""
        self._closed = True
        if self._used.acquire(blocking=False):
            # It waits for the look-up of a name that is under way.
            threading.Thread(target=self._multi.close, daemon=True).start()
            self._used.release()

    def connect(self) -> NoResponse | None:
        """Connect and disconnect, without a request; return the error if that fails."""
        curl = _Handle(self._options | {pycurl.CONNECT_ONLY: 1}).curl
        try:
            curl.perform()
        except pycurl.error as error:
            return NoResponse(int(error.args[0]), curl.errstr(), curl.getinfo(pycurl.OS_ERRNO))
        finally:
            curl.close()
        return None

    def send(self, next_request: Callable[[], tuple[T, str, bytes] | None]) -> Iterator[tuple[T, Response | NoResponse]]:
        """Send requests until there is none left, and yield how each of them ended.

        Args:
            next_request: Returns a tag that is yielded with the end of the request, its `webhook-id` and its body; None if
                there is no request as long as no other has ended.
        """
        with self._used:
            try:
                while True:
                    while self._free and (request := next_request()) is not None:
                        self._start(*request)
                    if not self._busy:
                        return
                    yield from self._wait()
            finally:
                for curl in list(self._busy):
                    self._end(curl, 0, "")
        if self._closed:
            self.close()

    def _start(self, tag: Any, webhook_id: str, body: bytes, *, repeated: bool = False) -> None:
        handle = self._free.pop()
        handle.request, handle.repeated = (tag, webhook_id, body), repeated
        handle.curl.setopt(pycurl.HTTPHEADER, [*self._headers, f"webhook-id: {webhook_id}"])
        handle.curl.setopt(pycurl.POSTFIELDS, body)
        self._busy[handle.curl] = handle
        self._multi.add_handle(handle.curl)

    def _wait(self) -> list[tuple[Any, Response | NoResponse]]:
        """Wait until a request has ended, for a quarter of a second at most; return those that have."""
        wait_ms = self._multi.timeout()
        events = self._poll.poll(min(wait_ms, 250) if wait_ms >= 0 else 250) if wait_ms else []
        for fd, _ in events or [(pycurl.SOCKET_TIMEOUT, 0)]:
            self._multi.socket_action(fd, 0)
        _, succeeded, failed = self._multi.info_read()
        ended = [self._end(curl, 0, "") for curl in succeeded]
        for curl, error, message in failed:
            handle = self._busy[curl]
            end = self._end(curl, error, message)
            # The receiver closed before it had everything, so it accepted nothing. What it answered may be lost (413 perhaps).
            if error == pycurl.E_SEND_ERROR and not handle.repeated:
                self._start(*handle.request, repeated=True)
            else:
                ended.append(end)
        if self._closed:
            ended += [self._end(curl, pycurl.E_ABORTED_BY_CALLBACK, "") for curl in list(self._busy)]
        return ended

    def _end(self, curl: pycurl.Curl, error: int, message: str) -> tuple[Any, Response | NoResponse]:
        self._multi.remove_handle(curl)
        handle = self._busy.pop(curl)
        self._free.append(handle)
        return handle.request[0], handle.take(error, message)
