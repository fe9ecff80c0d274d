"""One connection to a broker: sends and receives packets, and keeps itself alive.

One thread uses it at a time. A thread of its own keeps it alive while it is not in use. A connection that has failed stays
failed, and raises the first error at each use.
"""

import contextlib
import select
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from bridge.policy import Keepalive
from bridge.sink import Reason, Unavailable
from sinks.classification import connection_error
from sinks.mqtt import packets
from sinks.mqtt.transport import Limits, Profile, Transport, early_hint, read_limits


class VersionRefused(Unavailable):
    """The broker refused the version of MQTT, or closed the connection before it answered CONNECT."""


class Connection:
    """A connection that the broker has accepted. All but `close` raise `Unavailable` if it is broken, or was closed.

    Attributes:
        protocol: Version of MQTT.
        limits: The broker's limits.
        ended_by: The reason code with which the broker ended the connection; None without one.

    Raises:
        VersionRefused: Another version may be accepted.
    """

    def __init__(self, profile: Profile) -> None:
        self.protocol = profile.protocol
        self.limits = Limits()
        self.ended_by: int | None = None
        self._unanswered = 0  # Pings.
        self._profile = profile
        self._timeout = profile.settings.timeout
        self._received = bytearray()
        self._unsent: deque[bytes] = deque()
        self._early: list[packets.Packet] = []  # Read when sending failed, for the next receive().
        self._error: Unavailable | None = None
        self._over = threading.Event()
        self._used = threading.Lock()
        self._alive = Keepalive(profile.settings.keepalive / 2, self._timeout, None, time.monotonic())
        self._transport = Transport(profile)
        self._socket = self._transport.stream
        self._pending: Callable[[], int] = getattr(self._socket, "pending", int)  # Bytes in the buffer of TLS.
        self._poll_read, self._poll_write = select.poll(), select.poll()
        self._poll_read.register(self._socket.fileno(), select.POLLIN)
        self._poll_write.register(self._socket.fileno(), select.POLLIN | select.POLLOUT)
        try:
            self._await_acceptance()
        except BaseException:
            self._transport.close()
            raise
        threading.Thread(target=self._stay_alive, daemon=True, name=f"{profile.client_id} keepalive").start()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Use the connection exclusively."""
        with self._used:
            if self._over.is_set():
                raise Unavailable("the connection was closed", "unreachable")
            try:
                yield
            finally:
                if self._over.is_set():
                    self._transport.close()

    def send(self, data: bytes) -> None:
        """Send as far as possible without waiting; `receive` sends the rest."""
        self._require_whole()
        self._unsent.append(data)
        self._flush()

    def await_pong(self) -> None:
        """Ping, and wait for the answer: then the broker has read what was sent before."""
        self._ping()
        until = time.monotonic() + self._timeout
        while self._unanswered:
            self.await_packets(until)

    def publish(self, packet: bytes) -> int:
        """Send a PUBLISH of QoS 0 or 1 while nothing is in flight, and return the reason code of its PUBACK, or 0."""
        self.send(packet)
        until = time.monotonic() + self._timeout
        while packet[0] & 0x06:
            for kind, body in self.await_packets(until):
                if kind == packets.PUBACK:
                    return packets.read_acknowledgement(body)[1]
        return 0

    def await_packets(self, until: float) -> list[packets.Packet]:
        """Wait for packets until a monotonic time as `receive` does, and raise `Unavailable` if none came."""
        received = self.receive(until)
        if not received:
            raise self._broken("timeout", f"no acknowledgement within {self._timeout:g} s")
        return received

    def receive(self, until: float) -> list[packets.Packet]:
        """Wait for packets until a monotonic time, and return them, if any; send what is unsent meanwhile."""
        while True:
            received = self._take()
            now = time.monotonic()
            if received or now >= until:
                return received
            self._keep_alive(now)
            if self._pending():
                continue  # poll() does not know of these bytes.
            wait = min(until - now, self._alive.wait(now))
            self._transport.quickack()
            with contextlib.suppress(InterruptedError):
                (self._poll_write if self._unsent else self._poll_read).poll(max(1.0, wait * 1000))

    def close(self, farewell: bytes = b"", patience: float = 2.0) -> None:
        """Close the connection; send a last PUBLISH and DISCONNECT within seconds if it works and is not in use."""
        self._over.set()
        # The keepalive thread releases it soon. A delivery in another thread is ended by the shutdown.
        if not self._used.acquire(timeout=min(1.0, patience)):
            self._transport.abort()
            return
        try:
            if self._error is None:
                self._timeout = patience
                with contextlib.suppress(Unavailable):
                    if farewell:
                        self.publish(farewell)
                    self.send(packets.DISCONNECT_PACKET)
                    until = time.monotonic() + patience
                    while self._unsent and time.monotonic() < until:
                        self.receive(min(until, time.monotonic() + 0.1))
        finally:
            self._transport.close()
            self._used.release()

    def _await_acceptance(self) -> None:
        """Read CONNACK with the broker's limits."""
        try:
            received = self.receive(time.monotonic() + self._timeout)
        except Unavailable as error:
            if error.reason != "unreachable":
                raise
            raise VersionRefused(f"{error}{early_hint(self._profile)}", error.reason) from error
        if not received:
            raise self._broken("timeout", f"no answer to CONNECT within {self._timeout:g} s")
        kind, body = received[0]
        if kind != packets.CONNACK or len(body) < 2:
            raise self._broken("server_error", "what it answers is not MQTT")
        if body[1]:
            refusal = packets.classify(body[1])
            refused = self._broken(refusal.reason, f"the broker refused the connection: {refusal.error}")
            raise VersionRefused(str(refused), refused.reason) if body[1] in {1, 0x84} else refused
        if self._profile.protocol == "5":
            try:
                self.limits, keepalive = read_limits(body[2:], int(self._profile.settings.keepalive))
            except packets.Malformed as error:
                raise self._broken("server_error", f"the broker sent {error}") from error
            self._alive = Keepalive(keepalive / 2, self._timeout, None, time.monotonic())

    def _take(self) -> list[packets.Packet]:
        """Send and read without waiting. Packets are returned before an error that came after them is raised."""
        if not self._early:
            self._require_whole()
            self._flush()
        if self._early:
            received, self._early = self._early, []
            return received
        return self._read()

    def _flush(self) -> None:
        """Send what is unsent, as far as possible without waiting."""
        while self._unsent:
            data = self._unsent[0]
            try:
                sent = self._socket.send(data)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                self._read_the_rest()
                failed = self._broken(*connection_error(error))
                if self._early:
                    return
                raise failed from error
            if not sent:
                return  # The websocket has sent a part, and must be called with the same data again.
            if sent < len(data):
                self._unsent[0] = data[sent:]
            else:
                self._unsent.popleft()

    def _read_the_rest(self) -> None:
        """Read what the broker sent before it closed: acknowledgements, and perhaps a reason."""
        with contextlib.suppress(Unavailable):
            while received := self._read():
                self._early += received

    def _read(self) -> list[packets.Packet]:
        """Read without waiting, up to a packet that ends the connection, which raises now or at the next use."""
        try:
            data = self._socket.recv(256 * 1024)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return []
        except OSError as error:
            raise self._broken(*connection_error(error)) from error
        if not data:
            raise self._broken("unreachable", "the broker closed the connection")
        self._alive.heard(time.monotonic(), event=False)
        self._received += data
        try:
            # The packets that a broker sends to a publisher have a few bytes.
            received = packets.take_packets(self._received, 64 * 1024)
        except packets.Malformed as error:
            raise self._broken("server_error", f"the broker sent {error}") from error
        for at, (kind, body) in enumerate(received):
            if kind == packets.PINGRESP:
                self._unanswered -= 1
            elif kind == packets.DISCONNECT or not packets.is_whole(kind, body):
                ended = self._ended(kind, body)
                if at:
                    return received[:at]
                raise ended
        return received

    def _ping(self) -> None:
        self._unanswered += 1
        self.send(packets.PING)

    def _keep_alive(self, now: float) -> None:
        match self._alive.due(now):
            case "ping":
                self._ping()
            case "dead":
                raise self._broken("timeout", f"no answer to a ping within {self._timeout:g} s")

    def _stay_alive(self) -> None:
        """Run the keepalive while the connection is not in use; the next use raises the error that it finds."""
        while not self._over.wait(0.5):  # Less than the shortest keep-alive.
            if self._used.acquire(blocking=False):
                try:
                    while self._take() or self._pending():
                        pass
                    self._keep_alive(time.monotonic())
                except Unavailable:
                    return
                finally:
                    self._used.release()

    def _require_whole(self) -> None:
        if self._error is not None:
            raise Unavailable(str(self._error), self._error.reason, retry_after=self._error.retry_after)

    def _ended(self, kind: int, body: bytes) -> Unavailable:
        """Return the error for a DISCONNECT, or for an acknowledgement that can't be read."""
        if kind != packets.DISCONNECT:
            return self._broken("server_error", "the broker sent an acknowledgement of nothing")
        code = self.ended_by = body[0] if body else 0
        if not code:
            return self._broken("unreachable", "the broker closed the connection")
        # A pause before the session is taken back from another client with the same client id.
        pause = 30.0 if code == packets.SESSION_TAKEN_OVER else None
        refusal = packets.classify(code)
        return self._broken(refusal.reason, f"the broker ended the connection: {refusal.error}", pause)

    def _broken(self, reason: Reason, message: str, retry_after: float | None = None) -> Unavailable:
        """Mark the connection as broken, and return the exception that every use raises from now on.

        The first error counts: a broker that sends the reason of a disconnect closes the connection next.
        """
        if self._error is None:
            self._error = Unavailable(f"{self._profile.settings.address}: {message}", reason, retry_after=retry_after)
        return self._error
