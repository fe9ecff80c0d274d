"""Freezing a process, and counting the descriptors of this one."""

import os
import signal
import time
from pathlib import Path
from typing import Final

_PATIENCE: Final = 10.0


def freeze(pid: int) -> None:
    """Stop a process, and wait until none of its threads runs any more; SIGCONT lets them go on.

    SIGSTOP takes effect a moment later, thread by thread.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + _PATIENCE
    while not all(_is_stopped(task) for task in Path(f"/proc/{pid}/task").iterdir()):
        assert time.monotonic() < deadline, f"process {pid} does not stop"
        time.sleep(0.005)


def _is_stopped(task: Path) -> bool:
    try:
        # Behind the name of the program, which is in parentheses and may be anything.
        return (task / "stat").read_text().rpartition(")")[2].split()[0] in "TtZX"
    except OSError:
        return True  # The thread has ended.


def open_descriptors() -> int:
    """Count the open descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))
