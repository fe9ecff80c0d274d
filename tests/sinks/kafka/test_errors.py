import logging
import threading

import pytest
from kafka.errors import PolicyViolationError  # type: ignore[import-untyped]

from bridge.sink import REASONS
from bridge.text import MAX_CHARS
from sinks.kafka.client import Client
from sinks.kafka.errors import LogCapture, Refusal, classify, is_of_the_record, logged_reason
from sinks.kafka.settings import KafkaSettings


@pytest.mark.parametrize(
    ("code", "scope", "outcome", "reason"),
    [
        (-1, "event", "retry", "server_error"),
        (2, "event", "rejected", "rejected"),
        (3, "topic", "retry", "not_found"),
        (5, "sink", "retry", "server_error"),
        (6, "sink", "retry", "server_error"),
        (7, "sink", "retry", "timeout"),
        (10, "event", "rejected", "too_large"),
        (13, "sink", "retry", "unreachable"),
        (17, "topic", "rejected", "rejected"),
        (18, "event", "rejected", "too_large"),
        (19, "sink", "retry", "server_error"),
        (20, "sink", "retry", "server_error"),
        (29, "topic", "retry", "unauthorized"),
        (31, "sink", "retry", "unauthorized"),
        (32, "event", "retry", "server_error"),
        (35, "sink", "retry", "server_error"),
        (43, "sink", "retry", "server_error"),
        (44, "event", "rejected", "rejected"),
        (53, "sink", "retry", "unauthorized"),
        (56, "sink", "retry", "server_error"),
        (58, "sink", "retry", "unauthorized"),
        (76, "sink", "retry", "server_error"),
        (87, "event", "rejected", "rejected"),
        (89, "sink", "retry", "throttled"),
        (4711, "event", "retry", "server_error"),
        (None, "sink", "retry", "timeout"),
    ],
)
def test_whose_fault_a_refusal_is(code: int | None, scope: str, outcome: str, reason: str) -> None:
    classified = classify(Refusal(code))

    assert (classified.scope, classified.outcome, classified.reason) == (scope, outcome, reason)
    assert classified.reason in REASONS
    assert classified.error


RANGE = "Timestamp {} of message with offset 3 is out of range. The timestamp should be within [1795945640954, 1795952840954]"


@pytest.mark.parametrize("code", [32, 87])
def test_a_record_that_is_too_old_never_succeeds_and_one_of_the_future_may(code: int) -> None:
    old, future = (Refusal(code, RANGE.format(time)) for time in (1795945640953, 1795952840955))

    assert (classify(old).scope, classify(old).outcome) == ("event", "rejected")
    assert (classify(future).scope, classify(future).outcome) == ("event", "retry")
    assert "older than `message.timestamp.before.max.ms` allows" in classify(old).error
    assert "compare the clocks" in classify(future).error
    for refusal in (old, future):
        assert classify(refusal).error.endswith(refusal.words)


def test_what_the_broker_said_is_told() -> None:
    assert (
        classify(Refusal(44, "no events on Sundays")).error == "the record violates the broker's policy: no events on Sundays"
    )
    assert classify(Refusal(4711, "new in Kafka 9")).error == "error 4711: new in Kafka 9"


# As kafka-python 3.0.12 logged them, with brokers of Apache Kafka 4.1.
LOST = "<KafkaConnection node_id=bootstrap-0 (disconnected)>: Connection lost: KafkaConnectionError: socket disconnected"
REFUSED_LOGIN = "Bootstrap connection to bootstrap-0 failed: [Error 58] SaslAuthenticationFailedError: Authentication failed"
UNKNOWN_CA = (
    "Handshake failed: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate (_ssl.c:1006)"
)


@pytest.mark.parametrize(
    ("line", "reason", "words"),
    [
        (REFUSED_LOGIN, "unauthorized", "login refused"),
        ("Connection lost: [Error 34] IllegalSaslStateError", "unauthorized", "the broker expects no login at this port"),
        (UNKNOWN_CA, "tls", "the broker's certificate is not accepted: self-signed certificate"),
        (
            "Error receiving network data closing socket [SSL: SSLV3_ALERT_BAD_CERTIFICATE] sslv3 alert bad certificate",
            "tls",
            "the broker does not accept our certificate: bad certificate",
        ),
        (
            "Handshake failed: [SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol",
            "tls",
            "TLS failed: the broker hung up; does it speak TLS at this port?",
        ),
        (
            "InvalidReceiveError: Invalid frame length: 352518912",
            "tls",
            "what is answered is not Kafka's protocol; does the broker expect TLS at this port?",
        ),
        ("Topic docker not found in cluster metadata", "not_found", "topic docker does not exist"),
        ("Topic docker is not authorized for this client", "unauthorized", "we are not allowed to see topic docker"),
        (
            "Got error produce response on topic-partition ('t', 0), retrying (inf attempts left): NotEnoughReplicasError",
            "server_error",
            "there are fewer replicas in sync than `min.insync.replicas`",
        ),
        (
            "Got error produce response on topic-partition ('t', 0), retrying (inf attempts left): KafkaStorageError",
            "server_error",
            "the broker says KafkaStorage",
        ),
        ("Request timed out after 750 ms. Closing connection.", "timeout", "the broker does not answer"),
        ("Connect attempt failed: [Errno 111] ECONNREFUSED", "unreachable", "connection refused"),
        (LOST, "unreachable", "the broker closed the connection; does it expect TLS or a login?"),
    ],
)
def test_the_true_reason_is_found_in_what_the_client_logged(line: str, reason: str, words: str) -> None:
    assert logged_reason(["Sending username and password in the clear ", LOST, line, LOST]) == (reason, words)


def test_what_says_nothing_is_no_reason() -> None:
    assert (
        logged_reason(["Sending username and password in the clear", "Bootstrap bootstrap-0 not ready; waiting 0.2 secs"])
        is None
    )
    assert logged_reason([]) is None


@pytest.mark.parametrize("said", ["no hunter2 here", "no hunt%65r2 here", "no " + "x" * (MAX_CHARS - 9) + " hunter2"])
def test_secrets_are_taken_out_of_what_the_broker_says_of_a_record(said: str) -> None:
    settings = KafkaSettings.model_validate(
        {"bootstrap_servers": "kafka", "topic": "t", "sasl": "PLAIN", "username": "bob", "password": "hunter2"}
    )

    words = Client(settings)._refusal(PolicyViolationError(said)).words

    assert words.startswith("no ")
    assert "***" in words
    assert "hunt" not in words


def test_a_time_with_more_digits_than_an_integer_may_have_is_no_time() -> None:
    refusal = Refusal(32, f"Timestamp {'9' * 5000} of message x within [1, ")

    assert not is_of_the_record(refusal)
    assert classify(refusal).outcome == "retry"
    assert len(classify(refusal).error) < 2 * MAX_CHARS


class Everywhere(logging.Handler):
    """What a log that gets everything gets."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_only_what_the_own_threads_log_is_overheard_and_nobody_else_sees_it() -> None:
    heard, everywhere = LogCapture(), Everywhere()
    log = logging.getLogger("kafka.net.manager")
    heard.listen([threading.current_thread()])
    logging.getLogger().addHandler(everywhere)
    try:
        log.warning("ours: %s", "refused")
        other = threading.Thread(target=lambda: log.warning("theirs"))
        other.start()
        other.join()
        log.debug("value=%r", "a payload")
        log.warning("failed", exc_info=ConnectionError("the cause"))
    finally:
        heard.stop()
        logging.getLogger().removeHandler(everywhere)
    log.warning("later")

    assert [line.strip() for line in heard.lines] == ["ours: refused", "failed the cause"]
    assert everywhere.records == []
