"""Events as JSON lines on standard output.

Standard output is a file, a terminal, a pipe or a socket (under systemd). Each line is written whole, once and in order. If the
reader stops reading, the sink is unavailable after `timeout`. A line that was written in part is completed before all others.
Acknowledged means accepted by the kernel, since a pipe has no other acknowledgement.

The file description is shared with the shell and with other processes, so it is never made non-blocking. A pipe or a terminal
is opened a second time instead, through /proc. Where that is not possible, writes have at most `PIPE_BUF` bytes, which do not
block on a writable descriptor.
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
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from bridge.field_types import Seconds
from bridge.sink import Entry, Failure, Reason, SinkSettings, Unavailable


class StdoutSettings(SinkSettings):
    """Settings of a `stdout` sink."""

    type: Literal["stdout"] = "stdout"
    timeout: Seconds = Field(
        default=5.0, gt=0, description="How long a reader may take nothing before the sink counts as unavailable."
    )


class _Output(NamedTuple):
    """A descriptor, the largest write in bytes, and True if the sink has to close it."""

    fd: int
    max_write: int
    owned: bool


class _Torn(NamedTuple):
    """The rest of a line that was written in part; `seq` is its event, None for a line of an earlier process."""

    seq: int | None = None
    rest: bytes = b""


class _Writing:
    """The lines of one delivery: `seqs` has the event of each, and `written` grows while they are written."""

    def __init__(self, lines: Sequence[bytes] = (), seqs: Sequence[int | None] = ()) -> None:
        self.lines = lines
        self.seqs = seqs
        self.written = 0

    def delivered(self) -> set[int]:
        """Return the events whose lines were written whole."""
        return {seq for seq in self.seqs[: _whole_lines(self.lines, self.written)[0]] if seq is not None}


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
        self._writing = _Writing()

    @property
    def delivered(self) -> set[int]:
        """The events that this delivery, or the one before, has written up to now."""
        return self._writing.delivered()

    def open(self) -> None:
        """Open standard output by its kind.

        Raises:
            Unavailable: It is closed, or has no reader.
        """
        self.close()
        if self._fd == 1 and sys.__stdout__ is None:
            # The descriptor was closed at the start, so that its number may belong to the journal.
            raise Unavailable("standard output was closed when the process started")
        try:
            self._output = _open(self._fd)
            _require_reader(self._output.fd)
        except OSError as error:
            self.close()
            raise Unavailable(*_message_and_reason(error)) from error
        if not self._torn.rest and _ends_in_a_torn_line(self._fd):
            self._torn = _Torn(None, b"\n")

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        """Write all entries.

        Raises:
            Unavailable: There is no reader, the reader does not read, or the file can't grow; with the events written before.
        """
        if self._output is None:
            raise Unavailable("the sink is not open", "internal")
        fresh = [entry for entry in entries if entry.seq != self._torn.seq]
        lines = [self._torn.rest, *[entry.json + b"\n" for entry in fresh]]
        writing = self._writing = _Writing(lines, [self._torn.seq, *[entry.seq for entry in fresh]])
        error = _write(self._output, writing, self._timeout)
        if error is None:
            self._torn = _Torn()
            return []
        whole, rest = _whole_lines(lines, writing.written)
        self._torn = _Torn(writing.seqs[whole], rest) if rest else _Torn()
        raise Unavailable(*error, delivered={entry.seq for entry in entries} & writing.delivered())

    def close(self) -> None:
        """Close what `open` opened. The rest of a torn line is kept."""
        output, self._output = self._output, None
        if output is not None and output.owned:
            with suppress(OSError):
                os.close(output.fd)


def _open(fd: int) -> _Output:
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return _Output(fd, sys.maxsize, owned=False)
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno == errno.ENXIO and stat.S_ISFIFO(mode):
                raise
            # No /proc, or a pipe that belongs to another user.
        else:
            return _Output(own, sys.maxsize, owned=True)
    return _Output(fd, select.PIPE_BUF, owned=False)


def _require_reader(fd: int) -> None:
    poll = select.poll()
    poll.register(fd, 0)
    if poll.poll(0):  # Errors and hang-ups are always reported.
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def _write(output: _Output, writing: _Writing, timeout: float) -> tuple[str, Reason] | None:
    """Write as much as possible; return the message and reason if something is missing."""
    data = b"".join(writing.lines)
    view = memoryview(data)
    poll = select.poll()
    poll.register(output.fd, select.POLLOUT)
    deadline = time.monotonic() + timeout
    while (written := writing.written) < len(data):
        left = deadline - time.monotonic()
        taken = 0
        try:
            if poll.poll(max(0.0, left) * 1000):
                taken = os.write(output.fd, view[written : written + output.max_write])
        except BlockingIOError:
            pass  # Another writer has filled the pipe.
        except OSError as error:
            return _message_and_reason(error)
        if taken:
            writing.written += taken
            deadline = time.monotonic() + timeout
        elif left <= 0:
            return f"standard output is blocked: its reader took nothing for {timeout:g} s", "timeout"
    return None


def _message_and_reason(error: OSError) -> tuple[str, Reason]:
    if error.errno in {errno.EPIPE, errno.ECONNRESET, errno.ENXIO, errno.EBADF}:
        return f"nobody reads standard output: {error.strerror}", "unreachable"
    return f"can't write to standard output: {error.strerror}", "server_error"


def _whole_lines(lines: Sequence[bytes], written: int) -> tuple[int, bytes]:
    """Return the number of lines written whole, and the rest of the next one, empty if none of it was written.

    The first line is the rest of a torn one, so it stays torn even if none of it was written.
    """
    position = 0
    for count, line in enumerate(lines):
        if written < position + len(line):
            return count, line[written - position :] if written > position or count == 0 else b""
        position += len(line)
    return len(lines), b""


def _ends_in_a_torn_line(fd: int) -> bool:
    """True for a file opened for appending whose last line was not finished by a killed process."""
    with suppress(OSError):
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_size and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
            reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
            try:
                return os.pread(reader, 1, status.st_size - 1) != b"\n"
            finally:
                os.close(reader)
    return False
