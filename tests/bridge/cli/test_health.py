"""The probe: asked as a container asks it."""

from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from bridge.admin.listener import Listener
from bridge.admin.route import Request, Response, Route, text_response
from bridge.cli.main import main
from bridge.tls import ServerContext
from tests.support.ports import free_port
from tests.support.servers.receiver import make_certificate
from tests.support.threads import serving


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration but that of the test, and a proxy that must not be asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "")
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")


def alive(_: Request) -> Response:
    return text_response(HTTPStatus.OK, "ok")


def not_ready(_: Request) -> Response:
    return text_response(HTTPStatus.SERVICE_UNAVAILABLE, "sink alerts: unavailable")


def listener(tls: ServerContext | None = None) -> Listener:
    routes = {"/healthz": Route("GET", alive, is_probe=True), "/readyz": Route("GET", not_ready, is_probe=True)}
    return Listener(("127.0.0.1", 0), routes, routes["/readyz"], tls)


@pytest.fixture
def port() -> Iterator[int]:
    with serving(listener()) as port:
        yield port


def test_a_bridge_that_works_is_healthy(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bridge.yaml").write_text(f"http: {{listen: '0.0.0.0:{port}'}}\nsinks: {{broken: 7}}\n")

    assert main(["health"]) == 0
    assert capsys.readouterr() == ("ok\n", "")


def test_one_that_is_not_ready_says_why(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bridge.yaml").write_text(f"http: {{listen: '127.0.0.1:{port}'}}\n")

    assert main(["health", "--ready"]) == 1
    assert capsys.readouterr() == ("", "sink alerts: unavailable\n")


def test_where_nobody_answers_nothing_is_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bridge.yaml").write_text(f"http: {{listen: '127.0.0.1:{free_port()}'}}\n")

    assert main(["health"]) == 1
    assert "connection refused" in capsys.readouterr().err


def test_the_port_may_speak_tls_with_a_certificate_for_another_name(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path, "bridge.example")
    with serving(listener(ServerContext(certificate, key, None))) as port:
        tls = f"{{cert_file: {certificate}, key_file: {key}}}"
        Path("bridge.yaml").write_text(f"http: {{listen: '127.0.0.1:{port}', tls: {tls}}}\n")

        assert main(["health"]) == 0


@pytest.mark.parametrize("listen", ["off", "127.0.0.1:0"])
def test_without_an_address_there_is_nothing_to_ask(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bridge.yaml").write_text(f"http: {{listen: '{listen}'}}\n")

    assert main(["health"]) == 78
    assert "a probe needs an address with a port" in capsys.readouterr().err
