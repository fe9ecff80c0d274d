import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from http.client import BadStatusLine, RemoteDisconnected

import pytest

from bridge.sink import REASONS
from sinks.classification import Classification
from sinks.webhook.client import Response
from sinks.webhook.errors import classify, classify_exception
from sinks.webhook.url import NoConnection

NOW = datetime(2026, 11, 23, 17, 0, 0, tzinfo=UTC)
HOST = "hooks.example.com"


def classification_of(status: int, headers: Mapping[str, str] | None = None) -> Classification:
    classified = classify(Response(status, headers or {}), HOST, NOW)
    assert classified is not None
    return classified


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert classify(Response(status, {}), HOST, NOW) is None


@pytest.mark.parametrize(
    ("scope", "outcome", "reason", "statuses"),
    [
        ("sink", "retry", "unauthorized", [401, 403, 407]),
        ("sink", "retry", "not_found", [404, 405, 410, 300, 301, 302, 303, 304, 307, 308]),
        ("sink", "retry", "throttled", [429]),
        ("sink", "retry", "server_error", [502, 503, 504, 101, 103, 600, 999]),
        ("event", "rejected", "rejected", [400, 402, 406, 411, 415, 417, 422, 451, 499]),
        ("event", "rejected", "too_large", [413]),
        ("event", "retry", "timeout", [408]),
        ("event", "retry", "server_error", [409, 425, 500, 501, 505, 507, 520, 599]),
    ],
)
def test_any_other_status_is_somebodys_fault(scope: str, outcome: str, reason: str, statuses: list[int]) -> None:
    found = [classification_of(status) for status in statuses]

    assert {(each.scope, each.outcome, each.reason) for each in found} == {(scope, outcome, reason)}


def test_every_status_there_is_has_a_classification_with_words() -> None:
    for status in (*range(100, 200), *range(300, 1000)):
        classified = classification_of(status)
        assert classified.reason in REASONS
        assert f"{HOST} answered {status}" in classified.error


def test_how_long_to_wait_is_read_in_both_forms() -> None:
    def wait(value: str) -> float | None:
        return classification_of(503, {"Retry-After": value}).retry_after

    assert wait("7") == 7
    assert wait("Mon, 23 Nov 2026 17:02:00 GMT") == 120
    assert wait("soon") is None
    assert classification_of(500, {"Retry-After": "3"}).retry_after == 3


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("https://other.example.com/hook?token=geheim", "points to other.example.com;"),
        ("https://user:geheim@other.example.com/", "points to other.example.com;"),
        ("/geheim", "points to another path;"),
        ("https://[geheim", "points to nowhere;"),
        ("", "points to another path;"),
    ],
)
def test_a_redirect_names_the_host_it_points_to_and_nothing_else(location: str, words: str) -> None:
    classified = classification_of(301, {"Location": location})

    assert words in classified.error
    assert "geheim" not in classified.error


def no_connection(cause: Exception) -> NoConnection:
    error = NoConnection()
    error.__cause__ = cause
    return error


def certificate_error() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "certificate has expired"
    return error


@pytest.mark.parametrize(
    ("error", "reason", "words"),
    [
        (no_connection(ConnectionRefusedError(111, "Connection refused")), "unreachable", "Connection refused"),
        (no_connection(TimeoutError("timed out")), "unreachable", "no connection within 2.5 s"),
        (no_connection(socket.gaierror(-2, "Name or service not known")), "unreachable", "no address for the name"),
        (no_connection(certificate_error()), "tls", "the certificate is not accepted: certificate has expired"),
        (no_connection(ssl.SSLError(1, "[SSL] tlsv1 alert")), "tls", "TLS failed: "),
        (no_connection(ssl.SSLEOFError(8, "EOF occurred")), "unreachable", "the connection was closed"),
        (no_connection(BadStatusLine("geheim")), "server_error", "what it answers is not HTTP"),
        (no_connection(OSError("Tunnel connection failed: 407")), "unreachable", "Tunnel connection failed: 407"),
        (no_connection(ConnectionResetError(104, "Connection reset by peer")), "unreachable", "Connection reset by peer"),
        (BadStatusLine("geheim"), "server_error", "what it answers is not HTTP"),
    ],
)
def test_a_broken_way_is_the_receivers_fault(error: Exception, reason: str, words: str) -> None:
    classified = classify_exception(error, HOST, 2.5)

    assert (classified.scope, classified.outcome, classified.reason) == ("sink", "retry", reason)
    assert classified.error.startswith(f"{HOST}: {words}")
    assert "geheim" not in classified.error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "Connection reset by peer"),
        RemoteDisconnected("Remote end closed connection"),
        BrokenPipeError(32, "Broken pipe"),
        ssl.SSLEOFError(8, "EOF occurred"),
    ],
)
def test_a_request_whose_connection_is_cut_may_be_tried_again(error: Exception) -> None:
    words = f"{HOST} closed the connection instead of an answer"
    assert classify_exception(error, HOST, 2.5) == Classification("event", "retry", "unreachable", words)


def test_a_request_without_an_answer_in_time_may_be_tried_again() -> None:
    classified = classify_exception(TimeoutError("timed out"), HOST, 2.5)

    assert classified == Classification("event", "retry", "timeout", f"{HOST} did not answer within 2.5 s")
