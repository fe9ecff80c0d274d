"""One connection to a broker: packets out, packets in, and the keepalive.

It is used by one thread at a time; a thread of its own keeps it alive while nobody uses it. A connection that has failed once
stays failed, and says why to whoever uses it next.
"""

import contextlib
import select
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from bridge.policy import Keepalive
from bridge.sink import Reason, Unavailable
from sinks.classification import connection_error
from sinks.mqtt import packets
from sinks.mqtt.transport import Limits, Opened, Profile, early_hint, read_limits

_CHUNK: Final = 256 * 1024
"""Bytes that are read at once at most."""

_LONGEST: Final = 64 * 1024
"""Bytes of a packet from the broker at most; what we expect has a few."""

_BEAT: Final = 0.5
"""Seconds after which the keepalive looks at an idle connection again: less than the shortest keepalive."""

_TAKEN_OVER_PAUSE: Final = 30.0
"""Seconds before we take the session back from another client with our name."""


class Connection:
    """A connection that the broker has accepted.

    Args:
        profile: How to connect.

    Attributes:
        limits: What the broker allows.
        ended_by: The reason code with which the broker ended the connection; None if it didn't, or gave none.
        pings: How many pings were sent.
        pongs: How many of them were answered.

    Raises:
        Unavailable: It can't be had.
    """

    def __init__(self, profile: Profile) -> None:
        self.limits = Limits()
        self.ended_by: int | None = None
        self.pings = 0
        self.pongs = 0
        self._profile = profile
        self._received = bytearray()
        self._unsent: deque[bytes] = deque()
        self._early: list[packets.Packet] = []  # Read when sending failed, for whoever receives next.
        self._trouble: Unavailable | None = None
        self._over = threading.Event()
        self._used = threading.Lock()
        self._alive = Keepalive(profile.keepalive / 2, profile.timeout, None, time.monotonic())
        self._opened = Opened(profile)
        self._socket = self._opened.socket
        self._poll_read, self._poll_write = select.poll(), select.poll()
        self._poll_read.register(self._socket.fileno(), select.POLLIN)
        self._poll_write.register(self._socket.fileno(), select.POLLIN | select.POLLOUT)
        try:
            self._await_acceptance()
        except BaseException:
            self._opened.close()
            raise
        threading.Thread(target=self._stay_alive, daemon=True, name=f"{profile.client_id} keepalive").start()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Have the connection for oneself.

        Raises:
            Unavailable: It was closed.
        """
        with self._used:
            if self._over.is_set():
                raise Unavailable("the connection was closed", "unreachable")
            try:
                yield
            finally:
                if self._over.is_set():
                    self._opened.close()

    def send(self, data: bytes) -> None:
        """Send, or keep what can't be sent yet for `receive` to send.

        Raises:
            Unavailable: The connection is broken.
        """
        self._require_whole()
        self._unsent.append(data)
        self._flush()

    def ping(self) -> int:
        """Send a ping, and return its number: it is answered when there are as many `pongs`.

        Raises:
            Unavailable: The connection is broken.
        """
        self.pings += 1
        self.send(packets.PING)
        return self.pings

    def receive(self, until: float) -> list[packets.Packet]:
        """Wait until something has come, or until a point in (monotonic) time; send what is unsent meanwhile.

        Returns:
            Packets from the broker, also answers to pings; nothing if nothing came in time.

        Raises:
            Unavailable: The connection is broken.
        """
        while True:
            found = self._take()
            now = time.monotonic()
            if found or now >= until:
                return found
            self._keep_alive(now)
            if self._opened.pending:
                continue  # The system does not know of it, and would have us wait.
            wait = min(until - now, self._alive.wait(now))
            self._opened.hurry()
            with contextlib.suppress(InterruptedError):
                (self._poll_write if self._unsent else self._poll_read).poll(max(1.0, wait * 1000))

    def close(self, farewell: bytes = b"", packet_id: int = 0, patience: float = 2.0) -> None:
        """Close it, politely if it works and nobody is using it. Never raises.

        Args:
            farewell: A last PUBLISH, which is given a moment to be acknowledged.
            packet_id: Its number; 0 if it needs no acknowledgement.
            patience: Seconds that all of this may take.
        """
        self._over.set()
        # The keepalive uses it for a moment now and then; somebody who delivers is told by the end of the connection.
        if not self._used.acquire(timeout=min(1.0, patience)):
            self._opened.abort()
            return
        try:
            if self._trouble is None:
                with contextlib.suppress(Unavailable):
                    self._say_goodbye(farewell, packet_id, time.monotonic() + patience)
        finally:
            self._opened.close()
            self._used.release()

    def _say_goodbye(self, farewell: bytes, packet_id: int, until: float) -> None:
        if farewell:
            self.send(farewell)
        waiting = bool(farewell and packet_id)
        while waiting and (found := self.receive(until)):
            waiting = not any(
                kind == packets.PUBACK and packets.read_acknowledgement(body)[0] == packet_id for kind, body in found
            )
        self.send(packets.GOODBYE)
        while self._unsent and time.monotonic() < until:
            self.receive(min(until, time.monotonic() + 0.1))

    def _await_acceptance(self) -> None:
        """Read CONNACK, and what it says about limits."""
        try:
            found = self.receive(time.monotonic() + self._profile.timeout)
        except Unavailable as error:
            hint = early_hint(self._profile) if error.reason == "unreachable" else ""
            raise Unavailable(f"{error}{hint}", error.reason) from error
        if not found:
            raise self.broken("timeout", f"no answer to CONNECT within {self._profile.timeout:g} s")
        kind, body = found[0]
        if kind != packets.CONNACK or len(body) < 2:
            raise self.broken("server_error", "what it answers is not MQTT")
        if body[1]:
            refusal = packets.classify(body[1])
            raise self.broken(refusal.reason, f"the broker refused the connection: {refusal.error}")
        if self._profile.protocol == "5":
            try:
                self.limits, keepalive = read_limits(body[2:], self._profile.keepalive)
            except packets.Malformed as error:
                raise self.broken("server_error", f"the broker sent {error}") from error
            self._alive = Keepalive(keepalive / 2, self._profile.timeout, None, time.monotonic())

    def _take(self) -> list[packets.Packet]:
        """Send and read what is possible without waiting. What was read is told before a trouble that came after it."""
        if not self._early:
            self._require_whole()
            self._flush()
        if self._early:
            found, self._early = self._early, []
            return found
        return self._read()

    def _flush(self) -> None:
        """Send what is unsent, as far as that is possible without waiting."""
        while self._unsent:
            data = self._unsent[0]
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                self._read_the_rest()
                trouble = self._fail(error)
                if self._early:
                    return
                raise trouble from error
            if not sent:
                return  # The websocket has taken a part, and wants to be called with the same data again.
            if sent < len(data):
                self._unsent[0] = data[sent:]
            else:
                self._unsent.popleft()

    def _read_the_rest(self) -> None:
        """Read what the broker has said before it closed: acknowledgements, and perhaps why."""
        with contextlib.suppress(Unavailable):
            while found := self._read():
                self._early += found

    def _read(self) -> list[packets.Packet]:
        """Read what is there without waiting, up to a packet that ends it all; that is raised now, or by the next use."""
        try:
            data = self._socket.recv(_CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return []
        except OSError as error:
            raise self._fail(error) from error
        if not data:
            raise self.broken("unreachable", "the broker closed the connection")
        self._alive.heard(time.monotonic(), event=False)
        self._received += data
        try:
            found = packets.take_packets(self._received, _LONGEST)
        except packets.Malformed as error:
            raise self.broken("server_error", f"the broker sent {error}") from error
        for at, (kind, body) in enumerate(found):
            if kind == packets.PINGRESP:
                self.pongs += 1
            elif kind == packets.DISCONNECT or not packets.is_whole(kind, body):
                trouble = self._ended(kind, body)
                if at:
                    return found[:at]
                raise trouble
        return found

    def _keep_alive(self, now: float) -> None:
        match self._alive.due(now):
            case "ping":
                self.ping()
            case "dead":
                raise self.broken("timeout", f"no answer to a ping within {self._profile.timeout:g} s")

    def _stay_alive(self) -> None:
        """Run the keepalive while nobody uses the connection; what it finds out, the next user is told."""
        while not self._over.wait(_BEAT):
            if self._used.acquire(blocking=False):
                try:
                    self._require_whole()
                    self._flush()
                    while self._read() or self._opened.pending:
                        pass
                    self._keep_alive(time.monotonic())
                except Unavailable:
                    return
                finally:
                    self._used.release()

    def _require_whole(self) -> None:
        if self._trouble is not None:
            raise Unavailable(str(self._trouble), self._trouble.reason, retry_after=self._trouble.retry_after)

    def _ended(self, kind: int, body: bytes) -> Unavailable:
        """The broker said goodbye, and why; or something that makes no sense."""
        if kind != packets.DISCONNECT:
            return self.broken("server_error", "the broker sent an acknowledgement of nothing")
        code = self.ended_by = body[0] if body else 0
        if not code:
            return self.broken("unreachable", "the broker closed the connection")
        pause = _TAKEN_OVER_PAUSE if code == packets.SESSION_TAKEN_OVER else None
        refusal = packets.classify(code)
        return self.broken(refusal.reason, f"the broker ended the connection: {refusal.error}", pause)

    def _fail(self, error: OSError) -> Unavailable:
        return self.broken(*connection_error(error))

    def broken(self, reason: Reason, words: str, retry_after: float | None = None) -> Unavailable:
        """Declare the connection broken, for every use from now on, and return the exception that says so.

        What broke it first counts: after the broker has said why it ends the connection, we see that it has.
        """
        if self._trouble is None:
            self._trouble = Unavailable(f"{self._profile.address}: {words}", reason, retry_after=retry_after)
        return self._trouble
