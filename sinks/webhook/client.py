"""HTTP requests side by side by libcurl, each with a deadline for all of it.

libcurl connects, reuses connections, speaks TLS and reads `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`. Its sockets are watched
with `poll`: `CurlMulti.select` does not see descriptors above 1023.
"""

import errno
import os
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any, Final, NamedTuple, TypeVar
from urllib.request import proxy_bypass

import pycurl

from bridge.sink import Unavailable
from bridge.tls import tls_context
from sinks.webhook.settings import USER_AGENT, WebhookSettings, read_url, request_headers

T = TypeVar("T")

_MAX_BYTES: Final = 64 * 1024
_POLL_MASKS: Final = (0, select.POLLIN, select.POLLOUT, select.POLLIN | select.POLLOUT)
# Of curl.h, without a name in pycurl.
_SUPPRESS_CONNECT_HEADERS: Final = 265
_QUICK_EXIT: Final = 322
_TOO_LARGE: Final = 100


class Response(NamedTuple):
    """A final response: its head as far as it was read, and up to 64 KiB of its body."""

    status: int
    head: bytes = b""
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """Return a header's value."""
        found = re.search(rf"(?im)^{name}:(.*)$", self.head.decode("latin-1"))
        return found and found[1].strip()


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


class _Exchange(NamedTuple):
    """A request under way: its tag, id and body, what has come of the response, and whether it is sent for the second time."""

    request: tuple[Any, str, bytes]
    head: BytesIO
    body: BytesIO
    repeated: bool


def _result(curl: pycurl.Curl, head: bytes, body: bytes, error: int, message: str) -> Response | NoResponse:
    status = curl.getinfo(pycurl.RESPONSE_CODE)
    while head[9:10] == b"1":  # Interim (RFC 9110, 15.2).
        head = head.partition(b"\r\n\r\n")[2]
    # The status counts if the head is whole or malformed after its first line, but not if it was cut off.
    whole = b"\r\n\r\n" in head or b"\n\n" in head or len(head) > _MAX_BYTES
    if status >= 200 and (whole or error in {pycurl.E_FTP_WEIRD_SERVER_REPLY, _TOO_LARGE}):
        return Response(status, head, body)
    sent = curl.getinfo(pycurl.SIZE_UPLOAD_T) > 0
    return NoResponse(error or pycurl.E_GOT_NOTHING, message, _os_error(curl), sent)


def _os_error(curl: pycurl.Curl) -> int:
    """Return the `errno` of a failed connection, also if this process has no descriptors, which libcurl does not tell."""
    try:
        with socket.socket(), socket.socket(), socket.socket():
            return int(curl.getinfo(pycurl.OS_ERRNO))
    except OSError as error:
        return error.errno or 0


def _handle(options: dict[int, Any]) -> pycurl.Curl:
    curl = pycurl.Curl()
    for option, value in options.items():
        curl.setopt(option, value)
    return curl


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
        pycurl.USERAGENT: USER_AGENT,
        pycurl.TIMEOUT_MS: milliseconds,
        pycurl.CONNECTTIMEOUT_MS: milliseconds,
        pycurl.MAXFILESIZE: _MAX_BYTES,
        pycurl.NOSIGNAL: 1,
        pycurl.TCP_KEEPALIVE: 1,
        _SUPPRESS_CONNECT_HEADERS: 1,
        _QUICK_EXIT: 1,
    }
    if url.scheme == "http" or proxy_bypass(url.netloc or ""):  # libcurl does not know ports in NO_PROXY.
        options[pycurl.PROXY] = ""
    if url.scheme == "http":
        return options
    tls_context(settings)  # Its errors name the setting and the file.
    paths = ssl.get_default_verify_paths()
    ca_file, ca_path = (str(settings.ca_file), None) if settings.ca_file else (paths.cafile, paths.capath)
    # None is none: libcurl would take the paths that it was built with.
    options |= {pycurl.CAINFO: ca_file, pycurl.CAPATH: ca_path, pycurl.PROXY_CAINFO: ca_file, pycurl.PROXY_CAPATH: ca_path}
    options |= {pycurl.SSLVERSION: pycurl.SSLVERSION_TLSv1_2}
    if settings.cert_file:
        options |= {pycurl.SSLCERT: str(settings.cert_file), pycurl.SSLKEY: str(settings.key_file or settings.cert_file)}
        options |= {pycurl.KEYPASSWD: settings.key_password.get_secret_value() if settings.key_password else ""}
    return options


class Client:
    """Up to `connections` requests under way at the same time, over connections that are kept alive.

    One thread uses it at a time; only `close` may come from another.

    Args:
        settings: The sink's settings.

    Raises:
        Unavailable: A certificate can't be read, or there are no descriptors.
    """

    def __init__(self, settings: WebhookSettings) -> None:
        self._options = _options(settings)
        headers = request_headers(settings)
        self._headers = ["expect:", *(f"{name}: {value}" if value else f"{name};" for name, value in headers.items())]
        self._poll = poll = select.poll()
        try:
            self._multi = pycurl.CurlMulti()
        except pycurl.error as error:
            raise Unavailable(os.strerror(errno.EMFILE)) from error
        self._multi.setopt(
            pycurl.M_SOCKETFUNCTION,
            lambda what, fd, *_: poll.unregister(fd) if what == pycurl.POLL_REMOVE else poll.register(fd, _POLL_MASKS[what]),
        )
        self._free = [_handle(self._options) for _ in range(settings.connections)]
        self._busy: dict[pycurl.Curl, _Exchange] = {}
        self._used = threading.Lock()
        self._closed = self._released = False

    def close(self) -> None:
        """Close all connections. Requests in another thread end within a quarter of a second."""
        self._closed = True
        if self._used.acquire(blocking=False):
            self._release()
            self._used.release()

    def _release(self) -> None:
        if not self._released:
            self._released = True
            # In a thread, since it waits for the look-up of a name that is under way.
            with suppress(RuntimeError):  # No thread is left: it is closed with the last reference to it.
                threading.Thread(target=self._multi.close, daemon=True).start()

    def connect(self) -> NoResponse | None:
        """Connect and disconnect, without a request; return the error if that fails."""
        curl = _handle(self._options | {pycurl.CONNECT_ONLY: 1})
        try:
            curl.perform()
        except pycurl.error as error:
            return NoResponse(int(error.args[0]), curl.errstr(), _os_error(curl))
        finally:
            curl.close()
        return None

    def send(self, next_request: Callable[[], tuple[T, str, bytes] | None]) -> Generator[tuple[T, Response | NoResponse]]:
        """Send requests until there is none left, and yield how each of them ended. To close the generator cancels the others.

        Args:
            next_request: Returns a tag that is yielded with the end of the request, its `webhook-id` and its body; None if
                there is no request as long as no other has ended.

        Raises:
            Unavailable: The client is closed.
        """
        with self._used:
            if self._closed:
                raise Unavailable("closed")
            try:
                while True:
                    while self._free and (request := next_request()) is not None:
                        self._start(request)
                    if not self._busy:
                        return
                    yield from self._wait()
            finally:
                for curl in list(self._busy):
                    self._end(curl)
                if self._closed:
                    self._release()

    def _start(self, request: tuple[Any, str, bytes], *, repeated: bool = False) -> None:
        _, webhook_id, content = request
        curl, head, body = self._free.pop(), BytesIO(), BytesIO()
        curl.setopt(pycurl.HTTPHEADER, [*self._headers, f"webhook-id: {webhook_id}"])
        curl.setopt(pycurl.POSTFIELDS, content)
        curl.setopt(pycurl.HEADERFUNCTION, head.write)
        curl.setopt(pycurl.WRITEFUNCTION, body.write)
        self._busy[curl] = _Exchange(request, head, body, repeated)
        self._multi.add_handle(curl)

    def _wait(self) -> Iterator[tuple[Any, Response | NoResponse]]:
        """Wait until a request has ended, for a quarter of a second at most; yield those that have."""
        wait_ms = self._multi.timeout()
        events = self._poll.poll(min(wait_ms, 250) if wait_ms >= 0 else 250) if wait_ms else []
        for fd, _ in events or [(pycurl.SOCKET_TIMEOUT, 0)]:
            self._multi.socket_action(fd, 0)
        _, succeeded, failed = self._multi.info_read()
        for curl, error, message in [*((curl, 0, "") for curl in succeeded), *failed]:
            exchange = self._end(curl)
            if error == pycurl.E_SEND_ERROR and not exchange.repeated:
                # The receiver closed before it had everything, so it accepted nothing. Its answer may be lost (413 perhaps).
                self._start(exchange.request, repeated=True)
            else:
                result = _result(curl, exchange.head.getvalue(), exchange.body.getvalue(), error, message)
                yield exchange.request[0], result
        for curl in list(self._busy) if self._closed else ():
            yield self._end(curl).request[0], NoResponse(pycurl.E_ABORTED_BY_CALLBACK)

    def _end(self, curl: pycurl.Curl) -> _Exchange:
        self._multi.remove_handle(curl)
        self._free.append(curl)
        return self._busy.pop(curl)
