"""Events as JSON lines on standard output.

Standard output is a file, a terminal, a pipe to another program or a socket (under systemd). Each line arrives whole and in
order, and none twice, whatever the reader does: if it stops reading, the sink is unavailable after `timeout`, and a line that
was written in part is remembered and completed first. Acknowledged means accepted by the kernel: a pipe has no other sign.

The file description is shared with the shell and with other processes, so it is never switched to non-blocking. A pipe or a
terminal is opened a second time instead, through /proc; where that is not possible, writes are so small that a writable
descriptor takes them whole.
"""

import errno
import fcntl
import os
import select
import stat
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar, Final, Literal, NamedTuple

from pydantic import Field

from bridge.field_types import Seconds
from bridge.sink import Entry, Failure, Reason, SinkSettings, Unavailable

_ATOMIC: Final = select.PIPE_BUF
"""Bytes that a writable pipe takes without blocking (POSIX, `write`)."""

_UNLIMITED: Final = sys.maxsize
_NO_READER: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENXIO, errno.EBADF})


class StdoutSettings(SinkSettings):
    """Settings of a `stdout` sink."""

    type: Literal["stdout"] = "stdout"
    timeout: Seconds = Field(
        default=5.0, gt=0, description="How long a reader may take nothing before the sink counts as unavailable."
    )


class _Output(NamedTuple):
    """Where to write: the descriptor, how many bytes at most at once, and whether the descriptor is ours to close."""

    fd: int
    chunk: int
    owned: bool


class _Torn(NamedTuple):
    """What must be written before anything else: the rest of the line of `seq`, or of a line that is nobody's."""

    seq: int | None = None
    rest: bytes = b""


class StdoutSink:
    """Writes events as JSON lines.

    Args:
        name: The sink's name in the configuration.
        settings: Its settings.
        fd: The descriptor to write to. It is not closed.
    """

    Settings: ClassVar = StdoutSettings

    def __init__(self, name: str, settings: StdoutSettings, fd: int = 1) -> None:
        self.name = name
        self._timeout = settings.timeout
        self._fd = fd
        self._output: _Output | None = None
        self._torn = _Torn()

    def open(self) -> None:
        """Look at what standard output is.

        Raises:
            Unavailable: It is closed, or nobody reads it any more.
        """
        self.close()
        if self._fd == 1 and sys.__stdout__ is None:
            # Python found it closed at the start; meanwhile the number may belong to the journal.
            raise Unavailable("standard output was closed when the process started")
        try:
            self._output = _open(self._fd)
            _require_a_reader(self._output.fd)
        except OSError as error:
            self.close()
            raise Unavailable(*_explain(error)) from error
        if not self._torn.rest and _ends_in_a_torn_line(self._fd):
            self._torn = _Torn(None, b"\n")

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        """Write all entries.

        Raises:
            Unavailable: The reader is gone or takes nothing, or the file can't grow; with what was written until then.
        """
        if self._output is None:
            raise Unavailable("the sink is not open", "internal")
        fresh = [entry for entry in entries if entry.seq != self._torn.seq]
        lines = [self._torn.rest, *[entry.json + b"\n" for entry in fresh]]
        written, trouble = _write(self._output, b"".join(lines), self._timeout)
        if trouble is None:
            self._torn = _Torn()
            return []
        seqs = [self._torn.seq, *[entry.seq for entry in fresh]]
        whole, rest = _whole_lines(lines, written)
        self._torn = _Torn(seqs[whole], rest) if rest else _Torn()
        raise Unavailable(*trouble, delivered={entry.seq for entry in entries} & set(seqs[:whole]))

    def close(self) -> None:
        """Close what `open` opened. A torn line stays remembered."""
        output, self._output = self._output, None
        if output is not None and output.owned:
            with suppress(OSError):
                os.close(output.fd)


_Trouble = tuple[str, Reason]
"""Why not everything could be written: in words, and as a label."""


def _open(fd: int) -> _Output:
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return _Output(fd, _UNLIMITED, owned=False)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno == errno.ENXIO and stat.S_ISFIFO(mode):
                raise
            # No /proc, or a pipe that belongs to another user.
        else:
            return _Output(own, _UNLIMITED, owned=True)
    return _Output(fd, _ATOMIC, owned=False)


def _require_a_reader(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):  # Errors and hang-ups are reported without being asked for.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _write(output: _Output, data: bytes, timeout: float) -> tuple[int, _Trouble | None]:
    """Write until all is written or nothing more can be: how much that was, and why not everything."""
    view = memoryview(data)
    written = 0
    poll = select.poll()
    poll.register(output.fd, select.POLLOUT)
    deadline = time.monotonic() + timeout
    while written < len(data):
        left = deadline - time.monotonic()
        taken = 0
        try:
            if poll.poll(max(0.0, left) * 1000):
                taken = os.write(output.fd, view[written : written + output.chunk])
        except BlockingIOError:
            pass  # Somebody else who writes to the same pipe was faster.
        except OSError as error:
            return written, _explain(error)
        if taken:
            written += taken
            deadline = time.monotonic() + timeout
        elif left <= 0:
            return written, (f"standard output is blocked: its reader took nothing for {timeout:g} s", "timeout")
    return written, None


def _explain(error: OSError) -> _Trouble:
    if error.errno in _NO_READER:
        return f"nobody reads standard output: {error.strerror}", "unreachable"
    return f"can't write to standard output: {error.strerror}", "server_error"


def _whole_lines(lines: Sequence[bytes], written: int) -> tuple[int, bytes]:
    """Count the lines that were written whole; the rest is that of the next one, empty if none of it was written.

    The first line is the rest of a torn one already, so that it stays torn even if nothing of it was written.
    """
    position = 0
    for count, line in enumerate(lines):
        if written < position + len(line):
            return count, line[written - position :] if written > position or count == 0 else b""
        position += len(line)
    return len(lines), b""


def _ends_in_a_torn_line(fd: int) -> bool:
    """Whether we append to a file whose last line a process that was killed left unfinished."""
    with suppress(OSError):
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
            reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
            try:
                return os.pread(reader, 1, status.st_size - 1) != b"\n"
            finally:
                os.close(reader)
    return False
