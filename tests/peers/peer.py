"""What a peer is, and how one is obtained and run."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.waiting import until


@dataclass(frozen=True)
class Running:
    """A peer that runs.

    Attributes:
        sink: Settings of the sink that it is reached by; None for what stands before the stream.
        arrived: Return the number of events that it has got, by its own account.
        url: The stream's URL, for what stands before it.
    """

    sink: Mapping[str, Any] | None = None
    arrived: Callable[[], int] = lambda: 0
    url: str = ""


@dataclass(frozen=True)
class Peer:
    """A broker, a server or a proxy.

    Attributes:
        name: Its name and version.
        run: Run it in a directory, before the stream with this URL if it is a proxy.
        needs: Programs without which it can't be obtained.
    """

    name: str
    run: Callable[[Path, str], contextlib.AbstractContextManager[Running]]
    needs: Sequence[str]

    @property
    def missing(self) -> list[str]:
        """The programs that are not installed."""
        return [program for program in self.needs if shutil.which(program) is None]


@contextlib.contextmanager
def process(directory: Path, port: int, *command: object, **variables: str) -> Iterator[Path]:
    """Run a server until its port is open; its output goes to a file, whose path is yielded."""
    log = directory / "output"
    with log.open("wb") as output:
        run = subprocess.Popen(
            [*map(str, command)],
            cwd=directory,
            stdout=output,
            stderr=output,
            env=_environment(variables) if variables else None,
        )
    try:

        def listens() -> bool:
            assert run.poll() is None, f"{command[0]} ended: {log.read_text()[-500:]}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        until(listens, f"{command[0]} listens", 60)
        yield log
    finally:
        run.terminate()
        try:
            run.wait(10)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, **variables}


def install(directory: Path, *command: object, **variables: str) -> None:
    """Run a package manager; its output is an error's text."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
        env=_environment(variables),
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()[-300:]}")


def port() -> int:
    """Return a free port."""
    return free_port()
