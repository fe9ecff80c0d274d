"""Fixtures of the tests of the websocket source."""

import socket
import threading
from collections.abc import Callable, Iterator
from ssl import SSLContext

import pytest
from websockets.sync.server import Server, ServerConnection, serve

from tests.support.servers.websocket_server import RawServer, StartRaw, StartServer, Tls


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def start_raw() -> Iterator[StartRaw]:
    """Start a raw server whose script gets the server and the connection."""
    servers: list[RawServer] = []

    def start(script: Callable[[RawServer, socket.socket], None]) -> RawServer:
        server = RawServer(lambda connection: script(server, connection))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Start a server of the `websockets` library; returns its URL with the host as given."""
    servers: list[Server] = []

    def start(serve_one: Callable[[ServerConnection], None], *, tls: SSLContext | None = None, host: str = "127.0.0.1") -> str:
        server = serve(serve_one, "127.0.0.1", 0, ssl=tls, compression=None)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"{'wss' if tls else 'ws'}://{host}:{server.socket.getsockname()[1]}"

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    return Tls(tmp_path_factory.mktemp("tls"))
