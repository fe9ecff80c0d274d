"""Classify why a record was not acknowledged.

kafka-python's exceptions say little: a wrong password, an unknown certificate authority and an unreachable broker all look
like a timeout. The cause stands only in its log, which `LogCapture` keeps; `logged_reason` picks the line that says most.
"""

import logging
import re
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from bridge.sink import Reason
from bridge.text import MAX_CHARS
from sinks.classification import Classification


class Refusal(NamedTuple):
    """The answer to a record that was not acknowledged: Kafka's error code, or None for an error of the client; the message."""

    code: int | None
    words: str = ""


NOT_AT_FAULT: Final = Refusal(None, "another record of the same batch was refused")
"""The refusal of a valid record whose batch holds an invalid one."""

MISSING: Final = 3
INVALID: Final = 17
UNAUTHORIZED: Final = 29

LOGIN_REFUSED: Final = "login refused"
NO_ANSWER: Final = "the broker does not answer"

# Codes and names: https://kafka.apache.org/protocol#protocol_error_codes
_CODES: Final[dict[int, Classification]] = {
    -1: Classification("event", "retry", "server_error", "the broker failed"),
    2: Classification("event", "rejected", "rejected", "the broker calls the record corrupt"),
    3: Classification(
        "topic", "retry", "not_found", "the topic does not exist; create it, or set `allow_auto_create_topics: true`"
    ),
    5: Classification("sink", "retry", "server_error", "a partition has no leader"),
    6: Classification("sink", "retry", "server_error", "a partition's leader is changing"),
    7: Classification("sink", "retry", "timeout", "the broker's replicas did not answer in time"),
    10: Classification("event", "rejected", "too_large", "the record is larger than the topic's `max.message.bytes`"),
    13: Classification("sink", "retry", "unreachable", "the connection was lost"),
    17: Classification("topic", "rejected", "rejected", "the broker does not accept the topic's name"),
    18: Classification("event", "rejected", "too_large", "the record batch is larger than the topic's segments"),
    19: Classification("sink", "retry", "server_error", "there are fewer replicas in sync than `min.insync.replicas`"),
    20: Classification("sink", "retry", "server_error", "there are fewer replicas in sync than `min.insync.replicas`"),
    29: Classification("topic", "retry", "unauthorized", "we are not allowed to write to the topic"),
    31: Classification("sink", "retry", "unauthorized", "we are not allowed to write to the cluster"),
    32: Classification(
        "event", "retry", "server_error", "the broker does not accept the record's timestamp; compare the clocks"
    ),
    35: Classification("sink", "retry", "server_error", "the broker's version is not supported"),
    43: Classification("sink", "retry", "server_error", "the topic's format of records is too old"),
    44: Classification("event", "rejected", "rejected", "the record violates the broker's policy"),
    53: Classification("sink", "retry", "unauthorized", "we are not allowed to write"),
    56: Classification("sink", "retry", "server_error", "the broker's disk fails"),
    58: Classification("sink", "retry", "unauthorized", "user name or password are not accepted"),
    76: Classification("sink", "retry", "server_error", "the broker does not know the compression"),
    87: Classification("event", "rejected", "rejected", "the broker refused the record"),
    89: Classification("sink", "retry", "throttled", "our quota is used up"),
}


_OUT_OF_RANGE: Final = re.compile(r"Timestamp (-?\d{1,19}) of message .{1,200}? within \[(-?\d{1,19}), ")


def is_of_the_record(refusal: Refusal) -> bool:
    """Return True if the message alone says what is wrong with one record, however many others were refused with it."""
    return bool(_OUT_OF_RANGE.search(refusal.words[:MAX_CHARS]))


def classify(refusal: Refusal) -> Classification:
    """Classify a refusal. Of several records in one batch it is not known which was refused."""
    said = refusal.words[:MAX_CHARS]
    if refusal.code is None:
        return Classification("sink", "retry", "timeout", said or "no acknowledgement in time")
    if out_of_range := _OUT_OF_RANGE.search(said):
        time, oldest = map(int, out_of_range.groups())
        if time < oldest:
            too_old = "the record is older than `message.timestamp.before.max.ms` allows; raise it, or set `timestamp: sent`"
            return Classification("event", "rejected", "rejected", f"{too_old}: {said}")
    known = _CODES.get(32 if out_of_range else refusal.code)
    if known is None:
        return Classification("event", "retry", "server_error", f"error {refusal.code}: {said or 'unknown'}")
    # For topics and the cluster the library's message is only their name, or concerns idempotent producers.
    more = said if known.scope == "event" or known.outcome == "rejected" else ""
    return known._replace(error=f"{known.error}: {more}") if more else known


_SIGNS: Final[tuple[tuple[str, Reason, str], ...]] = (
    # Most specific first: the first pattern that any line matches is the reason. Lines hold words of brokers: what a pattern
    # skips is bounded, so that none takes long.
    (r"UnsupportedSaslMechanism", "unauthorized", "the broker does not know the mechanism of `sasl`"),
    (r"IllegalSaslState", "unauthorized", "the broker expects no login at this port"),
    (r"SaslAuthenticationFailed", "unauthorized", LOGIN_REFUSED),
    (r"CERTIFICATE_VERIFY_FAILED[^:]*: ([^(]*)", "tls", "the broker's certificate is not accepted: {0}"),
    (r"alert ([a-z ]{0,40}certificate[a-z ]{0,40}|unknown ca)", "tls", "the broker does not accept our certificate: {0}"),
    (
        r"Handshake failed: .{0,100}?(EOF|WRONG_VERSION)",
        "tls",
        "TLS failed: the broker hung up; does it speak TLS at this port?",
    ),
    (r"\[SSL: ([A-Z0-9_]+)\]", "tls", "TLS failed: {0}"),
    (r"Invalid frame length", "tls", "what is answered is not Kafka's protocol; does the broker expect TLS at this port?"),
    (r"Topic (\S+) is not authorized", "unauthorized", "we are not allowed to see topic {0}"),
    (r"Topic (\S+) not found in cluster metadata", "not_found", "topic {0} does not exist"),
    (r"retrying [^:]{1,40}: NotEnoughReplicas", "server_error", "there are fewer replicas in sync than `min.insync.replicas`"),
    (r"retrying [^:]{1,40}: ThrottlingQuotaExceeded", "throttled", "our quota is used up"),
    (
        r"retrying [^:]{1,40}: (?!KafkaConnection|Network|RequestTimedOut|KafkaTimeout)(\w+)Error",
        "server_error",
        "the broker says {0}",
    ),
    (r"Name or service not known|name resolution|nodename nor|DNS", "unreachable", "no address for the name"),
    (r"Connection refused|ECONNREFUSED", "unreachable", "connection refused"),
    (r"ENETUNREACH|EHOSTUNREACH|No route|Network is unreachable", "unreachable", "no route to the address"),
    (r"look-up timed out", "timeout", "the name server does not answer"),
    (r"unable to connect: timed out|Connection timed out", "timeout", "no answer to the connection attempt"),
    (r"Request timed out|RequestTimedOut|KafkaTimeoutError: Timed out", "timeout", NO_ANSWER),
    (r"disconnected", "unreachable", "the broker closed the connection; does it expect TLS or a login?"),
    (r"Connection (lost|failed)|reset|closed", "unreachable", "the connection was lost"),
)


class LogCapture(logging.Handler):
    """Keeps in `lines` the last lines that kafka-python logged in the threads of one producer."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._threads: set[int] = set()
        self.lines: deque[str] = deque(maxlen=100)

    def listen(self, threads: Iterable[threading.Thread]) -> None:
        """Capture the lines of these threads from now on, and pass nothing of the library's log on.

        Its warnings come with every attempt. Its debug lines contain keys, values and passwords.
        """
        self._threads = {thread.ident for thread in threads if thread.ident is not None}
        library = logging.getLogger("kafka")
        library.setLevel(logging.WARNING)
        library.propagate = False
        library.addHandler(self)

    def stop(self) -> None:
        """Stop capturing."""
        logging.getLogger("kafka").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line with its exception, which for some lines is the only content."""
        if record.thread in self._threads:
            with suppress(Exception):
                self.lines.append(f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}"[:MAX_CHARS])


def logged_reason(lines: Iterable[str]) -> tuple[Reason, str] | None:
    """Find the reason of a failure in logged lines: the label and the message."""
    latest_first = [line[:MAX_CHARS] for line in lines][::-1]
    for pattern, reason, words in _SIGNS:
        for line in latest_first:
            if match := re.search(pattern, line, re.IGNORECASE | re.DOTALL):
                return reason, words.format(*[(group or "").strip() for group in match.groups()])
    return None
