"""What happens around a session: a scripted source, a real journal, made-up clocks."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.field_types import Backoff
from bridge.journal import Batch, Closed, Journal, JournalSettings
from bridge.metrics import Metrics, StreamMetrics
from bridge.pipeline.stream import Destination, Mark, Stream
from bridge.source import END_REASONS, Ended, EndReason, Read, Session, SourceSettings
from tests.support.journal_work import read
from tests.support.messages import message

START = datetime(2026, 11, 23, 17, 0, 0, tzinfo=UTC).timestamp()
DEADLINE = 20.0
SETTINGS = SourceSettings(namespace="acme", backoff=Backoff(first=1.0, max=60.0))


# --- helpers -----------------------------------------------------------------------------------------------------------


@dataclass
class Clocks:
    """The time of day, and a clock that nobody sets."""

    time: float = START
    monotonic: float = 5000.0
    pace: float = 0.0

    def advance(self, seconds: float) -> None:
        self.time += seconds
        self.monotonic += seconds

    def tick(self) -> float:
        """Look at the clock; every look takes as long as the pace says."""
        self.monotonic += self.pace
        return self.monotonic


Step = Read | BaseException | float | Callable[[], Any]
"""What a session does next: bring something, end, let seconds pass or let something happen first."""


class Scripted:
    """A session that follows its script, and is closed by the server when it has come to its end."""

    def __init__(self, *steps: Step) -> None:
        self.steps = deque(steps)
        self.clocks = Clocks()
        self.closed = False
        self._aborted = threading.Event()

    def read(self) -> Read:
        while self.steps:
            step = self.steps.popleft()
            if isinstance(step, Read):
                return step
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, float):
                self.clocks.advance(step)
            else:
                step()
        raise Ended("closed by the server", "closed")

    def block(self) -> None:
        """A step of a script: wait for somebody to call `abort`."""
        assert self._aborted.wait(DEADLINE)
        raise Ended("closed by us", "closed")

    def abort(self) -> None:
        self._aborted.set()

    def close(self) -> None:
        self.closed = True


class ScriptedSource:
    """Opens what it was given, in order; notes from where it was asked to resume."""

    def __init__(self, *sessions: Scripted | BaseException) -> None:
        self._sessions = deque(sessions)
        self.clocks = Clocks()
        self.positions: list[str | None] = []
        self.opening: Callable[[], None] = lambda: None

    def open(self, position: str | None) -> Session:
        self.positions.append(position)
        self.opening()
        session = self._sessions.popleft()
        if isinstance(session, BaseException):
            raise session
        session.clocks = self.clocks
        return session


class Recorder:
    """A destination that only looks on."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def append(self, batch: Batch) -> None:
        self.batches.append(batch)

    def position(self, stream: str) -> str | None:
        del stream
        return None


class Bench:
    """A stream with everything around it."""

    def __init__(
        self,
        source: ScriptedSource,
        journal: Destination,
        uniform: Callable[[float, float], float] = lambda _, high: high,
        *,
        after: Stream | None = None,
    ) -> None:
        self.clocks = source.clocks
        self.metrics = Metrics("1.2.3")
        self.stream = Stream(
            "acme",
            SETTINGS,
            source,
            journal,
            metrics=StreamMetrics(self.metrics, "acme"),
            max_event_bytes=1000,
            gaps=after.gaps if after else None,
            clock=lambda: self.clocks.time,
            monotonic=self.clocks.tick,
            uniform=uniform,
        )

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"event_bridge_{name}", {"stream": "acme"} | labels)

    def reconnects(self) -> dict[EndReason, float]:
        counts = {reason: self.metric("stream_reconnects_total", reason=reason) for reason in END_REASONS}
        return {reason: count for reason, count in counts.items() if count}


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(JournalSettings(path=tmp_path / "journal.db", durability="normal"))
    yield opened
    opened.close()


def heard(*messages: bytes, position: str | None = None) -> Read:
    return Read(messages, heard=True, position=position)


AUTH = b'{"type":"auth"}'
UNAUTHORIZED = b'{"type":"error","data":{"errorMessage":"UNAUTHORIZED"}}'


# --- what is heard -----------------------------------------------------------------------------------------------------


def test_every_read_is_committed_as_one_batch() -> None:
    recorder = Recorder()
    bench = Bench(ScriptedSource(Scripted(heard(message(1), message(2)), Read(), heard(), heard(message(3)))), recorder)

    bench.stream.step()

    assert [[one.key[-1] for one in batch.events] for batch in recorder.batches] == [[1, 2], [3]]
    assert {(batch.stream, batch.received) for batch in recorder.batches} == {("acme", START)}


def test_events_and_their_duplicates_come_to_the_journal(journal: Journal) -> None:
    journal.add_sink("audit", "latest")
    bench = Bench(ScriptedSource(Scripted(heard(message(1), message(2), message(1)), heard(message(2)))), journal)

    bench.stream.step()

    counters = journal.counters().streams["acme"]
    assert (counters.received, counters.accepted, counters.duplicate) == (4, 2, 2)
    assert [entry.fields.uuid[-1] for entry in read(journal, "audit", 10, 10_000, 0.0)] == ["1", "2"]


def test_what_was_seen_in_one_session_is_a_duplicate_in_the_next(journal: Journal) -> None:
    bench = Bench(ScriptedSource(Scripted(heard(message(1))), Scripted(heard(message(1), message(2)))), journal)

    bench.stream.step()
    bench.stream.step()

    assert (journal.counters().streams["acme"].accepted, journal.counters().streams["acme"].duplicate) == (2, 1)


def test_events_get_the_stream_s_namespace_and_the_time_of_their_reception(journal: Journal) -> None:
    journal.add_sink("audit", "latest")
    bench = Bench(ScriptedSource(Scripted(2.5, heard(message(1)))), journal)

    bench.stream.step()

    (entry,) = read(journal, "audit", 10, 10_000, 0.0)
    assert (entry.fields.namespace, entry.fields.received_at) == ("acme", "2026-11-23T17:00:02.500000Z")
    assert entry.received == START + 2.5


def test_malformed_messages_are_counted_and_kept_and_the_session_goes_on(journal: Journal) -> None:
    source = ScriptedSource(
        Scripted(heard(b"junk", message(1), b"[]", b'{"type":7}', message(9, blob="x" * 1000)), heard(message(2)))
    )
    bench = Bench(source, journal)

    bench.stream.step()

    counters = journal.counters().streams["acme"]
    assert counters.malformed == {"not_json": 1, "not_object": 1, "bad_field": 1, "too_large": 1}
    assert (counters.received, counters.accepted) == (6, 2)
    assert [one.frame[:4] for one in journal.quarantine().quarantine] == [b"junk", b"[]", b'{"ty', b'{"ty']
    assert len(source.positions) == 1


JUNK: list[Step] = [heard(b"junk"), 1.0]


def test_a_stream_of_junk_writes_one_log_line_a_minute() -> None:
    bench = Bench(ScriptedSource(Scripted(*JUNK * 100)), Recorder())

    with capture_logs() as logs:
        bench.stream.step()

    assert [line["reason"] for line in logs if "quarantine" in line["event"]] == ["not_json"] * 2


def test_control_frames_are_counted_and_never_events(journal: Journal) -> None:
    notification = b'{"type":"user-notification","data":"x"}'
    other_error = b'{"type":"error","data":{"errorMessage":"overload"}}'
    bench = Bench(ScriptedSource(Scripted(heard(AUTH), heard(notification, notification, other_error))), journal)

    bench.stream.step()

    counts = {kind: bench.metric("stream_control_frames_total", type=kind) for kind in ("auth", "error", "user-notification")}
    assert counts == {"auth": 1, "error": 1, "user-notification": 2}
    assert journal.counters().streams["acme"].received == 0


def test_an_error_that_repeats_our_credentials_does_not_show_them() -> None:
    error = b'{"type":"error","data":{"errorMessage":"no secret%2Dkey"}}'
    bench = Bench(ScriptedSource(Scripted(Read([error], heard=True, secrets=["secret-key"]))), Recorder())

    with capture_logs() as logs:
        bench.stream.step()

    assert [line["text"] for line in logs if line["event"] == "control frame"] == ["no ***"]


def test_events_without_a_readable_time_are_counted() -> None:
    bench = Bench(ScriptedSource(Scripted(heard(message(1), message(2, None), message(3, "yesterday")))), Recorder())

    bench.stream.step()

    assert bench.metric("events_undated_total") == 2


def test_an_event_of_the_year_1_is_counted_and_makes_no_lag_of_two_thousand_years() -> None:
    bench = Bench(ScriptedSource(Scripted(heard(message(1, "0001-01-01T00:00:00Z")))), Recorder())

    bench.stream.step()

    assert (bench.metric("events_undated_total"), bench.metric("stream_lag_seconds_sum")) == (1, 0.0)


def test_what_a_source_ignores_is_counted() -> None:
    bench = Bench(ScriptedSource(Scripted(Read(heard=True, ignored=3), Read(heard=True, ignored=2))), Recorder())

    bench.stream.step()

    assert bench.metric("stream_ignored_total") == 5


def test_lag_is_measured_from_the_event_s_own_time() -> None:
    bench = Bench(ScriptedSource(Scripted(heard(message(1), message(2)))), Recorder())

    bench.stream.step()

    assert bench.metric("stream_lag_seconds_sum") == 4.0
    assert bench.metric("stream_lag_seconds_count") == 2


def test_an_event_of_the_future_has_no_negative_lag() -> None:
    bench = Bench(ScriptedSource(Scripted(heard(message(1, "2030-01-01T00:00:00Z")))), Recorder())

    bench.stream.step()

    assert bench.metric("stream_lag_seconds_sum") == 0.0


def test_anything_heard_is_a_sign_of_life() -> None:
    bench = Bench(
        ScriptedSource(Scripted(7.0, heard(), 9.0, Read())),
        Recorder(),
    )

    bench.stream.step()

    assert bench.metric("stream_last_frame_timestamp_seconds") == START + 7.0


# --- position ----------------------------------------------------------------------------------------------------------


def test_a_source_resumes_where_the_last_committed_read_ended(journal: Journal) -> None:
    source = ScriptedSource(Scripted(heard(message(1), position="7"), heard(message(2), position="8")), Scripted())
    bench = Bench(source, journal)

    bench.stream.step()
    bench.stream.step()

    assert source.positions == [None, "8"]
    assert journal.position("acme") == f"8@{START:.3f}"


def test_a_source_resumes_over_a_restart(journal: Journal) -> None:
    Bench(ScriptedSource(Scripted(heard(message(1), position="7"))), journal).stream.step()
    source = ScriptedSource(Scripted())

    Bench(source, journal).stream.step()

    assert source.positions == ["7"]


def test_the_first_position_is_kept_even_before_the_first_event(journal: Journal) -> None:
    Bench(ScriptedSource(Scripted(Read(heard=True, position="7"), Read(heard=True, position="8"))), journal).stream.step()

    assert journal.position("acme") == f"7@{START:.3f}"


def test_a_read_that_could_not_be_committed_is_read_again() -> None:
    class Broken(Recorder):
        def append(self, batch: Batch) -> None:
            if str(batch.position).startswith("8"):
                raise RuntimeError("a bug")
            super().append(batch)

    source = ScriptedSource(Scripted(heard(message(1), position="7"), heard(message(2), position="8")), Scripted())
    bench = Bench(source, Broken())

    with pytest.raises(RuntimeError):
        bench.stream.step()
    bench.stream.step()

    assert source.positions == [None, "7"]


@pytest.mark.parametrize("mark", [Mark(None, 1_700_000_000.125), Mark("7", 0.5), Mark("17@5+", 1_700_000_000.0)])
def test_a_mark_is_read_as_it_was_written(mark: Mark) -> None:
    assert Mark.parse(str(mark)) == mark


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, Mark()), ("", Mark()), ("1700000000000000007+", Mark("1700000000000000007+")), ("a@b", Mark("a@b"))],
)
def test_a_position_of_an_earlier_version_has_no_time(text: str | None, expected: Mark) -> None:
    assert Mark.parse(text) == expected


# --- how long to wait --------------------------------------------------------------------------------------------------


def refused(count: int) -> list[Ended]:
    return [Ended("connection refused", "network") for _ in range(count)]


def test_the_backoff_grows_while_no_session_can_be_opened() -> None:
    bench = Bench(ScriptedSource(*refused(8)), Recorder())

    assert [bench.stream.step() for _ in range(8)] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_a_session_that_merely_opened_proves_nothing() -> None:
    bench = Bench(ScriptedSource(*refused(3), Scripted(heard(AUTH)), Scripted(heard(b"junk")), Scripted()), Recorder())

    assert [bench.stream.step() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]


def test_a_server_that_sends_one_event_and_closes_is_not_asked_again_and_again() -> None:
    source = ScriptedSource(*[Scripted(heard(message(number))) for number in range(1000)])
    bench = Bench(source, Recorder())

    while bench.clocks.time < START + 3600:
        bench.clocks.advance(bench.stream.step())

    assert len(source.positions) == 65


@pytest.mark.parametrize(("lasted", "delay"), [(59.9, 8.0), (60.0, 1.0)])
def test_a_session_that_lasted_has_proved_itself_without_an_event(lasted: float, delay: float) -> None:
    bench = Bench(ScriptedSource(*refused(3), Scripted(lasted, heard())), Recorder())

    assert [bench.stream.step() for _ in range(4)][-1] == delay


def test_a_failure_after_a_session_that_lasted_is_not_proved_by_it() -> None:
    bench = Bench(ScriptedSource(Scripted(60.0, heard(message(1))), *refused(2)), Recorder())

    assert [bench.stream.step() for _ in range(3)] == [1.0, 2.0, 4.0]


def test_refused_credentials_have_their_own_pace() -> None:
    bench = Bench(ScriptedSource(*[Ended("401 Unauthorized", "unauthorized") for _ in range(6)]), Recorder())

    assert [bench.stream.step() for _ in range(6)] == [60.0, 90.0, 150.0, 270.0, 510.0, 600.0]
    assert bench.stream.status.reason == "unauthorized"


def test_refused_credentials_are_never_tried_again_sooner_than_said() -> None:
    bench = Bench(ScriptedSource(Ended("401 Unauthorized", "unauthorized")), Recorder(), uniform=lambda low, _: low)

    assert bench.stream.step() == 30.0


def test_the_other_backoff_does_not_suffer_from_refused_credentials() -> None:
    bench = Bench(ScriptedSource(Ended("401 Unauthorized", "unauthorized"), *refused(2)), Recorder())

    assert [bench.stream.step() for _ in range(3)] == [60.0, 1.0, 2.0]


def test_an_unauthorized_frame_ends_the_session_at_the_pace_of_refused_credentials(journal: Journal) -> None:
    only = Scripted(heard(UNAUTHORIZED), AssertionError("it read on"))
    bench = Bench(ScriptedSource(only), journal)

    assert bench.stream.step() == 60.0
    assert (bench.stream.status.connected, bench.stream.status.reason) == (False, "unauthorized")
    assert bench.reconnects() == {"unauthorized": 1}
    assert only.closed


def test_events_before_an_unauthorized_frame_are_committed(journal: Journal) -> None:
    bench = Bench(ScriptedSource(Scripted(heard(message(1), UNAUTHORIZED, message(2)))), journal)

    bench.stream.step()

    assert journal.counters().streams["acme"].accepted == 2


@pytest.mark.parametrize("reason", ["throttled", "unauthorized", "refused"])
def test_a_server_that_asks_for_time_gets_it(reason: EndReason) -> None:
    bench = Bench(ScriptedSource(Ended("429 Too Many Requests", reason, retry_after=120.0)), Recorder())

    assert bench.stream.step() == 120.0


def test_a_server_that_asks_for_a_day_gets_our_longest_delay() -> None:
    bench = Bench(ScriptedSource(Ended("503 Service Unavailable", "refused", retry_after=86400.0)), Recorder())

    assert bench.stream.step() == 600.0


def test_a_server_that_asks_for_less_than_our_backoff_gets_that() -> None:
    bench = Bench(ScriptedSource(*refused(5), Ended("503 Service Unavailable", "refused", retry_after=0.0)), Recorder())

    assert [bench.stream.step() for _ in range(6)][-1] == 32.0


# --- gaps and status ---------------------------------------------------------------------------------------------------


def test_a_stream_begins_disconnected() -> None:
    bench = Bench(ScriptedSource(), Recorder())
    bench.clocks.advance(5.0)

    assert (bench.stream.status.connected, bench.stream.status.since) == (False, START)
    assert bench.stream.gaps.total_seconds() == 5.0
    assert bench.metric("stream_connected") == 0


def test_while_a_session_is_open_the_stream_is_connected() -> None:
    def look() -> None:
        assert (bench.stream.status.connected, bench.stream.status.since) == (True, START + 3.0)
        assert bench.metric("stream_connected") == 1
        bench.clocks.advance(100.0)
        assert bench.stream.gaps.total_seconds() == 3.0

    only = Scripted(look)
    bench = Bench(ScriptedSource(only), Recorder())
    bench.clocks.advance(3.0)

    bench.stream.step()

    assert bench.stream.status.since == START + 103.0
    assert (bench.stream.status.reason, bench.stream.status.error) == ("closed", "closed by the server")
    assert bench.metric("stream_connected") == 0
    assert only.closed


def test_the_time_before_the_first_session_is_no_gap_unless_something_went_wrong() -> None:
    bench = Bench(ScriptedSource(Scripted()), Recorder())
    bench.stream.step()

    assert not bench.stream.gaps.latest


def test_the_time_between_two_processes_is_a_gap_from_the_last_sign_of_life_in_the_journal(journal: Journal) -> None:
    def killed() -> None:
        raise SystemExit

    first = Bench(ScriptedSource(Scripted(heard(message(1)), 4.0, heard(), 7.0, heard(), 9.0, heard(), killed)), journal)
    with pytest.raises(SystemExit):
        first.stream.step()
    second = Bench(ScriptedSource(Scripted()), journal)
    second.clocks.time = START + 24.0
    again = Bench(second.stream._source, journal)  # type: ignore[arg-type]
    again.stream.step()

    (gap,) = again.stream.gaps.latest
    assert (gap.start, gap.end, gap.reason) == (START + 11.0, START + 24.0, "not_running")
    assert again.stream.gaps.total_seconds() == 13.0


def test_an_orderly_end_is_recorded_however_quiet_the_stream_was(journal: Journal) -> None:
    only = Scripted(heard(message(1)), 3000.0)
    bench = Bench(ScriptedSource(only), journal)
    only.steps.append(bench.stream.stop)
    bench.stream.step()
    source = ScriptedSource(Scripted())
    source.clocks.advance(3004.0)
    after = Bench(source, journal)

    assert after.stream.gaps.total_seconds() == 4.0


def test_a_quiet_stream_commits_a_sign_of_life_every_ten_seconds(journal: Journal) -> None:
    recorder = Recorder()
    steps: list[Step] = [step for _ in range(3600) for step in (1.0, heard())]

    Bench(ScriptedSource(Scripted(*steps)), recorder).stream.step()

    assert len(recorder.batches) == 360
    assert not any(batch.events for batch in recorder.batches)


def test_a_position_that_moves_without_events_is_committed_every_second() -> None:
    recorder = Recorder()
    steps: list[Step] = [step for n in range(100) for step in (0.125, Read(heard=True, ignored=1, position=str(n)))]

    Bench(ScriptedSource(Scripted(*steps)), recorder).stream.step()

    assert len(recorder.batches) == 13
    assert str(recorder.batches[-1].position).startswith("96@")


def test_a_stream_is_not_read_while_the_journal_takes_nothing() -> None:
    class Full(Recorder):
        def append(self, batch: Batch) -> None:
            bench.clocks.advance(50.0)
            super().append(batch)

    dead = Ended("nothing was heard for 15 s", "dead")
    bench = Bench(ScriptedSource(Scripted(heard(message(1)), 15.0, dead)), Full())
    bench.stream.step()

    assert [(gap.end - gap.start, gap.reason) for gap in bench.stream.gaps.latest] == [(50.0, "journal")]
    assert bench.stream.gaps.total_seconds() == 65.0, "no second is counted twice"


def test_a_gap_has_a_beginning_an_end_and_a_reason() -> None:
    bench = Bench(ScriptedSource(Scripted(), *refused(2), Scripted()), Recorder())
    bench.clocks.advance(1.0)
    bench.stream.step()
    for _ in range(3):
        bench.clocks.advance(10.0)
        bench.stream.step()

    (gap,) = bench.stream.gaps.latest
    assert (gap.start, gap.end) == (START + 1.0, START + 31.0)
    assert (gap.reason, gap.error) == ("network", "connection refused")
    assert bench.stream.gaps.total_seconds() == 31.0


def test_attempts_are_counted_until_one_succeeds() -> None:
    bench = Bench(ScriptedSource(*refused(2), Scripted()), Recorder())
    bench.stream.step()
    bench.stream.step()
    assert bench.stream.status.attempts == 2

    bench.stream.step()
    assert bench.stream.status.attempts == 0


def test_a_dead_stream_was_lost_at_its_last_sign_of_life() -> None:
    dead = Ended("nothing was heard for 15 s", "dead")
    bench = Bench(
        ScriptedSource(Scripted(40.0, heard(), 15.0, dead), Scripted()),
        Recorder(),
    )

    bench.stream.step()
    assert bench.stream.gaps.total_seconds() == 15.0
    assert bench.stream.status.since == START + 40.0

    bench.clocks.advance(2.0)
    bench.stream.step()
    (gap,) = bench.stream.gaps.latest
    assert (gap.start, gap.end, gap.reason) == (START + 40.0, START + 57.0, "dead")
    assert bench.stream.gaps.total_seconds() == 17.0


def test_a_session_that_was_dead_from_the_start_lost_nothing_before_it_opened() -> None:
    dead = Ended("nothing was heard for 15 s", "dead")
    bench = Bench(ScriptedSource(Scripted(heard()), Scripted(15.0, dead)), Recorder())
    bench.stream.step()
    bench.clocks.advance(1000.0)

    bench.stream.step()

    assert bench.stream.gaps.total_seconds() == 1015.0


def test_setting_the_clock_makes_no_gap() -> None:
    def set_clock() -> None:
        bench.clocks.time += 3600.0
        bench.clocks.advance(15.0)

    bench = Bench(ScriptedSource(Scripted(heard(), set_clock, Ended("nothing was heard for 15 s", "dead"))), Recorder())

    bench.stream.step()

    assert bench.stream.gaps.total_seconds() == 15.0


def test_the_sum_of_all_gaps_never_falls() -> None:
    seen = [0.0]

    def look() -> None:
        now = bench.stream.gaps.total_seconds()
        assert now >= seen[-1]
        seen.append(now)

    sessions = [Scripted(look, heard(), look, Ended("dead", "dead")), Scripted(look)]
    bench = Bench(ScriptedSource(*refused(2), *sessions, *refused(1)), Recorder())
    bench.clocks.pace = 1.0
    for _ in range(5):
        bench.stream.step()
        look()

    assert len(seen) == 9


def test_only_the_latest_gaps_are_kept() -> None:
    bench = Bench(ScriptedSource(*[Scripted() for _ in range(40)]), Recorder())
    for _ in range(40):
        bench.stream.step()

    assert len(bench.stream.gaps.latest) == 20


@pytest.mark.parametrize("reason", END_REASONS)
def test_reconnects_are_counted_by_reason(reason: EndReason) -> None:
    bench = Bench(ScriptedSource(Ended("x", reason), Scripted(Ended("x", reason))), Recorder())

    bench.stream.step()
    bench.stream.step()

    assert bench.reconnects() == {reason: 2}


def test_a_long_outage_is_logged_when_it_begins_and_when_it_ends() -> None:
    bench = Bench(ScriptedSource(Scripted(heard(message(1))), *refused(20), Scripted()), Recorder())
    bench.stream.step()

    with capture_logs() as logs:
        for _ in range(20):
            bench.clocks.advance(1.0)
            bench.stream.step()
        bench.stream.step()

    assert [line["event"] for line in logs] == ["stream disconnected", "stream connected", "stream disconnected"]
    assert (logs[0]["reason"], logs[0]["error"], logs[0]["next_try_seconds"]) == ("network", "connection refused", 2.0)
    assert (logs[1]["gap_seconds"], logs[1]["attempts"]) == (20.0, 20)


# --- stopping, bugs ----------------------------------------------------------------------------------------------------


def test_stop_ends_a_blocked_read() -> None:
    only = Scripted()
    reading = threading.Event()
    only.steps.extend([heard(message(1)), reading.set, only.block])
    recorder = Recorder()
    bench = Bench(ScriptedSource(only), recorder)
    waits: list[float] = []
    thread = threading.Thread(target=lambda: waits.append(bench.stream.step()))
    thread.start()
    assert reading.wait(DEADLINE)

    bench.stream.stop()
    thread.join(DEADLINE)

    assert waits == [0.0]
    assert only.closed
    assert len(recorder.batches) == 1
    assert (bench.stream.status.connected, bench.metric("stream_connected")) == (False, 0)
    assert bench.reconnects() == {}


def test_stop_while_a_session_is_being_opened_ends_it_before_the_first_read() -> None:
    only = Scripted(AssertionError("it read"))
    source = ScriptedSource(only)
    bench = Bench(source, Recorder())
    source.opening = bench.stream.stop

    with capture_logs() as logs:
        assert bench.stream.step() == 0.0
    assert only.closed
    assert (bench.stream.status.connected, bench.metric("stream_connected")) == (False, 0)
    assert bench.reconnects() == {}
    assert logs == []
    # Nor is it the reason of a gap that the next one finds.
    bench.stream.gaps.opened()
    assert not bench.stream.gaps.latest


def test_a_stream_that_takes_over_opens_its_session_and_reads_when_it_is_told_to() -> None:
    recorder = Recorder()
    old = Bench(ScriptedSource(), recorder)
    old.stream.gaps.opened()
    new = Bench(ScriptedSource(Scripted(heard(message(1)))), recorder, after=old.stream)
    thread = threading.Thread(target=new.stream.step, daemon=True)
    with capture_logs() as logs:
        thread.start()
        while not new.stream.status.connected:
            assert thread.is_alive()
    assert [line["gap_seconds"] for line in logs] == [0.0]
    thread.join(0.05)
    assert (thread.is_alive(), recorder.batches) == (True, [])
    new.stream.start_reading()
    thread.join(DEADLINE)

    assert len(recorder.batches) == 1
    assert not new.stream.gaps.latest


def test_stop_ends_a_stream_that_waits_to_take_over_and_nothing_of_it_is_committed() -> None:
    recorder = Recorder()
    only = Scripted(heard(message(1)))
    bench = Bench(ScriptedSource(only), recorder, after=Bench(ScriptedSource(), recorder).stream)
    thread = threading.Thread(target=bench.stream.step, daemon=True)
    thread.start()
    while not bench.stream.status.connected:
        assert thread.is_alive()
    bench.stream.stop()
    thread.join(DEADLINE)

    assert (only.closed, recorder.batches) == (True, [])


def test_stop_between_two_reads_ends_the_session() -> None:
    only, recorder = Scripted(), Recorder()
    bench = Bench(ScriptedSource(only), recorder)
    only.steps.extend([heard(message(1)), bench.stream.stop, heard(message(2)), AssertionError("it read on")])

    bench.stream.step()

    assert len(recorder.batches) == 2
    assert only.closed
    assert not bench.stream.status.connected


def test_a_bug_is_told_after_the_stream_was_marked_as_down() -> None:
    only = Scripted(heard(message(1)), RuntimeError("a bug"))
    bench = Bench(ScriptedSource(only), Recorder())

    with pytest.raises(RuntimeError, match="a bug"):
        bench.stream.step()

    assert (bench.stream.status.connected, bench.stream.status.reason) == (False, "internal")
    assert bench.metric("stream_connected") == 0
    assert bench.reconnects() == {"internal": 1}
    assert only.closed


def test_a_bug_in_opening_is_told_as_well() -> None:
    bench = Bench(ScriptedSource(KeyError("a bug")), Recorder())

    with pytest.raises(KeyError):
        bench.stream.step()

    assert (bench.stream.status.reason, bench.stream.status.attempts) == ("internal", 1)


def test_a_journal_that_was_closed_ends_the_stream(journal: Journal) -> None:
    bench = Bench(ScriptedSource(Scripted(journal.close, heard(message(1)))), journal)

    with pytest.raises(Closed):
        bench.stream.step()
