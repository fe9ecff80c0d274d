"""The port of a bridge that waits for its disk; tests/e2e/test_limits.py has the whole command."""

import urllib.error
import urllib.request

import pytest

from bridge.admin.starting import answering_probes
from tests.support.ports import free_port

WORDS = "the bridge can't start yet, since there is no space for its journal; see the log\n"


@pytest.mark.parametrize(
    ("path", "status", "text"), [("/healthz", 200, "ok\n"), ("/readyz", 503, WORDS), ("/status", 503, WORDS)]
)
def test_it_is_alive_and_not_ready(path: str, status: int, text: str) -> None:
    port = free_port()

    with answering_probes(("127.0.0.1", port), None):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                found = answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            found = error.code, error.read().decode()

    assert found == (status, text)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10)


def test_an_address_that_can_not_be_listened_on_delays_nothing() -> None:
    with answering_probes(("192.0.2.1", 9), None):
        pass
