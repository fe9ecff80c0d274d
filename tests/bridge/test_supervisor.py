"""Real threads over a real journal; what they run is made up, and waits for conditions instead of sleeping."""

import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from bridge.forwarder import Forwarder, SinkStatus
from bridge.journal import Closed, Journal, JournalError, JournalSettings
from bridge.metrics import Metrics, SinkMetrics, StreamMetrics
from bridge.sink import Entry, Failure, SinkSettings, Unavailable
from bridge.source import Ended, Read, SourceSettings
from bridge.stream import Stream, StreamStatus
from bridge.supervisor import Requests, Supervisor
from tests.support.messages import message
from tests.support.waiting import until

DEADLINE = 20.0


# --- helpers -----------------------------------------------------------------------------------------------------------


class Diary:
    """What happened, in order, over all threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.entries: list[str] = []

    def note(self, entry: str) -> None:
        with self._changed:
            self.entries.append(entry)
            self._changed.notify_all()

    def wait_for(self, entry: str, times: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.entries.count(entry) >= times, DEADLINE), (entry, self.entries)


class FakeStream:
    """A stream whose session lasts until `stop`, after the steps that were planned."""

    def __init__(
        self, diary: Diary, *steps: Callable[[], float], name: str = "acme", label: str = "", connected: bool = True
    ) -> None:
        self.name = name
        self.label = label or name
        self.status = StreamStatus(connected=connected, since=0.0)
        self._diary = diary
        self._steps = deque(steps)
        self._stopping = threading.Event()

    def step(self) -> float:
        self._diary.note(f"{self.label} step")
        if self._steps:
            return self._steps.popleft()()
        assert self._stopping.wait(DEADLINE)
        self._diary.note(f"{self.label} ended")
        self.status = StreamStatus(connected=False, since=0.0)
        return 0.0

    def start_reading(self) -> None:
        self._diary.note(f"{self.label} takes over")

    def stop(self) -> None:
        self._diary.note(f"{self.label} stop")
        self._stopping.set()


class FakeForwarder:
    """A forwarder that has something to deliver for as long as steps are planned, and is idle then."""

    def __init__(self, diary: Diary, *steps: Callable[[], float], name: str = "audit", label: str = "") -> None:
        self.name = name
        self.label = label or name
        self.busy = False
        self.status = SinkStatus(up=True, since=0.0)
        self._diary = diary
        self._steps = deque(steps)

    def step(self) -> float:
        self._diary.note(f"{self.label} step")
        self.busy = bool(self._steps)
        return self._steps.popleft()() if self._steps else 0.01

    def inherit_from(self, other: "FakeForwarder") -> None:
        self._diary.note(f"{self.label} takes over from {other.label}")

    def close(self) -> None:
        self._diary.note(f"{self.label} close")


class Watched(Journal):
    """A journal that notes what the supervisor does with it."""

    def __init__(self, path: Path, diary: Diary) -> None:
        self._diary = diary
        self.bugs: deque[Exception] = deque()
        self.unforgettable = 0
        self.spoiled = False
        super().__init__(JournalSettings(path=path, durability="normal"))

    @property
    def damaged(self) -> bool:
        return self.spoiled

    def prune(self) -> bool:
        self._diary.note("prune")
        if self.bugs:
            raise self.bugs.popleft()
        return super().prune()

    def forget_sinks_except(self, names: set[str]) -> None:
        self._diary.note("forget")
        if self.unforgettable:
            self.unforgettable -= 1
            raise JournalError("disk I/O error")
        super().forget_sinks_except(names)

    def close(self) -> None:
        self._diary.note("journal close")
        super().close()


class Count:
    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        self.value += 1


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
def journal(tmp_path: Path, diary: Diary) -> Iterator[Watched]:
    opened = Watched(tmp_path / "journal.db", diary)
    yield opened
    opened.close()


class Bench:
    """A supervisor that runs in a thread of its own."""

    def __init__(
        self,
        journal: Journal,
        streams: Sequence[FakeStream | Stream] = (),
        forwarders: Sequence[FakeForwarder | Forwarder] = (),
        grace: float = DEADLINE,
    ) -> None:
        self.restarts = Count()
        self.all_ended: bool | None = None
        self.requests = Requests()
        self.supervisor = Supervisor(
            journal,
            cast("Sequence[Stream]", streams),
            cast("Sequence[Forwarder]", forwarders),
            restarts=self.restarts,
            grace=grace,
            requests=self.requests,
        )
        self.reloads = 0
        self._changes: deque[Callable[[Any], object]] = deque()
        self._changed = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.all_ended = self.supervisor.run(reload=self._reload)

    def _reload(self) -> None:
        self.reloads += 1
        while self._changes:
            self._changes.popleft()(self.supervisor)
            self._changed.release()

    def running(self) -> Any:
        """What runs, to be compared with what is made up."""
        return self.supervisor.running()

    def change(self, change: Callable[[Any], object]) -> None:
        """Let the main thread do something with the supervisor, as a reload does; return when it has."""
        self._changes.append(change)
        self.requests.put("reload")
        assert self._changed.acquire(timeout=DEADLINE)

    def start(self) -> "Bench":
        self._thread.start()
        return self

    def join(self) -> bool:
        """Wait until `run` has returned; tell what it said."""
        self._thread.join(2 * DEADLINE)
        assert not self._thread.is_alive()
        assert self.all_ended is not None
        return self.all_ended

    def stop(self) -> bool:
        self.supervisor.stop()
        return self.join()


def note(diary: Diary, entry: str, seconds: float = 0.0) -> Callable[[], float]:
    """A step that notes something."""

    def step() -> float:
        diary.note(entry)
        return seconds

    return step


def fail(error: BaseException) -> Callable[[], float]:
    """A step with a bug."""

    def step() -> float:
        raise error

    return step


# --- running -----------------------------------------------------------------------------------------------------------


def test_everything_runs_in_a_thread_of_its_own(journal: Watched, diary: Diary) -> None:
    def who() -> float:
        diary.note(threading.current_thread().name)
        return 0.0

    streams = [FakeStream(diary, who, name=name) for name in ("acme", "other")]
    forwarders = [FakeForwarder(diary, who, name=name) for name in ("audit", "home")]
    bench = Bench(journal, streams, forwarders).start()

    for name in ("stream-acme", "stream-other", "sink-audit", "sink-home"):
        diary.wait_for(name)
    assert bench.stop()


def test_a_step_is_followed_by_the_next_one(journal: Watched, diary: Diary) -> None:
    bench = Bench(journal, [FakeStream(diary, note(diary, "one"), note(diary, "two", 0.001))], []).start()

    diary.wait_for("acme step", times=3)
    assert bench.stop()
    assert [entry for entry in diary.entries if entry in {"one", "two"}] == ["one", "two"]


def test_the_main_thread_prunes_and_ticks(journal: Watched, diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.supervisor._TICK_SECONDS", 0.01)
    bench = Bench(journal, [FakeStream(diary)])
    before = bench.supervisor.last_tick
    bench.start()

    diary.wait_for("prune")
    assert bench.supervisor.last_tick > before
    assert bench.stop()


def test_a_run_may_be_limited_in_time(journal: Watched, diary: Diary) -> None:
    supervisor = Bench(journal, [FakeStream(diary)], [FakeForwarder(diary)]).supervisor

    assert supervisor.run(seconds=0.05)
    assert {"acme ended", "audit close", "journal close"} <= set(diary.entries)


def test_a_process_without_streams_or_sinks_stops_as_well(journal: Watched) -> None:
    assert Bench(journal).start().stop()


def test_stop_may_come_before_run(journal: Watched, diary: Diary) -> None:
    bench = Bench(journal, [FakeStream(diary)], [FakeForwarder(diary)])
    bench.supervisor.stop()
    bench.supervisor.stop()

    assert bench.supervisor.run()


def test_a_damaged_journal_ends_it_in_order_without_anybody_asking(journal: Watched, diary: Diary) -> None:
    supervisor = Bench(journal, [FakeStream(diary)], [FakeForwarder(diary)]).supervisor
    journal.spoiled = True

    assert supervisor.run()

    assert [entry for entry in diary.entries if entry in {"acme ended", "audit close", "journal close"}][-1] == "journal close"
    assert not supervisor.asked_to_stop
    assert not supervisor.asked_to_stop_within(0)
    supervisor.stop()
    assert supervisor.asked_to_stop_within(0)


def test_a_signal_stops_it(journal: Watched, diary: Diary) -> None:
    supervisor = Bench(journal, [FakeStream(diary, note(diary, "running"))], [FakeForwarder(diary)]).supervisor
    before = signal.signal(signal.SIGUSR1, lambda *_: supervisor.stop())

    def kill() -> None:
        diary.wait_for("running")
        os.kill(os.getpid(), signal.SIGUSR1)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        assert supervisor.run()
    finally:
        killer.join(DEADLINE)
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_may_come_at_any_moment(journal: Watched, diary: Diary) -> None:
    supervisor = Bench(journal, [FakeStream(diary)], [FakeForwarder(diary)]).supervisor
    interrupted: list[str] = []

    def interrupt(frame: FrameType, *_: object) -> Any:
        """What a signal handler would do, before every line, also while the interrupted thread holds a lock."""
        sys.settrace(None)
        interrupted.append(frame.f_code.co_name)
        supervisor.stop()
        sys.settrace(interrupt)
        return interrupt

    def run() -> None:
        sys.settrace(interrupt)
        supervisor.run()
        sys.settrace(None)
        diary.note("all over")

    threading.Thread(target=run, daemon=True).start()

    diary.wait_for("all over")
    assert {"run", "_shut_down", "join"} <= set(interrupted)


# --- bugs --------------------------------------------------------------------------------------------------------------


def test_a_thread_that_died_of_a_bug_is_started_again_and_counted(
    journal: Watched, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.threads._RESTART_SECONDS", (0.001, 0.001))
    stream = FakeStream(diary, fail(ZeroDivisionError()), fail(KeyError()), note(diary, "stream lives"))
    forwarder = FakeForwarder(diary, fail(RuntimeError()), note(diary, "forwarder lives"))
    bench = Bench(journal, [stream], [forwarder])

    with capture_logs() as logs:
        bench.start()
        diary.wait_for("stream lives")
        diary.wait_for("forwarder lives")

    assert bench.restarts.value == 3
    died = [(line["log_level"], line["exc_info"], line["thread"]) for line in logs if "died" in line["event"]]
    assert sorted(died) == [("error", True, "sink-audit")] + [("error", True, "stream-acme")] * 2
    assert bench.stop()


def test_the_bug_of_one_thread_does_not_delay_another(journal: Watched, diary: Diary) -> None:
    buggy = FakeStream(diary, *[fail(ZeroDivisionError())] * 1000, name="buggy")
    bench = Bench(journal, [buggy, FakeStream(diary, *[note(diary, "heard")] * 10)]).start()

    diary.wait_for("heard", times=10)
    assert bench.stop()


def test_a_bug_in_pruning_ends_nothing(journal: Watched, diary: Diary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.supervisor._TICK_SECONDS", 0.01)
    journal.bugs.append(ZeroDivisionError())
    bench = Bench(journal, [FakeStream(diary)])

    with capture_logs() as logs:
        bench.start()
        diary.wait_for("prune", times=2)

    assert [(line["log_level"], line["duty"]) for line in logs if "duty" in line] == [("error", "prune")]
    assert bench.stop()


def test_a_closed_journal_is_the_end_of_a_thread_and_no_bug(journal: Watched, diary: Diary) -> None:
    bench = Bench(journal, [FakeStream(diary, fail(Closed()))], [FakeForwarder(diary, fail(Closed()))]).start()

    diary.wait_for("audit close")
    assert bench.stop()
    assert bench.restarts.value == 0
    assert diary.entries.count("acme step") == 1


def test_a_journal_that_can_not_be_read_now_is_no_bug_and_asked_again(
    journal: Watched, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.threads._JOURNAL_RETRY_SECONDS", 0.001)
    forwarder = FakeForwarder(diary, *[fail(JournalError("disk I/O error"))] * 3, note(diary, "forwarder lives"))
    bench = Bench(journal, [], [forwarder])

    with capture_logs() as logs:
        bench.start()
        diary.wait_for("forwarder lives")

    assert [line for line in logs if "exc_info" in line] == []
    assert bench.restarts.value == 0
    assert bench.stop()


# --- stopping ----------------------------------------------------------------------------------------------------------


def test_it_stops_in_order(journal: Watched, diary: Diary) -> None:
    bench = Bench(journal, [FakeStream(diary)], [FakeForwarder(diary)]).start()
    diary.wait_for("acme step")
    diary.wait_for("audit step")

    assert bench.stop()

    order = [diary.entries.index(entry) for entry in ("acme stop", "acme ended", "audit close", "journal close")]
    assert order == sorted(order)
    assert diary.entries.count("audit close") == 1


def test_all_streams_are_told_to_stop_before_any_is_waited_for(journal: Watched, diary: Diary) -> None:
    class Last(FakeStream):
        """A stream that ends when the other one was told to."""

        def stop(self) -> None:
            self._diary.note(f"{self.name} stop")
            threading.Thread(target=self._end).start()

        def _end(self) -> None:
            self._diary.wait_for("other stop")
            self._stopping.set()

    assert Bench(journal, [Last(diary), FakeStream(diary, name="other")]).start().stop()


def test_what_is_busy_goes_on_until_all_is_delivered(journal: Watched, diary: Diary) -> None:
    def first() -> float:
        diary.note("first delivery")
        diary.wait_for("acme ended")
        return 0.0

    forwarder = FakeForwarder(diary, first, *[note(diary, "another delivery")] * 50)
    bench = Bench(journal, [FakeStream(diary)], [forwarder]).start()
    diary.wait_for("first delivery")

    assert bench.stop()
    assert diary.entries.count("another delivery") == 50


def test_a_step_that_began_before_the_streams_ended_is_not_the_last(journal: Watched, diary: Diary) -> None:
    class Unlucky(FakeForwarder):
        """It has just looked and found nothing, when the last event comes."""

        def step(self) -> float:
            self._diary.note("audit step")
            self.busy = False
            if self._diary.entries.count("audit step") == 1:
                self._diary.wait_for("acme ended")
                # The supervisor goes on as soon as the stream's thread has ended.
                for thread in threading.enumerate():
                    if thread.name == "stream-acme":
                        thread.join(DEADLINE)
                self._diary.note("last event comes")
            return 0.0

    bench = Bench(journal, [FakeStream(diary)], [Unlucky(diary)]).start()
    diary.wait_for("audit step")

    assert bench.stop()
    assert "audit step" in diary.entries[diary.entries.index("last event comes") :]


def test_a_sink_that_waits_for_its_next_try_gets_one_and_is_not_waited_for(journal: Watched, diary: Diary) -> None:
    class Down(FakeForwarder):
        """Something to deliver, and nobody who takes it."""

        def step(self) -> float:
            self._diary.note("audit step")
            self.busy, self.status = True, SinkStatus(up=False, since=0.0, reason="unreachable")
            return 3600.0

    bench = Bench(journal, [FakeStream(diary)], [Down(diary)], grace=3600.0).start()
    diary.wait_for("audit step")

    assert bench.stop()
    assert diary.entries.count("audit step") <= 3


def test_a_forwarder_with_a_bug_is_not_stepped_in_a_hurry_while_it_stops(
    journal: Watched, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.threads._RESTART_SECONDS", (3600.0, 3600.0))
    monkeypatch.setattr("bridge.threads.random.uniform", lambda _, high: high)
    forwarder = FakeForwarder(diary, *[fail(ZeroDivisionError())] * 1000)
    bench = Bench(journal, [FakeStream(diary)], [forwarder], grace=0.3).start()
    diary.wait_for("audit step")

    assert bench.stop()
    assert diary.entries.count("audit step") <= 3


@pytest.fixture
def _quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.supervisor._LAST_SECONDS", 0.05)


@pytest.mark.usefixtures("_quick_end")
def test_a_sink_that_hangs_is_left_behind_when_the_grace_is_over(journal: Watched, diary: Diary) -> None:
    released = threading.Event()

    def hang() -> float:
        diary.note("hangs")
        assert released.wait(DEADLINE)
        return 0.0

    hanging, healthy = FakeForwarder(diary, hang), FakeForwarder(diary, *[note(diary, "delivered")] * 20, name="home")
    bench = Bench(journal, [FakeStream(diary)], [hanging, healthy], grace=1.0).start()
    diary.wait_for("hangs")
    try:
        assert not bench.stop()
        assert diary.entries.count("delivered") == 20
        assert "home close" in diary.entries
        assert "audit close" not in diary.entries
        assert "journal close" in diary.entries
    finally:
        released.set()
    diary.wait_for("audit close")


@pytest.mark.usefixtures("_quick_end")
def test_a_stream_that_does_not_stop_leaves_the_sinks_half_of_the_grace(journal: Watched, diary: Diary) -> None:
    released = threading.Event()

    def hang() -> float:
        diary.note("hangs")
        assert released.wait(DEADLINE)
        return 0.0

    def first() -> float:
        diary.note("delivery")
        diary.wait_for("acme stop")
        return 0.0

    bench = Bench(
        journal, [FakeStream(diary, hang)], [FakeForwarder(diary, first, *[note(diary, "delivery")] * 10)], grace=1.0
    ).start()
    diary.wait_for("hangs")
    diary.wait_for("delivery")
    try:
        assert not bench.stop()
        assert diary.entries.count("delivery") == 11
        assert "audit close" in diary.entries
    finally:
        released.set()


def test_a_process_that_drains_for_long_is_alive(journal: Watched, diary: Diary) -> None:
    ticks: list[float] = []

    def next_tick() -> float:
        before = bench.supervisor.last_tick
        until(lambda: bench.supervisor.last_tick != before)
        return bench.supervisor.last_tick - before

    def delivery() -> float:
        diary.note("delivery")
        diary.wait_for("acme ended")
        ticks.extend(next_tick() for _ in range(3))
        return 0.0

    bench = Bench(journal, [FakeStream(diary)], [FakeForwarder(diary, delivery)]).start()
    diary.wait_for("delivery")

    assert bench.stop()
    assert len(ticks) == 3
    assert all(tick > 0 for tick in ticks)


# --- changes while it runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def _quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.supervisor._TICK_SECONDS", 0.005)
    monkeypatch.setattr("bridge.threads._OVERLAP_SECONDS", 0.02)
    monkeypatch.setattr("bridge.threads._CONNECT_SECONDS", 3600.0)


def let_ticks_pass(diary: Diary) -> None:
    """Wait for a few ticks."""
    diary.wait_for("prune", times=diary.entries.count("prune") + 4)


def connect(stream: FakeStream) -> None:
    stream.status = StreamStatus(connected=True, since=0.0)


@pytest.mark.usefixtures("_quick_ticks")
def test_the_session_of_a_changed_stream_ends_when_the_new_one_is_there(journal: Watched, diary: Diary) -> None:
    old, new = FakeStream(diary, label="old"), FakeStream(diary, label="new", connected=False)
    other = FakeStream(diary, name="other")
    bench = Bench(journal, [old, other]).start()
    bench.change(lambda supervisor: supervisor.put_stream(new))
    diary.wait_for("new step")
    let_ticks_pass(diary)

    assert "old stop" not in diary.entries
    assert list(bench.running().streams) == [old, other]
    connect(new)
    assert list(bench.running().streams) == [new, other]
    diary.wait_for("new takes over")
    assert diary.entries.index("old ended") < diary.entries.index("new takes over")
    assert "other stop" not in diary.entries
    assert bench.stop()
    assert diary.entries.count("new ended") == 1


@pytest.mark.usefixtures("_quick_ticks")
@pytest.mark.parametrize("patience", [0.0, 3600.0])
def test_a_new_session_is_read_when_the_old_one_has_committed_what_it_has_read_or_hangs(
    journal: Watched, diary: Diary, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr("bridge.threads._END_SECONDS", patience)
    released = threading.Event()

    def commit() -> float:
        assert released.wait(DEADLINE)
        diary.note("committed")
        return 0.0

    old, new = FakeStream(diary, commit, label="old"), FakeStream(diary, label="new")
    bench = Bench(journal, [old]).start()
    bench.change(lambda supervisor: supervisor.put_stream(new))
    diary.wait_for("old stop")
    let_ticks_pass(diary)
    assert ("new takes over" in diary.entries) is (patience == 0.0)
    old.status = StreamStatus(connected=False, since=0.0)
    released.set()
    diary.wait_for("new takes over")
    assert bench.stop()


@pytest.mark.usefixtures("_quick_ticks")
def test_both_sessions_of_a_changed_stream_are_open_for_a_while(
    journal: Watched, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.threads._OVERLAP_SECONDS", 3600.0)
    monkeypatch.setattr("bridge.threads._CONNECT_SECONDS", 0.0)
    old, new = FakeStream(diary, label="old"), FakeStream(diary, label="new")
    bench = Bench(journal, [old]).start()
    bench.change(lambda supervisor: supervisor.put_stream(new))
    let_ticks_pass(diary)

    assert "old stop" not in diary.entries
    assert bench.stop()
    assert {"old ended", "new ended"} <= set(diary.entries)


@pytest.mark.usefixtures("_quick_ticks")
def test_a_changed_stream_that_does_not_connect_in_time_gets_no_more_patience(
    journal: Watched, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.threads._CONNECT_SECONDS", 0.02)
    old, new = FakeStream(diary, label="old"), FakeStream(diary, label="new", connected=False)
    bench = Bench(journal, [old]).start()
    with capture_logs() as logs:
        bench.change(lambda supervisor: supervisor.put_stream(new))
        diary.wait_for("new takes over")

    assert [line["stream"] for line in logs if line["log_level"] == "warning"] == ["acme"]
    assert list(bench.running().streams) == [new]
    assert bench.stop()


@pytest.mark.usefixtures("_quick_ticks")
def test_an_old_session_that_is_not_there_covers_nothing(journal: Watched, diary: Diary) -> None:
    old, new = FakeStream(diary, label="old", connected=False), FakeStream(diary, label="new", connected=False)
    bench = Bench(journal, [old]).start()
    bench.change(lambda supervisor: supervisor.put_stream(new))

    diary.wait_for("old ended")
    assert bench.stop()


@pytest.mark.usefixtures("_quick_ticks")
@pytest.mark.parametrize("connected", [True, False])
def test_a_stream_that_changes_again_while_it_changes_is_covered_by_the_first(
    journal: Watched, diary: Diary, monkeypatch: pytest.MonkeyPatch, *, connected: bool
) -> None:
    monkeypatch.setattr("bridge.threads._OVERLAP_SECONDS", 3600.0)
    first, second = FakeStream(diary, label="first"), FakeStream(diary, label="second", connected=connected)
    third = FakeStream(diary, label="third", connected=False)
    bench = Bench(journal, [first]).start()
    bench.change(lambda supervisor: supervisor.put_stream(second))
    let_ticks_pass(diary)
    monkeypatch.setattr("bridge.threads._OVERLAP_SECONDS", 0.02)
    bench.change(lambda supervisor: supervisor.put_stream(third))
    diary.wait_for("second ended")
    let_ticks_pass(diary)

    assert not {"first stop", "second takes over", "third takes over"} & set(diary.entries)
    assert list(bench.running().streams) == [first]
    connect(third)
    diary.wait_for("first ended")
    assert list(bench.running().streams) == [third]
    assert bench.stop()


@pytest.mark.usefixtures("_quick_ticks")
def test_a_stream_that_changes_again_when_the_first_is_gone_is_covered_by_the_second(journal: Watched, diary: Diary) -> None:
    first, second = FakeStream(diary, label="first"), FakeStream(diary, label="second", connected=False)
    third = FakeStream(diary, label="third", connected=False)
    bench = Bench(journal, [first]).start()
    bench.change(lambda supervisor: supervisor.put_stream(second))

    def lose_and_change(supervisor: Supervisor) -> None:
        first.status = StreamStatus(connected=False, since=0.0)
        connect(second)
        supervisor.put_stream(cast("Stream", third))

    bench.change(lose_and_change)
    diary.wait_for("first ended")
    diary.wait_for("second takes over")
    let_ticks_pass(diary)
    assert list(bench.running().streams) == [second]
    assert "third takes over" not in diary.entries
    connect(third)
    diary.wait_for("third takes over")
    assert bench.stop()


@pytest.mark.usefixtures("_quick_ticks")
def test_a_stream_that_is_dropped_ends_with_all_its_sessions_and_nothing_else_does(journal: Watched, diary: Diary) -> None:
    old, new, other = FakeStream(diary, label="old"), FakeStream(diary, label="new"), FakeStream(diary, name="other")
    bench = Bench(journal, [old, other]).start()
    bench.change(lambda supervisor: [supervisor.put_stream(new), supervisor.drop_stream("acme")])

    diary.wait_for("old ended")
    diary.wait_for("new ended")
    assert list(bench.running().streams) == [other]
    assert "other stop" not in diary.entries
    assert bench.stop()


def test_a_new_stream_and_a_new_sink_run_at_once(journal: Watched, diary: Diary) -> None:
    bench = Bench(journal).start()
    stream, forwarder = FakeStream(diary), FakeForwarder(diary)
    bench.change(lambda supervisor: [supervisor.put_stream(stream), supervisor.put_sink(forwarder)])

    diary.wait_for("acme step")
    diary.wait_for("audit step")
    assert bench.running() == ([stream], [forwarder], {})
    assert bench.stop()


class Hanging(FakeForwarder):
    """A forwarder whose delivery returns when the test says so."""

    def __init__(self, diary: Diary, label: str) -> None:
        self.released = threading.Event()
        super().__init__(diary, self._hang, label=label)

    def _hang(self) -> float:
        self._diary.note("hangs")
        assert self.released.wait(DEADLINE)
        return 0.0


def test_a_changed_sink_goes_on_when_the_delivery_under_way_has_returned(journal: Watched, diary: Diary) -> None:
    old, new, other = Hanging(diary, "old"), FakeForwarder(diary, label="new"), FakeForwarder(diary, name="other")
    bench = Bench(journal, (), [old, other]).start()
    diary.wait_for("hangs")
    bench.change(lambda supervisor: supervisor.put_sink(new))

    diary.wait_for("other step", times=diary.entries.count("other step") + 3)
    assert bench.running() == ([], [old, other], {"audit": "to be replaced"})
    assert "new step" not in diary.entries
    old.released.set()
    diary.wait_for("new step")
    assert diary.entries.index("old close") < diary.entries.index("new takes over from old") < diary.entries.index("new step")
    assert diary.entries.count("old step") == 1
    assert bench.running() == ([], [new, other], {})
    assert "other close" not in diary.entries
    assert bench.stop()


def test_of_a_sink_that_changes_while_it_hangs_only_the_last_version_begins(journal: Watched, diary: Diary) -> None:
    old, second, third = Hanging(diary, "old"), FakeForwarder(diary, label="second"), FakeForwarder(diary, label="third")
    bench = Bench(journal, (), [old]).start()
    diary.wait_for("hangs")
    bench.change(lambda supervisor: supervisor.put_sink(second))
    bench.change(lambda supervisor: supervisor.put_sink(third))
    old.released.set()

    diary.wait_for("third step")
    assert bench.stop()
    assert "second step" not in diary.entries


def test_a_sink_that_was_dropped_is_forgotten_when_its_delivery_has_returned(journal: Watched, diary: Diary) -> None:
    for name in ("audit", "other"):
        journal.add_sink(name, "latest")
    old, other = Hanging(diary, "old"), FakeForwarder(diary, name="other")
    bench = Bench(journal, (), [old, other]).start()
    diary.wait_for("hangs")
    bench.change(lambda supervisor: supervisor.drop_sink("audit"))

    assert bench.running().stopping == {"audit": "to be removed"}
    assert journal.counters().sinks.keys() == {"audit", "other"}
    with capture_logs() as logs:
        old.released.set()
        until(lambda: journal.counters().sinks.keys() == {"other"})
        bench.change(lambda supervisor: supervisor)
    assert [(line["sink"], line["pending_events"]) for line in logs if "forgotten" in line["event"]] == [("audit", 0)]
    assert bench.running() == ([], [other], {})
    assert bench.stop()


def test_a_sink_that_is_dropped_while_its_replacement_waits_does_not_begin_again(journal: Watched, diary: Diary) -> None:
    journal.add_sink("audit", "latest")
    old, new = Hanging(diary, "old"), FakeForwarder(diary, label="new")
    bench = Bench(journal, (), [old]).start()
    diary.wait_for("hangs")
    bench.change(lambda supervisor: supervisor.put_sink(new))
    bench.change(lambda supervisor: supervisor.drop_sink("audit"))
    assert bench.running().stopping == {"audit": "to be removed"}
    old.released.set()
    until(lambda: not journal.counters().sinks)

    assert bench.stop()
    assert "new step" not in diary.entries


def test_a_sink_that_comes_back_before_it_has_ended_goes_on_from_its_cursor(journal: Watched, diary: Diary) -> None:
    journal.add_sink("audit", "latest")
    old, new = Hanging(diary, "old"), FakeForwarder(diary, label="new")
    bench = Bench(journal, (), [old]).start()
    diary.wait_for("hangs")
    bench.change(lambda supervisor: supervisor.drop_sink("audit"))
    bench.change(lambda supervisor: supervisor.put_sink(new))
    with capture_logs() as logs:
        old.released.set()
        diary.wait_for("new step")

    assert bench.stop()
    assert "audit" in journal.counters().sinks
    assert not [line for line in logs if "forgotten" in line["event"]]


@pytest.mark.usefixtures("_quick_ticks")
def test_a_sink_is_forgotten_later_if_the_disk_fails_now(journal: Watched, diary: Diary) -> None:
    journal.add_sink("audit", "latest")
    journal.unforgettable = 3
    bench = Bench(journal, (), [FakeForwarder(diary)]).start()
    with capture_logs() as logs:
        bench.change(lambda supervisor: supervisor.drop_sink("audit"))
        until(lambda: not journal.counters().sinks)
        let_ticks_pass(diary)

    assert journal.unforgettable == 0
    assert diary.entries.count("forget") == 4
    assert "duty" not in {key for line in logs for key in line}
    assert bench.stop()


@pytest.mark.usefixtures("_quick_end")
def test_what_waits_for_a_sink_that_hangs_does_not_begin_when_the_process_stops(journal: Watched, diary: Diary) -> None:
    old, new = Hanging(diary, "old"), FakeForwarder(diary, label="new")
    bench = Bench(journal, (), [old], grace=0.1).start()
    diary.wait_for("hangs")
    bench.change(lambda supervisor: supervisor.put_sink(new))
    try:
        assert not bench.stop()
    finally:
        old.released.set()
    diary.wait_for("old close")
    assert "new step" not in diary.entries


def test_many_requests_for_a_reload_are_one(journal: Watched, diary: Diary) -> None:
    bench = Bench(journal, [FakeStream(diary)])
    for _ in range(20):
        bench.requests.put("reload")
    bench.start()
    diary.wait_for("prune")

    assert bench.reloads == 1
    assert bench.stop()


def test_there_is_no_reload_any_more_when_the_process_is_to_stop(journal: Watched, diary: Diary) -> None:
    bench = Bench(journal, [FakeStream(diary)])
    for request in ("reload", "stop", "reload"):
        bench.requests.put(cast("Any", request))

    assert bench.start().join()
    assert bench.reloads == 0


# --- the real thing ----------------------------------------------------------------------------------------------------


class Source:
    """One session that brings its events, one a read, and then lasts until it is aborted."""

    def __init__(self, diary: Diary, count: int) -> None:
        self._diary = diary
        self._numbers = iter(range(count))
        self._aborted = threading.Event()

    def open(self, position: str | None) -> "Source":
        del position
        return self

    def read(self) -> Read:
        number = next(self._numbers, None)
        if number is not None:
            return Read([message(number)], heard=True)
        self._diary.note("all heard")
        assert self._aborted.wait(DEADLINE)
        raise Ended("closed by us", "closed")

    def abort(self) -> None:
        self._aborted.set()

    def close(self) -> None: ...


class Box:
    """A sink that keeps what it gets; it may be down."""

    def __init__(self, *, down: bool = False) -> None:
        self.got: list[str] = []
        self.attempts = 0
        self.closed = 0
        self._down = down

    def open(self) -> None: ...

    def close(self) -> None:
        self.closed += 1

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        self.attempts += 1
        if self._down:
            raise Unavailable("broker down")
        self.got += [entry.fields.uuid for entry in entries]
        return []


def build(journal: Journal, source: Source, **boxes: Box) -> Bench:
    metrics = Metrics("1.2.3")
    stream = Stream(
        "acme",
        SourceSettings(namespace="acme"),
        source,
        journal,
        metrics=StreamMetrics(metrics, "acme"),
        max_event_bytes=1_000_000,
    )
    forwarders = []
    for name, box in boxes.items():
        journal.add_sink(name, "latest")
        forwarders.append(Forwarder(name, box, SinkSettings(type="box"), journal, metrics=SinkMetrics(metrics, name)))
    return Bench(journal, [stream], forwarders)


def test_all_that_was_heard_is_delivered_before_the_process_ends(journal: Watched, diary: Diary) -> None:
    boxes = [Box(), Box()]
    bench = build(journal, Source(diary, 300), one=boxes[0], two=boxes[1]).start()
    diary.wait_for("all heard")

    assert bench.stop()
    for box in boxes:
        assert box.got == [f"00000000-0000-4000-8000-{number:012d}" for number in range(300)]
        assert box.closed >= 1
    assert bench.restarts.value == 0


def test_a_sink_that_is_down_keeps_the_process_from_nothing_and_its_events_wait(
    tmp_path: Path, journal: Watched, diary: Diary
) -> None:
    up, down = Box(), Box(down=True)
    bench = build(journal, Source(diary, 10), up=up, down=down).start()
    diary.wait_for("all heard")

    assert bench.stop()
    assert len(up.got) == 10
    assert down.attempts <= 20

    again = Journal(JournalSettings(path=tmp_path / "journal.db", durability="normal"))
    again.add_sink("down", "latest")
    assert again.counters().sinks["down"].pending == 10
    again.close()
