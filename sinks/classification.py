"""The meaning of a receiver's answer, and of a connection that failed; pure."""

import socket
import ssl
from typing import Literal, NamedTuple

from bridge.sink import Entry, Failure, Reason


class Classification(NamedTuple):
    """The meaning of a failed request.

    Attributes:
        scope: Concerned are "event": the events of the request; "topic": all events of its topic; "sink": all events.
        outcome: "retry": may succeed later. "rejected": never will.
        reason: The label.
        error: The message, without secrets.
        retry_after: Delay that the receiver asked for, in seconds.
    """

    scope: Literal["event", "topic", "sink"]
    outcome: Literal["retry", "rejected"]
    reason: Reason
    error: str
    retry_after: float | None = None

    def failure(self, entry: Entry) -> Failure:
        """Return the failure of one event."""
        return Failure(entry.seq, self.outcome, self.reason, self.error, self.retry_after)


def connection_error(error: BaseException | None) -> tuple[Reason, str]:
    """Return the label and the message of an exception that ended a connection, or prevented one."""
    match error:
        case TimeoutError():
            return "timeout", error.strerror or "timed out"
        case socket.gaierror():
            return "unreachable", f"no address for the name: {error.strerror}"
        case ssl.SSLCertVerificationError():
            return "tls", f"the certificate is not accepted: {error.verify_message}"
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return "unreachable", "the connection was closed"
        case ssl.SSLError():
            # Only errors that OpenSSL reports have a reason; those of the ssl module itself lack the attribute.
            return "tls", f"TLS failed: {getattr(error, 'reason', None) or error.strerror}"
        case OSError():
            return "unreachable", error.strerror or str(error)
    return "server_error", str(error)
