import re
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import pycurl
import pytest

from bridge.sink import REASONS
from sinks.classification import Classification
from sinks.webhook.client import NoResponse, Response
from sinks.webhook.errors import classify, classify_error

NOW = datetime(2026, 11, 23, 17, 0, 0, tzinfo=UTC)
HOST = "hooks.example.com"


def classification_of(status: int, head: str = "", body: str = "", secrets: Collection[str] = ()) -> Classification:
    classified = classify(
        Response(status, f"HTTP/1.1 {status} x\r\n{head}\r\n\r\n".encode(), body.encode()), HOST, secrets, NOW
    )
    assert classified is not None
    return classified


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert classify(Response(status), HOST, (), NOW) is None


@pytest.mark.parametrize(
    ("scope", "outcome", "reason", "statuses"),
    [
        ("sink", "retry", "unauthorized", [401, 402, 407, 511]),
        ("sink", "retry", "not_found", [404, 405, 410, 421, 300, 301, 302, 303, 304, 307, 308]),
        ("sink", "retry", "rejected", [406, 411, 412, 415, 417, 426, 428, 431, 451]),
        ("sink", "retry", "throttled", [429]),
        ("sink", "retry", "server_error", [502, 503, 504, 101, 103, 600, 999]),
        ("event", "rejected", "rejected", [400, 414, 416, 418, 422, 499]),
        ("event", "rejected", "too_large", [413]),
        ("event", "retry", "unauthorized", [403]),
        ("event", "retry", "timeout", [408]),
        ("event", "retry", "server_error", [409, 423, 424, 425, 500, 501, 505, 507, 520, 599]),
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
        return classification_of(503, f"Date: x\r\nretry-AFTER: {value} \r\nServer: y").retry_after

    assert wait("7") == 7
    assert wait("Mon, 23 Nov 2026 17:02:00 GMT") == 120
    assert wait("soon") is None
    assert classification_of(500, "Retry-After: 3").retry_after == 3
    assert classification_of(503).retry_after is None


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("https://other.example.com/hook?token=geheim", "points to https://other.example.com/hook;"),
        ("https://user:geheim@other.example.com/#geheim", "points to https://other.example.com/;"),
        ("/docker/?token=geheim", "points to /docker/;"),
        ("/a-geheim\x1b[31m/b", "points to /a-*** [31m/b;"),
        ("https://[geheim", "points to nowhere;"),
        ("", "points to nowhere;"),
    ],
)
def test_a_redirect_names_the_place_it_points_to_without_credentials(location: str, words: str) -> None:
    classified = classification_of(301, f"Location: {location}", secrets=["geheim"])

    assert words in classified.error
    assert "geheim" not in classified.error


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"code":602,"message":"0.labels in body is required"}', '{"code":602,"message":"0.labels in body is required"}'),
        ("<html>\r\n<head><title>400 No certificate</title><style>a { b }</style></head>", "400 No certificate"),
        ("no\tsuch \x1b[31m\u202ekey:\r\n ge/heim&<=", "no such [31m key: ***"),
        ('{"header": "ge\\/heim&<="}', '{"header": "***"}'),
        ("<p>ge/heim&amp;&lt;=", "***"),
        ("x" * 1000, "x" * 200),
        ("x" * 195 + "ge/heim&<=", "x" * 195 + "***"),
        ("<p>" * 1363 + "abcdge/heim&<=", "abcd***"),
        (" \r\n", ""),
    ],
)
def test_what_the_receiver_says_is_shown_clean_and_without_secrets(body: str, words: str) -> None:
    classified = classification_of(422, body=body, secrets=["heim", "ge/heim&<="])

    assert classified.error == f"{HOST} answered 422 Unprocessable Entity" + (f": {words}" if words else "")


TOKEN = "geheim-0123-abcd"


@pytest.mark.parametrize(
    "body",
    [
        " " * 4090 + TOKEN,
        "<p>" * 1363 + TOKEN,
        " " * (65536 - 10) + TOKEN[:10],  # As much of the body as is read.
        "geheim%2D0123%2dabcd",
        "geheim\\u002d0123-abcd",
        "geheim&#45;0123-abcd",
        "geheim\u200b-0123\u00ad-ab\ufe0fcd",
        "geheim<b>-0123</b>-abcd",
        "geheim<!-- <i> -->-0123<script>x</script>-abcd",
        "geheim<wbr>%2D0123\u200b-abcd",
    ],
)
@pytest.mark.parametrize("secrets", [[TOKEN], [TOKEN, f"Bearer {TOKEN}", "*", "***"]])
def test_a_secret_is_masked_however_a_receiver_repeats_it(body: str, secrets: Sequence[str]) -> None:
    texts = [body, f"no such key: {body}"]
    errors = [classification_of(401, body=text, secrets=secrets).error for text in texts]
    if "&" not in body:  # A place is no HTML.
        errors += [classification_of(301, f"Location: /{text}", secrets=secrets).error for text in texts]
    for error in errors:
        assert "***" in error
        assert not re.search("geheim|0123|abcd", error)


def test_a_line_break_in_a_secret_with_spaces_does_not_show_it() -> None:
    assert classification_of(401, body="a\nsecret\tof words", secrets=["a secret of words"]).error.endswith(": ***")


@pytest.mark.parametrize(
    ("number", "message", "os_error", "reason", "words"),
    [
        (pycurl.E_COULDNT_CONNECT, "Failed to connect to geheim:1", 111, "unreachable", "Connection refused"),
        (pycurl.E_COULDNT_CONNECT, "Failed to connect to geheim", 0, "unreachable", "Could not connect to server"),
        (pycurl.E_OPERATION_TIMEDOUT, "geheim", 0, "unreachable", "no connection within 2.5 s"),
        (pycurl.E_COULDNT_RESOLVE_HOST, "geheim", 0, "unreachable", "no address for the name"),
        (
            pycurl.E_PEER_FAILED_VERIFICATION,
            "SSL certificate OpenSSL verify result: certificate has expired (10)",
            0,
            "tls",
            "the certificate is not accepted: certificate has expired",
        ),
        (
            pycurl.E_SSL_CONNECT_ERROR,
            "TLS connect error: error:0A00010B:SSL routines::wrong version number",
            0,
            "tls",
            "TLS failed: wrong version number",
        ),
        (
            pycurl.E_SSL_CONNECT_ERROR,
            "TLS connect error: error:0A000126:SSL routines::unexpected eof while reading",
            0,
            "unreachable",
            "the connection was closed",
        ),
        (pycurl.E_RECV_ERROR, "Proxy CONNECT aborted", 0, "unreachable", "the connection was closed"),
        (pycurl.E_UNSUPPORTED_PROTOCOL, "geheim", 0, "server_error", "what it answers is not HTTP"),
        (pycurl.E_OUT_OF_MEMORY, "geheim", 24, "unreachable", "Too many open files"),
        (pycurl.E_OUT_OF_MEMORY, "geheim", 0, "unreachable", "Out of memory"),
    ],
)
def test_a_broken_way_is_the_receivers_fault(number: int, message: str, os_error: int, reason: str, words: str) -> None:
    classified = classify_error(NoResponse(number, message, os_error), HOST, 2.5)

    assert classified == ("sink", "retry", reason, f"{HOST}: {words}", None)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (pycurl.E_GOT_NOTHING, "Empty reply from server"),
        (pycurl.E_RECV_ERROR, "Recv failure: Connection reset by peer"),
        (pycurl.E_SEND_ERROR, "Send failure: Broken pipe"),
        (pycurl.E_RECV_ERROR, "OpenSSL SSL_read: error:0A000126:SSL routines::unexpected eof while reading, errno 0"),
    ],
)
def test_a_request_whose_connection_is_cut_may_be_tried_again(number: int, message: str) -> None:
    words = f"{HOST} closed the connection instead of an answer"
    expected = Classification("event", "retry", "unreachable", words)
    assert classify_error(NoResponse(number, message, sent=True), HOST, 2.5) == expected


def test_a_request_without_an_answer_in_time_may_be_tried_again() -> None:
    classified = classify_error(NoResponse(pycurl.E_OPERATION_TIMEDOUT, sent=True), HOST, 2.5)

    assert classified == Classification("event", "retry", "timeout", f"{HOST} did not answer within 2.5 s")
