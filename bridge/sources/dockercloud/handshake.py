"""The way to an open websocket: proxy, connecting, TLS, and the upgrade.

Answers of strangers are read leniently: the status counts when the head is there, whatever its other lines hold and whatever
becomes of the body. websocket-client refuses bytes that are not UTF-8, and loses the status with a body that is cut off.
"""

import ipaddress
import re
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from email.message import Message
from hashlib import sha1
from http.client import responses
from secrets import token_bytes
from typing import Final, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]  # typeshed does not have it.

from bridge.deadline import connect
from bridge.source import Ended
from bridge.sources.dockercloud.errors import BadAnswerError, failure

_OPTIONS: Final = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    # A small send buffer shows soon that the peer has stopped reading; Linux would let it grow to megabytes.
    (socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024),
]
_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_BYTES: Final = 64 * 1024
"""Limit of a head, and of a body that explains a refusal."""
_BODY_SECONDS: Final = 1.0
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE: Final = re.compile(r"HTTP/1\.\d +(\d{3})(?: .*)?\r?")


class Answer(NamedTuple):
    """The answer to a request: status, fields, and the bytes that came after its head."""

    status: int
    fields: Message
    rest: bytes


class Proxy(NamedTuple):
    """An HTTP proxy, with its credentials as `user:password`."""

    host: str
    port: int
    login: str | None


def proxy_for(target: SplitResult, setting: str | None, environment: Mapping[str, str]) -> Proxy | None:
    """Return the proxy on the way to an address; None if there is none.

    Args:
        target: The stream's address.
        setting: The proxy of the settings; goes before `https_proxy` and `http_proxy`, but not before `no_proxy`.
        environment: Environment variables; lower case goes before upper case.

    Raises:
        ValueError: The proxy can't be used. The error does not repeat it, since it may hold a password.
    """
    variables = {name.lower(): value.strip() for name, value in sorted(environment.items())}
    name = "proxy" if setting else "https_proxy" if target.scheme == "wss" else "http_proxy"
    text = setting or variables.get(name)
    if not text or _is_excepted(target, variables.get("no_proxy", "")):
        return None
    scheme, separator, _ = text.partition("://")
    if separator and scheme.lower() in {"https", "socks", "socks4", "socks4a", "socks5", "socks5h"}:
        raise ValueError(f"{name} names a proxy with {scheme.lower()}://, only http:// is supported")
    with suppress(ValueError):
        parts = urlsplit(text if separator else f"http://{text}")
        usual = parts.scheme == "http" and parts.path in {"", "/"} and not parts.query and not parts.fragment
        if usual and parts.hostname and parts.port != 0:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
            return Proxy(parts.hostname, parts.port or 80, login)
    raise ValueError(f"{name} must look like http://host:port or http://user:password@host:port, percent-encoded")


def dial(target: SplitResult, proxy: Proxy | None, context: ssl.SSLContext | None, until: float) -> socket.socket:
    """Connect to the host of an address, through a proxy if there is one, and with TLS if there is a context.

    Raises:
        Ended: The proxy can't be reached, or refuses.
        OSError: The host can't be reached, or TLS failed.
    """
    host, port = target.hostname or "", target.port or (443 if target.scheme == "wss" else 80)
    sock = _tunnel(_join(host, port), proxy, until) if proxy else connect(host, port, until, _OPTIONS)
    if context is None:
        return sock
    with sock:  # It is empty when TLS has taken over what is behind it.
        return context.wrap_socket(sock, server_hostname=host)


def upgrade(sock: socket.socket, target: SplitResult, fields: Sequence[str], until: float) -> Answer:
    """Ask for a websocket, with these fields beside the usual ones; return the answer, whatever its status.

    Raises:
        OSError: The connection broke or the time was up before the answer's head had come.
        BadAnswerError: The answer is not HTTP, or it is 101 and does not fit the question.
    """
    key = b64encode(token_bytes(16)).decode()
    usual = target.port in {None, 443 if target.scheme == "wss" else 80}
    host = _join(target.hostname or "", None if usual else target.port)
    answer = _ask(
        sock,
        [
            f"GET {target._replace(scheme='', netloc='').geturl() or '/'} HTTP/1.1",
            f"Host: {host}",
            f"Origin: {'https' if target.scheme == 'wss' else 'http'}://{host}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
            *fields,
        ],
        until,
    )
    accept = b64encode(sha1((key + _GUID).encode(), usedforsecurity=False).digest()).decode()
    protocol, connection = (" ".join(answer.fields.get_all(name, [])).lower() for name in ("Upgrade", "Connection"))
    accepted = answer.fields.get("Sec-WebSocket-Accept", "").strip() == accept
    if answer.status == 101 and not ("websocket" in protocol and "upgrade" in connection and accepted):
        raise BadAnswerError("the answer is not that of a websocket")
    return answer


def read_body(sock: socket.socket, answer: Answer, until: float) -> bytes:
    """Read what comes of an answer's body within a second."""
    body, length = answer.rest, answer.fields.get("Content-Length", "").strip()
    limit = min(int(length), _MAX_BYTES) if re.fullmatch("[0-9]{1,9}", length) else 0
    with suppress(OSError):
        until = min(until, time.monotonic() + _BODY_SECONDS)
        while len(body) < limit and (data := _receive(sock, until)):
            body += data
    return body[:limit]


def _tunnel(address: str, proxy: Proxy, until: float) -> socket.socket:
    where = f"the proxy {_join(proxy.host, proxy.port)}"
    lines = [f"CONNECT {address} HTTP/1.1", f"Host: {address}"]
    if proxy.login:
        lines.append(f"Proxy-Authorization: Basic {b64encode(proxy.login.encode()).decode()}")
    try:
        with ExitStack() as stack:
            sock = stack.enter_context(connect(proxy.host, proxy.port, until, _OPTIONS))
            status = _ask(sock, lines, until).status
            if status in {401, 407}:  # 401 is tinyproxy's.
                raise Ended(f"{where} refuses our credentials: {status}", "unauthorized")
            if not 200 <= status < 300:
                raise Ended(f"{where} answered {status} {responses.get(status, '')}".rstrip(), "network")
            stack.pop_all()
            return sock
    except (OSError, ValueError) as error:
        ended = failure(error)
        raise Ended(f"{where}: {ended}", ended.reason) from None


def _ask(sock: socket.socket, request: Sequence[str], until: float) -> Answer:
    """Send the lines of a request, and read the head of its final answer."""
    with suppress(ConnectionError):  # A peer may answer and close without reading; its answer counts.
        sock.sendall("\r\n".join([*request, "", ""]).encode())
    data, searched = b"", 0
    while True:
        while not (end := _HEAD_END.search(data, searched)):
            if data[:5] != b"HTTP/"[: len(data)] or len(data) > _MAX_BYTES:
                raise BadAnswerError("the answer is not HTTP")
            if not (received := _receive(sock, until)):
                raise ConnectionResetError("the connection was closed during the handshake")
            searched = max(0, len(data) - len("\r\n\r"))
            data += received
        line, *lines = data[: end.start()].decode("latin-1").split("\n")
        data, searched = data[end.end() :], 0
        match = _STATUS_LINE.fullmatch(line)
        if match is None:
            raise BadAnswerError("the answer is not HTTP")
        if (status := int(match[1])) == 101 or status >= 200:
            fields = Message()
            for name, _, value in (line.partition(":") for line in lines):
                fields[name.strip()] = value.strip()
            return Answer(status, fields, data)


def _receive(sock: socket.socket, until: float) -> bytes:
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError("timed out")
    sock.settimeout(left)
    return sock.recv(_MAX_BYTES)


def _join(host: str, port: int | None) -> str:
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"


def _is_excepted(target: SplitResult, no_proxy: str) -> bool:
    """Return True if `no_proxy` has the host, a domain above it, a network around it, or `*`."""
    entries = [entry.strip() for entry in no_proxy.split(",")]
    if "*" in entries or proxy_bypass_environment(target.netloc, {"no": no_proxy}):
        return True
    for entry in entries:
        with suppress(ValueError):
            if ipaddress.ip_address(target.hostname or "") in ipaddress.ip_network(entry, strict=False):
                return True
    return False
