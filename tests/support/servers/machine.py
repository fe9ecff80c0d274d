"""A small Debian whose first process is systemd, in namespaces of its own: for root, where `debootstrap` is installed."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

ROOT: Final = Path(__file__).parents[3]
_SYSTEM: Final = Path(tempfile.gettempdir()) / "event-bridge-tests-bookworm"
"""The system that is started, made once and never changed."""

# The first process moves to a control group of its own, so that systemd can manage what is below it.
_OUTSIDE: Final = """
mount --make-rprivate /
mount -t tmpfs own {work}; cd {work}
mkdir group upper upper/files upper/work root
mount -t cgroup2 none group; mkdir -p group/event-bridge-tests; echo $$ >group/event-bridge-tests/cgroup.procs
mount -t overlay overlay -o lowerdir={files}:{system},upperdir=upper/files,workdir=upper/work root
exec unshare --pid --fork --uts --ipc --cgroup --kill-child=KILL sh -ec '{inside}'
"""
_INSIDE: Final = """
cd {work}/root
mkdir -p opt/site opt/src old
mount --bind {site} opt/site; mount --bind {source} opt/src
mount -t proc proc proc; mount -t sysfs -o ro sysfs sys; mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs -o mode=755 dev dev; mount -t tmpfs -o mode=755 run run; mount -t tmpfs -o mode=1777 tmp tmp
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/shm dev/pts; mount -t tmpfs shm dev/shm; ln -s /proc/self/fd dev/fd; ln -s /dev/pts/ptmx dev/ptmx
pivot_root . old; cd /; umount -l /old; mount --make-rshared /
exec env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --show-status=no
"""
_COMMAND: Final = """#!/bin/sh
export PYTHONPATH=/opt/site:/opt/src
exec python3 -c 'import sys; from bridge.cli.main import main; sys.exit(main())' "$@"
"""


def unavailable() -> str | None:
    """Return why there is no such machine; None if there may be one."""
    missing = [program for program in ("debootstrap", "unshare", "nsenter", "pivot_root") if not shutil.which(program)]
    if os.getuid() != 0 or sys.version_info[:2] != (3, 11):
        return "a Debian in namespaces needs root, and the Python of that Debian"
    return f"not installed: {', '.join(missing)}" if missing else None


class Machine:
    """A machine that runs.

    Args:
        pid: The process id of its systemd, outside.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def run(self, *words: str) -> str:
        """Run a command in it; return what it prints, errors included."""
        command = ["nsenter", "--target", str(self._pid), "--mount", "--pid", "--uts", "--ipc", "--cgroup", *words]
        return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout.strip()

    def shows(self, name: str) -> str:
        """Return a property of the service."""
        return self.run("systemctl", "show", "event-bridge", "--property", name, "--value")


@contextmanager
def machine(directory: Path, files: Mapping[str, str]) -> Iterator[Machine | None]:
    """Start a machine with the command of this checkout; yield None if that is not possible here. Its network is ours.

    Args:
        directory: For what the machine needs while it runs.
        files: The contents of more files, by their paths in the machine.
    """
    _make_system()
    (directory / "work").mkdir()
    added = directory / "files"
    for name, text in {"opt/event-bridge/bin/event-bridge": _COMMAND, **files}.items():
        path = added / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if "bin" in path.parts else 0o644)
    for folder in (added, *added.rglob("*/")):
        folder.chmod(folder.stat().st_mode | 0o055)
    places = {"work": directory / "work", "files": added, "source": ROOT, "site": Path(psutil.__file__).parents[1]}
    script = _OUTSIDE.format(system=_SYSTEM, inside=_INSIDE.format(**places), **places)
    with (
        (directory / "boot.log").open("wb") as log,
        subprocess.Popen(["unshare", "--mount", "sh", "-ec", script], stdout=log, stderr=log) as outside,
    ):
        try:
            yield _started(outside.pid)
        finally:
            outside.kill()


def _make_system() -> None:
    if not _SYSTEM.exists():
        new = Path(tempfile.mkdtemp(dir=_SYSTEM.parent))
        new.chmod(0o755)
        command = ["debootstrap", "--variant=minbase", "--include=systemd,procps,python3,ca-certificates", "bookworm", str(new)]
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
            shutil.rmtree(new)
        else:
            new.rename(_SYSTEM)


def _started(outside: int) -> Machine | None:
    """Return the machine when its systemd takes commands; None if that is not within half a minute."""
    until = time.monotonic() + 30
    while time.monotonic() < until and psutil.pid_exists(outside):
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(outside).children(recursive=True):
                found = Machine(process.pid)
                if process.name() == "systemd" and found.run("systemctl", "is-system-running") in {"running", "degraded"}:
                    return found
        time.sleep(0.2)
    return None
