"""The probes of a bridge that can't start yet: it is alive, and not ready."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from bridge.admin.listener import Listener
from bridge.admin.route import Route, text_response
from bridge.tls import ServerContext


@contextmanager
def answering_probes(address: tuple[str, int], tls: ServerContext | None) -> Iterator[None]:
    """Answer `/healthz` with 200, and everything else with 503; nothing if the address can't be listened on."""
    alive = Route("GET", lambda _: text_response(HTTPStatus.OK, "ok"), is_probe=True)
    words = "the bridge can't start yet, since there is no space for its journal; see the log"
    not_ready = Route("GET", lambda _: text_response(HTTPStatus.SERVICE_UNAVAILABLE, words), is_probe=True)
    try:
        listener = Listener(address, {"/healthz": alive, "/readyz": not_ready}, not_ready, tls)
    except OSError:
        yield
        return
    threading.Thread(target=listener.serve_forever, args=(0.1,), name="http", daemon=True).start()
    try:
        yield
    finally:
        listener.shutdown()
        listener.server_close()
