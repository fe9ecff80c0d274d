import fcntl
import os
import pty
import resource
import select
import socket
import subprocess
import sys
import textwrap
import threading
import tty
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bridge.sink import Entry, Unavailable
from sinks.stdout import StdoutSettings, StdoutSink
from tests.support.waiting import until


def line(seq: int, size: int = 300) -> Entry:
    return Entry(seq, 0.0, b'{"n":%d,"x":"' % seq + b"x" * size + b'"}')


def text(entries: Sequence[Entry]) -> bytes:
    return b"".join(entry.json + b"\n" for entry in entries)


def opened(fd: int, timeout: float = 0.03) -> StdoutSink:
    sink = StdoutSink("log", StdoutSettings(timeout=timeout), fd=fd)
    sink.open()
    return sink


def read_all(fd: int) -> bytes:
    """Read what is there now."""
    data = b""
    while select.select([fd], [], [], 0)[0]:
        more = os.read(fd, 1 << 16)
        if not more:
            break
        data += more
    return data


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe of the smallest size: reader and writer."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_slow_reader_is_reported_as_timeout_with_the_lines_that_went_through(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    entries = [line(seq) for seq in range(50)]
    sink = opened(writer)

    with pytest.raises(Unavailable, match=r"took nothing for 0\.03 s") as unavailable:
        sink.deliver(entries)

    assert unavailable.value.reason == "timeout"
    whole, _, torn = read_all(reader).rpartition(b"\n")
    delivered = sorted(unavailable.value.delivered)
    assert delivered == list(range(len(delivered)))
    assert 0 < len(delivered) < 50
    assert whole + b"\n" == text(entries[: len(delivered)])
    assert text([entries[len(delivered)]]).startswith(torn)
    sink.close()


def test_the_lines_that_went_through_are_known_while_the_reader_is_slow(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    entries = [line(seq) for seq in range(50)]
    sink = opened(writer, timeout=20.0)
    thread = threading.Thread(target=sink.deliver, args=[entries])
    thread.start()

    until(lambda: len(sink.delivered) > 5, "some are known")
    assert (thread.is_alive(), sink.delivered) == (True, set(range(len(sink.delivered))))
    data = b""
    while len(data) < len(text(entries)):
        data += os.read(reader, 1 << 16)
    thread.join()

    assert sink.delivered == set(range(50))
    sink.close()


def test_a_torn_line_is_completed_before_anything_else_even_after_reopening(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    entries = [line(1, size=20_000), line(2)]
    sink = opened(writer)
    data = b""

    for _ in range(4):
        with pytest.raises(Unavailable) as unavailable:
            sink.deliver(entries)
        assert not unavailable.value.delivered
        sink.close()
        data += read_all(reader)
        sink.open()
    assert sink.deliver(entries) == []

    assert data + read_all(reader) == text(entries)
    sink.close()


def test_a_torn_line_is_completed_even_if_its_event_is_not_offered_again(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    sink = opened(writer)
    with pytest.raises(Unavailable):
        sink.deliver([line(1, size=5_000)])
    data = read_all(reader)

    assert sink.deliver([line(2)]) == []

    assert data + read_all(reader) == text([line(1, size=5_000), line(2)])
    sink.close()


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(min_value=0, max_value=9000), min_size=1, max_size=12),
    reads=st.lists(st.integers(min_value=1000, max_value=6000), min_size=1),
)
def test_however_a_reader_reads_each_line_arrives_once_and_whole(sizes: list[int], reads: list[int]) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    entries = [line(seq, size) for seq, size in enumerate(sizes)]
    sink = opened(writer, timeout=0.001)
    data, waiting = b"", entries
    try:
        for turn in range(200):
            try:
                assert sink.deliver(waiting) == []
                break
            except Unavailable as unavailable:
                waiting = [entry for entry in waiting if entry.seq not in unavailable.delivered]
            data += os.read(reader, reads[turn % len(reads)])
        data += read_all(reader)
    finally:
        sink.close()
        os.close(reader)
        os.close(writer)

    assert data == text(entries)


def test_a_closed_pipe_is_reported_as_unreachable() -> None:
    reader, writer = os.pipe()
    sink = opened(writer)
    os.close(reader)

    with pytest.raises(Unavailable, match="nobody reads standard output") as unavailable:
        sink.deliver([line(1)])

    assert unavailable.value.reason == "unreachable"
    assert not unavailable.value.delivered
    sink.close()
    with pytest.raises(Unavailable, match="nobody reads standard output"):
        sink.open()
    os.close(writer)


def test_the_shared_description_stays_blocking(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    sink = opened(writer)

    with pytest.raises(Unavailable):
        sink.deliver([line(1, size=10_000)])

    assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
    sink.close()
    os.fstat(writer)


def test_a_socket_is_written_to_without_blocking_for_ever() -> None:
    near, far = socket.socketpair()
    entries = [line(seq) for seq in range(5000)]
    sink = opened(near.fileno())

    with pytest.raises(Unavailable) as unavailable:
        sink.deliver(entries)
    data = read_all(far.fileno())
    waiting = [entry for entry in entries if entry.seq not in unavailable.value.delivered]
    while True:
        try:
            assert sink.deliver(waiting) == []
            break
        except Unavailable as again:
            waiting = [entry for entry in waiting if entry.seq not in again.delivered]
            data += read_all(far.fileno())

    assert unavailable.value.reason == "timeout"
    assert data + read_all(far.fileno()) == text(entries)
    assert near.getblocking()
    sink.close()
    near.close()
    far.close()


def test_a_terminal_that_is_not_read_is_reported_as_timeout() -> None:
    master, terminal = pty.openpty()
    tty.setraw(terminal)
    entries = [line(seq) for seq in range(1000)]
    sink = opened(terminal)

    with pytest.raises(Unavailable) as unavailable:
        sink.deliver(entries)

    assert unavailable.value.reason == "timeout"
    delivered = len(unavailable.value.delivered)
    assert read_all(master).startswith(text(entries[:delivered]))
    sink.close()
    os.close(master)
    os.close(terminal)


def test_a_file_that_can_not_grow_is_reported_and_its_torn_line_completed_later(tmp_path: Path) -> None:
    file = (tmp_path / "events").open("wb")
    entries = [line(seq) for seq in range(20)]
    sink = opened(file.fileno())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(Unavailable, match="can't write to standard output: File too large") as unavailable:
            sink.deliver(entries)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert unavailable.value.reason == "server_error"
    assert sorted(unavailable.value.delivered) == [0, 1, 2]
    assert (tmp_path / "events").read_bytes() == text(entries)[:1000]
    assert sink.deliver(entries[3:]) == []
    assert (tmp_path / "events").read_bytes() == text(entries)
    file.close()


def test_a_full_device_is_reported() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    sink = opened(full)

    with pytest.raises(Unavailable, match="No space left on device") as unavailable:
        sink.deliver([line(1)])

    assert unavailable.value.reason == "server_error"
    sink.close()
    os.close(full)


@pytest.mark.parametrize(
    ("before", "between"), [(b"", b""), (b'{"n":0}\n', b""), (b'{"n":0', b"\n")], ids=["empty", "whole", "torn"]
)
def test_a_line_that_a_killed_process_left_torn_is_ended_first(tmp_path: Path, before: bytes, between: bytes) -> None:
    path = tmp_path / "events"
    path.write_bytes(before)
    with path.open("ab") as file:
        sink = opened(file.fileno())
        assert sink.deliver([line(1)]) == []
        sink.close()
        sink.open()
        assert sink.deliver([line(2)]) == []

    assert path.read_bytes() == before + between + text([line(1), line(2)])


def test_a_closed_descriptor_is_reported() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)

    with pytest.raises(Unavailable, match="Bad file descriptor"):
        StdoutSink("log", StdoutSettings(), fd=writer).open()


def test_it_can_not_deliver_before_it_was_opened() -> None:
    with pytest.raises(Unavailable, match="not open"):
        StdoutSink("log", StdoutSettings()).deliver([line(1)])


REAL_STDOUT = """
    import sys
    from bridge.sink import Entry, Unavailable
    from sinks.stdout import StdoutSettings, StdoutSink

    sink = StdoutSink("log", StdoutSettings())
    try:
        sink.open()
        for seq in range(100_000):
            sink.deliver([Entry(seq, 0.0, b'{"n":%d}' % seq)])
    except Unavailable as unavailable:
        print(unavailable.reason, unavailable, file=sys.stderr)
"""


def test_a_real_reader_that_leaves_does_not_end_the_process() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(REAL_STDOUT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    first = child.stdout.readline()
    child.stdout.close()
    assert child.stderr is not None
    said = child.stderr.read()
    child.stderr.close()

    assert child.wait(30) == 0
    assert first == b'{"n":0}\n'
    assert said == b"unreachable nobody reads standard output: Broken pipe\n"


def test_a_standard_output_that_was_closed_at_the_start_is_not_mistaken_for_another_file() -> None:
    command = 'exec "$0" -c "$1" >&-'
    child = subprocess.run(
        ["sh", "-c", command, sys.executable, textwrap.dedent(REAL_STDOUT)], stderr=subprocess.PIPE, check=True, timeout=30
    )

    assert child.stderr == b"unreachable standard output was closed when the process started\n"


def test_the_timeout_is_a_duration_above_zero() -> None:
    assert StdoutSettings(timeout="500ms").timeout == 0.5  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        StdoutSettings(timeout=0)
