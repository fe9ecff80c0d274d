"""Disk, descriptors and the size of an event run out. It is logged, nothing is lost, and the bridge goes on by itself."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.sync.server import ServerConnection, serve

from bridge.journal import Journal, JournalError, JournalSettings
from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import (
    Bridge,
    Receiver,
    assert_books_balance,
    assert_order_per_resource,
    repeated,
    uuids,
    value,
)
from tests.support.waiting import until

FULL_FOR = 5.0
"""A minute, compressed: nothing in the bridge waits longer than a quarter of a second for a full disk."""


def mount(directory: Path, options: str) -> Iterator[Path]:
    directory.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", directory], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"only root may mount a disk: {done.stderr.decode().strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mount(tmp_path / "disk", "size=64m")


@pytest.fixture
def sealed_disk(tmp_path: Path) -> Iterator[Path]:
    yield from mount(tmp_path / "sealed", "size=1m,ro")


@pytest.fixture
def flow(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], tuple[Simulator, Receiver, Bridge]]]:
    """Events that flow from a simulator through a bridge to a receiver."""
    simulated = SimulatorSettings(port=0, rate=300, seed=5, record=True, wait_for_clients=1)
    with Simulator(simulated) as simulator, Receiver() as receiver:

        def start(settings: dict[str, Any]) -> tuple[Simulator, Receiver, Bridge]:
            streams = {"acme": {"url": simulator.url, "backoff": {"first": "100ms", "max": "500ms"}}}
            sinks = {"hook": {"type": "webhook", "url": receiver.url, "format": "batch"}}
            return simulator, receiver, Bridge(tmp_path / "run", {"streams": streams, "sinks": sinks, **settings})

        yield start


def check_end(simulator: Simulator, receiver: Receiver, bridge: Bridge) -> None:
    """Let the stream end, and check that all that was committed has arrived, once and in order."""
    simulator.stop()
    until(lambda: not bridge.status()["streams"]["acme"]["connected"], "all that was sent is heard")
    until(lambda: bridge.pending() == 0, "everything is delivered")
    metrics, arrived = bridge.metrics(), receiver.events()
    assert bridge.stop() == 0
    assert len(arrived) == value(metrics, "events_accepted_total") > 0
    assert repeated(arrived) == set()
    assert set(uuids(arrived)) <= set(simulator.sent_uuids())
    assert_order_per_resource(arrived, simulator.sent_uuids())
    assert_books_balance(metrics)


def fill(path: Path) -> None:
    """Leave no space at all on a disk."""
    with path.open("wb") as file, contextlib.suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(65536))


@pytest.mark.timeout(120)
def test_a_full_disk_is_said_costs_nothing_and_is_over_when_there_is_space(small_disk: Path, flow: Callable[..., Any]) -> None:
    simulator, receiver, bridge = flow({"journal": {"path": str(small_disk / "journal.db")}})
    filler = small_disk / "filler"
    with bridge:
        receiver.wait_for_more()
        assert bridge.get("/readyz")[0] == 200
        fill(filler)
        until(lambda: bridge.get("/readyz")[0] == 503, "it is not ready")
        why = bridge.get("/readyz")[1]
        assert "journal: " in why
        assert "disk is full" in why
        accepted = value(bridge.metrics(), "events_accepted_total")
        end = time.monotonic() + FULL_FOR
        while time.monotonic() < end:
            assert bridge.get("/healthz")[0] == 200
            assert bridge.get("/readyz")[0] == 503
            assert_books_balance(bridge.metrics())
            time.sleep(0.25)
        assert value(bridge.metrics(), "events_accepted_total") == accepted, "nothing is taken that has no place"
        filler.unlink()
        until(lambda: bridge.get("/readyz")[0] == 200, "it is ready again")
        until(lambda: value(bridge.metrics(), "events_accepted_total") > accepted, "it goes on by itself")
        check_end(simulator, receiver, bridge)
    log = bridge.log.read_text()
    assert log.count("the journal is in trouble") < 5, "changes only"
    assert "the journal works again" in log
    assert "Traceback" not in log


def child_of(process: int) -> int:
    """The first child of a process; 0 if there is none yet."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return int(children[0]) if children else 0


@pytest.mark.timeout(120)
def test_a_stop_works_from_the_first_moment_also_for_the_first_process_of_a_container(
    small_disk: Path, flow: Callable[..., Any]
) -> None:
    """The kernel keeps from process 1 what it has not asked for."""
    _, _, bridge = flow({"journal": {"path": str(small_disk / "journal.db")}})
    bridge.command = ["unshare", "--pid", "--fork", "--kill-child", *bridge.command]
    fill(small_disk / "filler")
    try:
        bridge.launch()
        until(lambda: bool(bridge.said("can't start yet")), "it says that it waits")
        os.kill(child_of(bridge.pid), signal.SIGTERM)
        assert bridge.wait(5) == 0
        bridge.log.write_text("")

        bridge.launch()
        until(lambda: child_of(bridge.pid) != 0, "it is there")
        while (process := child_of(bridge.pid) if bridge.process.poll() is None else 0) != 0:
            os.kill(process, signal.SIGTERM)
            time.sleep(0.01)
        assert (bridge.wait(), bridge.log.read_text()) == (0, ""), "it ended before anything had begun"
    finally:
        bridge.__exit__()


@pytest.mark.timeout(120)
def test_a_start_on_a_full_disk_waits_for_space_and_says_so(small_disk: Path, flow: Callable[..., Any]) -> None:
    simulator, receiver, bridge = flow({"journal": {"path": str(small_disk / "journal.db")}})
    filler = small_disk / "filler"
    bridge.start()
    receiver.wait_for_more()
    assert bridge.stop() == 0
    fill(filler)
    try:
        bridge.launch()
        until(lambda: bool(bridge.said("can't start yet")), "it says that it waits")
        (told,) = bridge.said("can't start yet")
        assert f"{small_disk / 'journal.db'}: the disk is full" in told["attributes"]["error"]
        until(bridge.answers, "it is alive")
        status, why = bridge.get("/readyz")
        assert (status, "there is no space for its journal" in why) == (503, True)
        filler.unlink()
        until(lambda: bool(bridge.said("is running")), "it starts when there is space")
        receiver.wait_for_more()
        check_end(simulator, receiver, bridge)
    finally:
        bridge.__exit__()


def test_a_journal_on_a_disk_that_can_not_be_written_is_explained(sealed_disk: Path, tmp_path: Path) -> None:
    with pytest.raises(
        JournalError, match=r"Read-only file system; journal\.path must be in a directory that this user can wr"
    ):
        Journal(JournalSettings(path=sealed_disk / "journal.db"))
    path = tmp_path / "journal.db"
    Journal(JournalSettings(path=path)).close()
    sealed = sealed_disk.with_name("bound")
    sealed.mkdir()
    for how in (["--bind", str(tmp_path), str(sealed)], ["-o", "remount,bind,ro", str(sealed)]):
        subprocess.run(["mount", *how], check=True)
    try:
        with pytest.raises(JournalError, match="Read-only file system"):
            Journal(JournalSettings(path=sealed / "journal.db"))
    finally:
        subprocess.run(["umount", "--lazy", sealed], check=True)
    with closing(Journal(JournalSettings(path=path))) as journal:
        assert journal.damaged_files() == [], "which is no damage"


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One that everybody may reach, unlike those of the tests."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


def test_what_this_user_may_not_write_is_explained_and_no_damage(open_directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become somebody else")
    script = (
        "import os, sys; from pathlib import Path; from bridge.journal import *\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: Journal(JournalSettings(path=Path(sys.argv[1])))\n"
        "except JournalError as error: print(error)\n"
    )
    path = open_directory / "journal.db"
    Journal(JournalSettings(path=path)).close()
    for mode, words in (
        (0o777, f"{path}: attempt to write a readonly database; journal.path must be a file that this user can write\n"),
        (0o555, f"{path}.lock: Permission denied; journal.path must be in a directory that this user can write\n"),
    ):
        open_directory.chmod(mode)
        path.with_name("journal.db.lock").unlink()
        done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines(keepends=True)[-1] == words
    assert not [file for file in open_directory.iterdir() if "damaged" in file.name]


def bridge_is_idle(bridge: Bridge) -> bool:
    """Return True if its threads sleep for most of a second."""
    process = psutil.Process(bridge.pid)
    before = process.cpu_times()
    time.sleep(1.0)
    after = process.cpu_times()
    return after.user + after.system - before.user - before.system < 0.7


@pytest.mark.timeout(120)
def test_without_descriptors_the_journal_works_on_and_the_rest_goes_on_when_there_are_some(flow: Callable[..., Any]) -> None:
    simulator, receiver, bridge = flow({})
    with bridge:
        receiver.wait_for_more()
        limits = resource.prlimit(bridge.pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{bridge.pid}/fd").iterdir()))
        resource.prlimit(bridge.pid, resource.RLIMIT_NOFILE, (max(3, used - 8), limits[1]))
        receiver.stop()
        simulator.change(disconnect_every=0.5)

        def logged(*words: str) -> bool:
            lines = bridge.log.read_text().splitlines()
            return any(all(word in line for word in words) for line in lines)

        until(lambda: logged("sink unavailable", "Too many open files"), "the sink says what it lacks")
        until(lambda: logged('"stream', "Too many open files"), "the stream says what it lacks")
        assert bridge_is_idle(bridge), "it waits, and does not spin"
        resource.prlimit(bridge.pid, resource.RLIMIT_NOFILE, limits)
        receiver.start()
        receiver.wait_for_more()
        simulator.change(disconnect_every=None)
        until(lambda: bridge.status()["streams"]["acme"]["connected"], "the stream is connected")
        check_end(simulator, receiver, bridge)
    assert [line for line in bridge.log.read_text().splitlines() if "Traceback" in line] == []


def frame(number: int, state: str = "Running") -> str:
    return (
        f'{{"type":"container","action":"update","state":"{state}","resource_uri":"/api/app/v1/container/{number}/","parents":[],'
        f'"uuid":"00000000-0000-4000-8000-{number:012d}","datetime":"2026-11-23T00:00:00Z"}}'
    )


def test_events_that_are_too_large_or_too_deep_are_kept_apart_and_the_next_one_is_unharmed(tmp_path: Path) -> None:
    sessions = 0

    def script(connection: ServerConnection) -> None:
        nonlocal sessions
        sessions += 1
        if sessions == 1:
            for text in (frame(1), frame(2, "x" * 3000), frame(3), "[" * 1500, '{"a":' * 300 + "1" + "}" * 300, frame(4)):
                connection.send(text)
            connection.send(frame(5, "x" * 6000))
        else:
            connection.send(frame(6))
        for _ in connection:
            pass

    with serve(script, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        stream = {"url": url, "namespace": "acme", "max_frame_bytes": 5000, "backoff": {"first": "50ms", "max": "100ms"}}
        settings = {
            "journal": {"path": str(tmp_path / "journal.db"), "max_event_bytes": 2000},
            "streams": {"acme": stream},
            "sinks": {"out": {"type": "stdout"}},
        }
        with Bridge(tmp_path, settings) as bridge:
            until(lambda: len(bridge.lines()) == 4, "the good ones arrive")
            metrics = bridge.metrics()
            assert bridge.stop() == 0
        server.shutdown()
    assert [line["uuid"][-1] for line in bridge.lines()] == ["1", "3", "4", "6"]
    assert value(metrics, "events_malformed_total", reason="too_large") == 1
    assert value(metrics, "events_malformed_total") == 3
    assert value(metrics, "stream_reconnects_total", reason="protocol") == 1
    assert_books_balance(metrics)
    assert "a message is larger than 5000 bytes" in bridge.log.read_text()


def test_damage_that_is_found_while_running_is_put_right_without_anybody(tmp_path: Path) -> None:
    simulated = SimulatorSettings(port=0, rate=500, record=True, wait_for_clients=1)
    with Simulator(simulated) as simulator, Receiver() as late:
        late.stop()
        sinks = {"late": {"type": "webhook", "url": late.url, "format": "batch"}, "out": {"type": "stdout"}}
        with Bridge(tmp_path, {"streams": {"acme": {"url": simulator.url}}, "sinks": sinks}) as bridge:
            until(lambda: bridge.status()["sinks"]["late"]["pending"] > 2000, "a backlog is there")
            process = bridge.pid
            for suffix in ("", "-wal"):
                with (tmp_path / f"journal.db{suffix}").open("r+b") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(min(size, 8192))
                    file.write(b"\xa5" * (size - file.tell()))
            late.start()
            until(lambda: bool(bridge.said("the bridge starts again")), "the damage is found")
            until(bridge.answers, "it is there again")
            before = late.count()
            until(lambda: late.count() > before + 1000, "events flow again")
            status, metrics = bridge.status(), bridge.metrics()
            assert bridge.pid == process
            assert len(status["journal"]["damaged_files"]) == value(metrics, "journal_damaged_files") == 1
            assert bridge.get("/readyz") == (200, "ok\n")
            assert_books_balance(metrics)
            assert bridge.stop() == 0
        assert set(uuids(late.events())) <= set(simulator.sent_uuids())
