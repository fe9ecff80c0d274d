"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable


def until(condition: Callable[[], object], what: str = "it happens", seconds: float = 30.0) -> None:
    """Wait for a condition, and look for it less and less often; fail with `what` if it does not hold within `seconds`."""
    deadline, pause = time.monotonic() + seconds, 0.001
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(pause)
        pause = min(2 * pause, 0.02)
