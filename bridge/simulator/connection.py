"""One client of the simulator after its handshake. Only the loop of the server touches it."""

import selectors
import socket
import struct
from contextlib import suppress
from typing import Final

from bridge import frames
from bridge.event import namespace_of
from bridge.simulator.handshake import Subscription
from bridge.simulator.settings import SimulatorSettings
from bridge.simulator.traffic import Batch, Outgoing

_MAX_FRAME_BYTES: Final = 64 * 1024
_MAX_BUFFER_BYTES: Final = 16 * 1024 * 1024
_READ_BYTES: Final = 64 * 1024
_GRACE_SECONDS: Final = 2.0
"""Time for a client to take the rest and to close its side, when a connection is ended."""
_UNAUTHORIZED: Final = b'{"type":"error","data":{"errorMessage":"UNAUTHORIZED"}}'
GOING_AWAY: Final = 1001


class Connection:
    """A websocket to a client.

    Attributes:
        ends_by: Monotonic time by which the client must have closed its side; None while the connection is open.
        out: Bytes that wait to be sent.
    """

    def __init__(self, client: socket.socket, subscription: Subscription, number: int, now: float) -> None:
        self.socket = client
        self.namespace = subscription.namespace
        self.filter = subscription.filter
        self.number = number
        self.opened = now
        self.silent = False
        self.ends_by: float | None = None
        self.said_goodbye = False
        self.interest = selectors.EVENT_READ
        self.out = bytearray()
        self._taken = now
        self._half_closed = False
        self._reader = frames.FrameReader(_MAX_FRAME_BYTES, masked=True)

    @property
    def listening(self) -> bool:
        """True while it gets events."""
        return self.ends_by is None and not self.silent

    def write(self, data: bytes, now: float) -> None:
        """Append bytes to send."""
        if not self.out:
            self._taken = now
        self.out += data

    def end(self, data: bytes, now: float) -> None:
        """Begin to end: send the waiting bytes and `data`, then wait for the client to close its side."""
        if self.ends_by is None:
            self.write(data, now)
            self.ends_by = now + _GRACE_SECONDS

    def serve(self, now: float, *, readable: bool) -> str | None:
        """Read and send as much as possible without waiting; return why the connection is over, or None."""
        try:
            alive = not readable or self.read(now)
            self.flush(now)
        except OSError as error:
            return str(error)
        if alive and (self.out or not self.said_goodbye):
            return None
        return "the client closed it" if self.ends_by is None else "ended"

    def flush(self, now: float) -> None:
        """Send as much as the client takes without waiting."""
        if self.out:
            with suppress(BlockingIOError):
                del self.out[: self.socket.send(self.out)]
                self._taken = now
        if self.ends_by is not None and not self.out and not self._half_closed:
            self._half_closed = True
            self.socket.shutdown(socket.SHUT_WR)

    def read(self, now: float) -> bool:
        """Read and answer the client's frames; return False at its end."""
        data = self.socket.recv(_READ_BYTES)
        if data and not self.silent:
            taken = self._reader.feed(data)
            for control in taken.controls:
                if control.opcode == frames.PING:
                    self.write(frames.encode(frames.PONG, control.payload), now)
                elif control.opcode == frames.CLOSE:
                    self.end(frames.encode(frames.CLOSE, control.payload[:2]), now)
                    self.said_goodbye = True
            if taken.error:
                self.end(close_frame(taken.error.code), now)
        return bool(data)

    def is_stuck(self, now: float, send_timeout: float) -> bool:
        """Return True if the client has taken too little for too long, or has not closed its side in time."""
        late = self.ends_by is not None and now > self.ends_by
        return late or len(self.out) > _MAX_BUFFER_BYTES or (bool(self.out) and now - self._taken > send_timeout)

    def grow_old(self, settings: SimulatorSettings, now: float, *, expired: bool) -> None:
        """Apply the faults that come with the connection's age, or with credentials that have expired."""
        age = now - self.opened
        if not self.listening:
            return
        if expired or reached(age, settings.error_after):
            self.end(frames.encode(frames.TEXT, _UNAUTHORIZED) + close_frame(1008), now)
        elif reached(age, settings.disconnect_every):
            self.end(b"" if self.number % 2 else close_frame(GOING_AWAY), now)
        elif reached(age, settings.silence_after):
            self.silent = True

    def wants(self, item: Outgoing, batch: Batch) -> bool:
        """Return True if a message of a batch is for this client."""
        if not item.payload:
            return True
        if batch.namespace is None and self.namespace:
            namespace = namespace_of(str(item.event.get("resource_uri")))
            if namespace not in ("", self.namespace):
                return False
        return self.filter.accepts(item.event)


def close_frame(code: int) -> bytes:
    """Return a close frame with this code."""
    return frames.encode(frames.CLOSE, struct.pack("!H", code))


def reached(age: float, limit: float | None) -> bool:
    """Return True from a limit on, if there is one."""
    return limit is not None and age >= limit
