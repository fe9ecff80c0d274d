import errno
import socket
import ssl

import pytest

from bridge.sink import Failure
from sinks.classification import Classification, connection_error
from tests.contract.harness import make_entry


@pytest.mark.parametrize(
    ("error", "reason", "message"),
    [
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), "timeout", "Connection timed out"),
        (TimeoutError(), "timeout", "timed out"),
        (socket.gaierror(-2, "Name or service not known"), "unreachable", "no address for the name: Name or service not known"),
        (ssl.SSLEOFError(8, "EOF occurred"), "unreachable", "the connection was closed"),
        (ssl.SSLError(1, "handshake failure"), "tls", "TLS failed: handshake failure"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "unreachable", "Connection refused"),
        (OSError("closed"), "unreachable", "closed"),
        (ValueError("no websocket"), "server_error", "no websocket"),
    ],
)
def test_the_exception_of_a_connection_has_a_reason_and_a_message(error: Exception, reason: str, message: str) -> None:
    assert connection_error(error) == (reason, message)


def test_a_classification_makes_the_failure_of_an_event() -> None:
    entry = make_entry(7)

    assert Classification("event", "retry", "server_error", "500", 9).failure(entry) == Failure.retry(
        entry, "server_error", "500", 9
    )
    assert Classification("event", "rejected", "rejected", "422").failure(entry) == Failure.rejected(entry, "rejected", "422")
