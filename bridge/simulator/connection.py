"""One client of the simulator. Only the loop of the server touches it.

`websockets` does the handshake, answers pings and close frames, and refuses frames that break the protocol. Events are frames
already, so they go past it, straight to the transport.
"""

import asyncio
from typing import Final

from websockets.asyncio.server import ServerConnection
from websockets.protocol import State

from bridge import frames
from bridge.simulator.handshake import Subscription
from bridge.simulator.settings import SimulatorSettings

_MAX_BUFFER_BYTES: Final = 16 * 1024 * 1024
_GRACE_SECONDS: Final = 2.0
"""Time for a client to take the rest and to close its side, when a connection is ended."""
_UNAUTHORIZED: Final = b'{"type":"error","data":{"errorMessage":"UNAUTHORIZED"}}'
GOING_AWAY: Final = 1001


class Connection(ServerConnection):
    """A websocket to a client.

    Attributes:
        subscription: Namespace and filter; known once the handshake is accepted.
        end_reason: Cause of the end, for the log.
    """

    subscription: Subscription
    end_reason = "the client closed it"
    _silent = _ending = False

    def begin(self, number: int, room: asyncio.Event) -> None:
        """Begin to count age; `room` is set whenever the client has taken most of the bytes that waited."""
        self._number, self._room = number, room
        self._opened = self._taken_at = self.loop.time()
        self._written = self._taken = 0

    @property
    def listening(self) -> bool:
        """True while it gets events."""
        return self.state is State.OPEN and not self._silent and not self._ending

    @property
    def waiting(self) -> int:
        """Count of bytes that wait to be sent."""
        return self.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Send whole frames."""
        self._written += len(data)
        self.transport.write(data)

    def end(self, code: int | None, last: bytes = b"") -> None:
        """Send what waits, `last` and a close frame with this code, if any; then wait for the client to close its side."""
        if self.state is State.OPEN and not self._ending:
            self._ending, self._silent, self.end_reason = True, False, "ended"
            self.transport.write(last)
            if code is None:
                self.transport.write_eof()
            else:
                self.protocol.send_close(code)
                self.send_data()
            self.loop.call_later(_GRACE_SECONDS, self.transport.abort)

    def age(self, settings: SimulatorSettings, *, expired: bool) -> None:
        """Disconnect a client that takes too little, and apply the faults that come with age and expired credentials."""
        now = self.loop.time()
        age = now - self._opened
        taken = self._written - self.waiting
        if taken != self._taken or not self.waiting:
            self._taken, self._taken_at = taken, now
        if self.waiting > _MAX_BUFFER_BYTES or now - self._taken_at > settings.send_timeout:
            self.end_reason = "the client is too slow"
            self.transport.abort()
        elif self.listening and (expired or reached(age, settings.error_after)):
            self.end(1008, frames.encode(frames.TEXT, _UNAUTHORIZED))
        elif self.listening and reached(age, settings.disconnect_every):
            self.end(None if self._number % 2 else GOING_AWAY)
        elif self.listening and reached(age, settings.silence_after):
            self._silent = True

    def data_received(self, data: bytes) -> None:
        """Take the client's bytes, unless the connection has fallen silent."""
        if not self._silent:
            super().data_received(data)
            if self.protocol.close_rcvd:
                self.transport.close()  # The library would wait for the client to close its side first, without a limit.
            if self.state is State.CLOSING:
                self.loop.call_later(_GRACE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that there is room again."""
        super().resume_writing()
        self._room.set()


def reached(age: float, limit: float | None) -> bool:
    """Return True from a limit on, if there is one."""
    return limit is not None and age >= limit
