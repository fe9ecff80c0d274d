"""The port over TLS: certificates of servers and clients, and renewed ones."""

import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from http import HTTPStatus
from pathlib import Path

import pytest

from bridge.admin.listener import CONNECTIONS, Listener
from bridge.admin.route import Request, Response, Route, text_response
from bridge.admin.routes import Access
from bridge.tls import ServerContext
from tests.support.servers.receiver import make_certificate
from tests.support.threads import serving

COMMAND = "secret of a command"


def respond(_: Request) -> Response:
    return text_response(HTTPStatus.OK, "ok")


def listener(tls: ServerContext) -> Listener:
    probe, other = Route("GET", respond, is_probe=True), Route("GET", respond)
    return Listener(("127.0.0.1", 0), {"/healthz": probe}, other, tls, Access(COMMAND, lambda: None, lambda _: None))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return make_certificate(tmp_path)


@pytest.fixture
def port(files: tuple[Path, Path]) -> Iterator[int]:
    with serving(listener(ServerContext(*files, None))) as port:
        yield port


def status(port: int, path: str, context: ssl.SSLContext, **headers: str) -> int:
    try:
        request = urllib.request.Request(f"https://localhost:{port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def subject(port: int) -> bytes | None:
    """The certificate that is served now."""
    context = ssl._create_unverified_context()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain, context.wrap_socket(plain) as secured:
        return secured.getpeercert(binary_form=True)


def test_the_port_is_served_over_tls(port: int, files: tuple[Path, Path]) -> None:
    assert status(port, "/metrics", ssl.create_default_context(cafile=files[0])) == 200
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        status(port, "/metrics", ssl.create_default_context())


def test_a_client_that_speaks_plain_http_is_cut_off(port: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        with suppress(ConnectionResetError):
            assert b"200" not in client.recv(100)


def test_probes_get_through_beside_clients_that_never_end_their_handshake(port: int, files: tuple[Path, Path]) -> None:
    with ExitStack() as stack:
        for _ in range(2 * CONNECTIONS):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", port), timeout=10)))
        assert status(port, "/healthz", ssl.create_default_context(cafile=files[0])) == 200


def test_a_client_without_a_certificate_gets_the_probes_only(tmp_path: Path, files: tuple[Path, Path]) -> None:
    (tmp_path / "client").mkdir()
    client, key = make_certificate(tmp_path / "client")
    anonymous = ssl.create_default_context(cafile=files[0])
    certified = ssl.create_default_context(cafile=files[0])
    certified.load_cert_chain(client, key)
    with serving(listener(ServerContext(*files, client))) as port:
        assert [status(port, path, anonymous) for path in ("/healthz", "/metrics", "/dead-letters")] == [200, 403, 403]
        assert [status(port, path, certified) for path in ("/healthz", "/metrics")] == [200, 200]
        assert status(port, "/metrics", anonymous, Authorization=f"Bearer {COMMAND}") == 200


def test_a_renewed_certificate_is_served_and_a_broken_one_is_not(tmp_path: Path, files: tuple[Path, Path], port: int) -> None:
    before = subject(port)
    (tmp_path / "new").mkdir()
    for old, new in zip(files, make_certificate(tmp_path / "new"), strict=True):
        new.replace(old)
    renewed = subject(port)
    files[0].write_text("half a file")

    assert subject(port) == renewed != before


def test_files_that_make_no_sense_are_an_error_at_the_start(tmp_path: Path, files: tuple[Path, Path]) -> None:
    with pytest.raises(FileNotFoundError):
        ServerContext(tmp_path / "nowhere", files[1], None)
    with pytest.raises(OSError, match=r"the key without a password$"):
        ServerContext(files[1], files[0], None)
