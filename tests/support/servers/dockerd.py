"""A private Docker Engine for tests: the system's dockerd with everything of its own, gone without a trace afterwards.

It runs in PID, mount and network namespaces of its own. Whatever becomes of the test, the kernel then ends the daemon,
containerd, the shims and the containers together, and no mount or interface is left: killing the first process is all that
stopping takes. It can be reached over its unix socket only.

What it needs: root with CAP_SYS_ADMIN, `dockerd`, `containerd` and `runc` (Debian's docker.io brings all three), util-linux,
iproute2, and a static busybox or a C compiler for the image's only file. Tried with dockerd 20.10.24, containerd 1.6.20 and
runc 1.1.5 on Debian 12 with cgroups of version 1: the daemon and a container start in a fraction of a second. What matters:

- `--storage-driver vfs` works on any file system; `--bridge none --iptables=false` without the kernel's parts for networks.
  Containers therefore run with the network mode `none`.
- `native.cgroupdriver=cgroupfs` works without systemd; `--cgroup-parent` makes the cgroups ours to remove.
- `/run` and `/etc/docker` are private, so that no other daemon's sockets, settings or identity are touched.
"""

import contextlib
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import psutil

IMAGE = "tiny"
_PROGRAMS = ("dockerd", "containerd", "runc", "unshare", "setpriv", "mount", "ip")
_NAMESPACES = ("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc")
_START = """
set -e
ip link set lo up
mount -t tmpfs tmpfs /run
mount --bind "$1/etc" /etc/docker
shift
exec dockerd "$@"
"""
# A stand-in that understands the two calls of busybox that `idle` and `exits` make.
_STAND_IN = """
#include <stdlib.h>
#include <unistd.h>
int main(int count, char **words) { if (count > 3) return atoi(words[3] + 5); for (;;) pause(); }
"""


def available() -> str | None:
    """Why no Docker Engine can be started here; None if one can."""
    if os.geteuid() != 0:
        return "starting a Docker Engine needs root"
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if not _static_busybox() and shutil.which("cc") is None:
        return "neither a static busybox nor a C compiler to make an image from"
    probe = subprocess.run([*_NAMESPACES, "true"], capture_output=True, text=True, check=False)
    return None if probe.returncode == 0 else f"no namespaces of our own: {probe.stderr.strip()}"


def idle() -> list[str]:
    """The command of a container that runs until it is killed."""
    return ["/busybox", "sleep", "3600"]


def exits(code: int) -> list[str]:
    """The command of a container that exits at once."""
    return ["/busybox", "sh", "-c", f"exit {code}"]


class Dockerd:
    """A running daemon, as a context manager.

    Args:
        directory: Where the daemon's log is left. Everything else has a short path of its own, since the path of a unix
            socket has at most 107 bytes.
        options: More options of dockerd's command line.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.log = directory / "dockerd.log"
        self._options = options
        self._root = Path(tempfile.mkdtemp(prefix="engine-", dir="/tmp"))
        self.socket = self._root / "docker.sock"
        self.url = f"unix://{self.socket}"
        self._made_etc = not Path("/etc/docker").exists()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            (self._root / "etc").mkdir()
            Path("/etc/docker").mkdir(exist_ok=True)  # Only a place to mount ours on.
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 30.0) -> None:
        """Start the daemon and wait until it answers; also after `crash`, with the same identity and containers."""
        for leftover in ("run", "pid", "docker.sock"):
            shutil.rmtree(self._root / leftover, ignore_errors=True)
            with contextlib.suppress(OSError):
                (self._root / leftover).unlink()
        command = ["setpriv", "--pdeathsig", "KILL", *_NAMESPACES]  # Ends with us, even if we are killed.
        command += ["sh", "-c", _START, "sh", str(self._root), *self._arguments(), *self._options]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
                raise RuntimeError(f"dockerd does not start:\n{tail}")
            time.sleep(0.05)

    def crash(self) -> None:
        """Kill the daemon and all its containers at once."""
        if self._process is None:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for first in self._first():
                first.kill()  # The kernel waits until all others of the namespace are gone, too.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the daemon from running, without it noticing, until the end of the context."""
        for first in self._first():
            first.suspend()
        try:
            yield
        finally:
            for first in self._first():
                first.resume()

    def _first(self) -> list[psutil.Process]:
        """The first process of the namespace, which is dockerd."""
        return psutil.Process(self._process.pid).children() if self._process else []

    def stop(self) -> None:
        """End everything and leave nothing behind but the log."""
        self.crash()
        for parent in _cgroups(self._root.name):
            for group, _, _ in os.walk(parent, topdown=False):
                with contextlib.suppress(OSError):
                    Path(group).rmdir()
        shutil.rmtree(self._root, ignore_errors=True)
        if self._made_etc:
            with contextlib.suppress(OSError):
                Path("/etc/docker").rmdir()

    def call(self, method: str, path: str, body: Any = None) -> bytes:
        """Call the Engine's API; return the answer's body.

        Args:
            method: The HTTP method.
            path: Path and query.
            body: A tar archive as bytes, or something for JSON; None for no body.

        Raises:
            RuntimeError: The Engine says no.
        """
        is_tar = isinstance(body, bytes)
        data = body if is_tar else b"" if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/x-tar" if is_tar else "application/json"} if data else {}
        with contextlib.closing(_UnixConnection(self.socket)) as connection:
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            answer = response.read()
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {response.status} {answer.decode(errors='replace').strip()}")
        return answer

    def import_image(self) -> None:
        """Make the image `tiny`, with one static program, which `idle` and `exits` call."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(self._program(), "busybox")
        query = urlencode({"fromSrc": "-", "repo": IMAGE, "tag": "latest"})
        self.call("POST", f"/images/create?{query}", archive.getvalue())

    def create(self, name: str, command: list[str] | None = None, labels: Mapping[str, str] | None = None) -> str:
        """Create a container of the image `tiny` without a network; return its id. A name has two letters or more."""
        configuration = {
            "Image": IMAGE,
            "Cmd": command or idle(),
            "Labels": dict(labels or {}),
            "HostConfig": {"NetworkMode": "none"},
        }
        answer = self.call("POST", f"/containers/create?{urlencode({'name': name})}", configuration)
        identifier: str = json.loads(answer)["Id"]
        return identifier

    def run(self, name: str, command: list[str] | None = None, labels: Mapping[str, str] | None = None) -> str:
        """Create and start a container; return its id."""
        identifier = self.create(name, command, labels)
        self.call("POST", f"/containers/{identifier}/start")
        return identifier

    def kill(self, container: str, signal: str = "KILL") -> None:
        """Send a container a signal."""
        self.call("POST", f"/containers/{container}/kill?{urlencode({'signal': signal})}")

    def wait(self, container: str) -> int:
        """Wait until a container has stopped; return its exit code."""
        code: int = json.loads(self.call("POST", f"/containers/{container}/wait"))["StatusCode"]
        return code

    def remove(self, container: str, *, force: bool = False) -> None:
        """Remove a container; one that runs only by force."""
        self.call("DELETE", f"/containers/{container}?{urlencode({'force': str(force).lower()})}")

    def events(self) -> list[dict[str, Any]]:
        """Return the events that the Engine still has, oldest first: at most 256, none from before its start."""
        answer = self.call("GET", f"/events?{urlencode({'since': '0', 'until': f'{time.time():.6f}'})}")
        return [json.loads(line) for line in answer.splitlines()]

    def _arguments(self) -> Iterator[str]:
        yield from ("--data-root", str(self._root / "data"), "--exec-root", str(self._root / "run"))
        yield from ("--pidfile", str(self._root / "pid"), "--host", self.url)
        yield from ("--storage-driver", "vfs", "--bridge", "none", "--iptables=false", "--ip6tables=false")
        yield from ("--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{self._root.name}")

    def _answers(self) -> bool:
        try:
            self.call("GET", "/_ping")
        except (OSError, http.client.HTTPException, RuntimeError):
            return False
        return True

    def _program(self) -> Path:
        if busybox := _static_busybox():
            return busybox
        program = self._root / "tiny"
        command = ["cc", "-static", "-x", "c", "-o", str(program), "-"]
        subprocess.run(command, input=_STAND_IN.encode(), check=True, capture_output=True)
        return program


class CuttableSocket:
    """A unix socket in front of another one, whose connections can be cut.

    Args:
        path: Where to listen.
        target: The socket behind.
    """

    def __init__(self, path: Path, target: Path) -> None:
        self.url = f"unix://{path}"
        self._target = str(target)
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._refusing = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cut(self) -> int:
        """Cut all connections; return how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _shut(*pair)
        return len(pairs)

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Cut all connections, and every new one until the end of the context."""
        self._refusing = True
        self.cut()
        try:
            yield
        finally:
            self._refusing = False

    def close(self) -> None:
        """Stop listening, and cut all connections."""
        _shut(self._listener)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                front, _ = self._listener.accept()
            except OSError:
                return
            back = socket.socket(socket.AF_UNIX)
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                back.connect(self._target)
            except OSError:
                front.close()
                back.close()
                continue
            with self._lock:
                self._pairs.append((front, back))
            for source, sink in ((front, back), (back, front)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(64 * 1024):
            sink.sendall(data)
    _shut(source, sink)
    source.close()  # The sink is the other direction's source.


def _shut(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def _cgroups(name: str) -> list[Path]:
    """The cgroups of that name: one in each hierarchy of version 1, or the one of version 2."""
    root = Path("/sys/fs/cgroup")
    return [path for path in (root / name, *root.glob(f"*/{name}")) if path.is_dir()]


def _static_busybox() -> Path | None:
    path = shutil.which("busybox")
    if path is None:
        return None
    libraries = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    return None if "=>" in libraries else Path(path)
