"""The pace at which the simulator makes events. Pure: the time is given."""

from typing import Final

from bridge.simulator.settings import SimulatorSettings

TICK_SECONDS: Final = 0.02
"""Longest wait of the server's loop: the precision of the times of faults."""
_BATCH_EVENTS: Final = 512
"""Most events that are made at a time."""


class Pace:
    """Credit for events, which grows with time at the rate of the settings."""

    def __init__(self) -> None:
        self._begun = False
        self._credit = 0.0
        self._credited = 0.0

    def restart(self, now: float) -> None:
        """Give no credit for the time before `now` (monotonic)."""
        self._credited = now

    def due(self, now: float, settings: SimulatorSettings, connections: int, *, ready: bool) -> tuple[int, float]:
        """Return how many events are to be made now, and the seconds until the next is due, `TICK_SECONDS` at most.

        Args:
            now: Monotonic time.
            settings: The rate, and how many connections the first event waits for.
            connections: Open connections.
            ready: At full speed: some client listens, and none is behind.
        """
        if not self._begun:
            self._begun = connections >= settings.wait_for_clients
            self._credited = now
        if not self._begun:
            return 0, TICK_SECONDS
        if settings.rate == 0:
            return (_BATCH_EVENTS, 0.0) if ready else (0, TICK_SECONDS)
        self._credit = min(self._credit + (now - self._credited) * settings.rate, max(settings.rate, 1.0))
        self._credited = now
        due = min(int(self._credit), _BATCH_EVENTS)
        self._credit -= due
        return due, min(TICK_SECONDS, max(0.001, (1 - self._credit) / settings.rate))
