"""Real threads over a real journal; what they run is made up, and waits for conditions instead of sleeping."""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.journal import Closed, Journal, JournalError, JournalSettings
from bridge.metrics import Metrics, SinkMetrics, StreamMetrics
from bridge.pipeline.availability import SinkStatus
from bridge.pipeline.forwarder import Forwarder
from bridge.pipeline.stream import Stream
from bridge.sink import Entry, Failure, SinkSettings, Unavailable
from bridge.source import Ended, Read, SourceSettings
from tests.support.messages import message
from tests.support.supervision import DEADLINE, Bench, Diary, FakeForwarder, FakeStream, Watched, fail, note
from tests.support.waiting import until

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
    monkeypatch.setattr("bridge.pipeline.supervisor._TICK_SECONDS", 0.01)
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
    monkeypatch.setattr("bridge.pipeline.threads._RESTART_SECONDS", (0.001, 0.001))
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
    monkeypatch.setattr("bridge.pipeline.supervisor._TICK_SECONDS", 0.01)
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
    monkeypatch.setattr("bridge.pipeline.threads._JOURNAL_RETRY_SECONDS", 0.001)
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
    monkeypatch.setattr("bridge.pipeline.threads._RESTART_SECONDS", (3600.0, 3600.0))
    monkeypatch.setattr("bridge.pipeline.threads.random.uniform", lambda _, high: high)
    forwarder = FakeForwarder(diary, *[fail(ZeroDivisionError())] * 1000)
    bench = Bench(journal, [FakeStream(diary)], [forwarder], grace=0.3).start()
    diary.wait_for("audit step")

    assert bench.stop()
    assert diary.entries.count("audit step") <= 3


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
