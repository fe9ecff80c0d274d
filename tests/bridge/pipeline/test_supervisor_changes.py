"""Streams and sinks are added, replaced and dropped while the supervisor runs."""

import threading
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from bridge.pipeline.stream import Stream, StreamStatus
from bridge.pipeline.supervisor import Supervisor
from tests.support.supervision import DEADLINE, Bench, Diary, FakeForwarder, FakeStream, Watched
from tests.support.waiting import until


@pytest.fixture
def _quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge.pipeline.supervisor._TICK_SECONDS", 0.005)
    monkeypatch.setattr("bridge.pipeline.threads._OVERLAP_SECONDS", 0.02)
    monkeypatch.setattr("bridge.pipeline.threads._CONNECT_SECONDS", 3600.0)


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
    monkeypatch.setattr("bridge.pipeline.threads._END_SECONDS", patience)
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
    monkeypatch.setattr("bridge.pipeline.threads._OVERLAP_SECONDS", 3600.0)
    monkeypatch.setattr("bridge.pipeline.threads._CONNECT_SECONDS", 0.0)
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
    monkeypatch.setattr("bridge.pipeline.threads._CONNECT_SECONDS", 0.02)
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
    monkeypatch.setattr("bridge.pipeline.threads._OVERLAP_SECONDS", 3600.0)
    first, second = FakeStream(diary, label="first"), FakeStream(diary, label="second", connected=connected)
    third = FakeStream(diary, label="third", connected=False)
    bench = Bench(journal, [first]).start()
    bench.change(lambda supervisor: supervisor.put_stream(second))
    let_ticks_pass(diary)
    monkeypatch.setattr("bridge.pipeline.threads._OVERLAP_SECONDS", 0.02)
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
    assert bench.running()[:3] == ([stream], [forwarder], {})
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
    assert bench.running()[:3] == ([], [old, other], {"audit": "to be replaced"})
    assert "new step" not in diary.entries
    old.released.set()
    diary.wait_for("new step")
    assert diary.entries.index("old close") < diary.entries.index("new takes over from old") < diary.entries.index("new step")
    assert diary.entries.count("old step") == 1
    assert bench.running()[:3] == ([], [new, other], {})
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
    assert bench.running()[:3] == ([], [other], {})
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


def test_a_reload_is_applied_as_a_whole_also_if_the_system_has_no_room_for_a_thread(
    journal: Watched, diary: Diary, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.add_sink("audit", "latest")
    monkeypatch.setattr("bridge.pipeline.supervisor._TICK_SECONDS", 0.005)
    monkeypatch.setattr("bridge.pipeline.threads._CONNECT_SECONDS", 0.02)
    old, new = FakeStream(diary), FakeStream(diary, label="new", connected=False)
    bench = Bench(journal, [old], [FakeForwarder(diary)]).start()
    diary.wait_for("acme step")
    start, room = threading.Thread.start, threading.Event()

    def start_if_there_is_room(thread: threading.Thread) -> None:
        if not room.is_set() and thread.name.startswith(("stream-", "sink-")):
            raise RuntimeError("can't start new thread")
        start(thread)

    def change(supervisor: Any) -> None:
        for name in ("one", "two"):
            journal.add_sink(name, "latest")
            supervisor.put_sink(FakeForwarder(diary, name=name))
            supervisor.put_stream(FakeStream(diary, name=f"stream {name}"))
        supervisor.put_stream(new)

    with capture_logs() as logs:
        monkeypatch.setattr(threading.Thread, "start", start_if_there_is_room)
        bench.change(change)
        running = bench.running()
        assert {stream.name for stream in running.streams} == {"acme", "stream one", "stream two"}
        assert {forwarder.name for forwarder in running.forwarders} == {"audit", "one", "two"}
        bench.change(lambda supervisor: supervisor.drop_stream("stream two"))
        for _ in range(10):
            let_ticks_pass(diary)
        assert "acme stop" not in diary.entries, "the old session is there until the new one can be opened"
        room.set()
        for name in ("one", "two", "stream one", "new"):
            diary.wait_for(f"{name} step")

    assert [line["event"] for line in logs].count("a thread can't be started, and is tried again") == 1
    assert "stream two step" not in diary.entries
    assert bench.stop()
