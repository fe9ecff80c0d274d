"""What the process says of itself: with a real journal, streams and forwarders that somebody else's thread would step."""

import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from bridge.admin.health import Health, Reloaded
from bridge.admin.settings import HealthSettings
from bridge.event import Event, Reception, normalize
from bridge.journal import Batch, Closed, Journal, JournalError
from bridge.metrics import Metrics, SinkMetrics, StreamMetrics
from bridge.pipeline.forwarder import Forwarder
from bridge.pipeline.stream import Stream
from bridge.pipeline.supervisor import Running
from bridge.sink import Entry, Failure, SinkSettings, Unavailable
from bridge.source import Ended, Session, SourceSettings
from tests.support.journal_samples import journal_settings
from tests.support.messages import message
from tests.support.waiting import until

DEADLINE = 20.0
THRESHOLDS = HealthSettings(stream_grace=60.0, sink_grace=300.0)
METRICS = Metrics("1.2.3")


# --- helpers -----------------------------------------------------------------------------------------------------------


def shown(health: Health) -> Any:
    """The status as its readers decode it."""
    return msgspec.json.decode(msgspec.json.encode(health.status()))


class Refusing:
    """A source that can't be reached."""

    def open(self, position: str | None) -> Session:
        del position
        raise Ended("401 Unauthorized", "unauthorized")


class Box:
    """A sink that takes everything, unless it is told to be down."""

    def __init__(self) -> None:
        self.down = False

    def open(self) -> None: ...

    def close(self) -> None: ...

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        del entries
        if self.down:
            raise Unavailable("broker down")
        return []


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(journal_settings(tmp_path / "journal.db", durability="normal"))
    opened.add_sink("audit", "latest")
    until(lambda: opened.accepts)
    yield opened
    opened.close()


def make_stream(journal: Journal, *, ago: float = 0.0) -> Stream:
    """A stream whose clock is behind: what it notes now was some seconds ago."""
    return Stream(
        "acme",
        SourceSettings(namespace="acme"),
        Refusing(),
        journal,
        metrics=StreamMetrics(METRICS, "acme"),
        max_event_bytes=1_000_000,
        clock=lambda: time.time() - ago,
        monotonic=lambda: time.monotonic() - ago,
    )


def make_forwarder(journal: Journal, sink: Box, *, ago: float = 0.0) -> Forwarder:
    metrics = SinkMetrics(METRICS, "audit")
    return Forwarder("audit", sink, SinkSettings(type="box"), journal, metrics=metrics, clock=lambda: time.time() - ago)


def make_health(journal: Journal, *streams: Stream, forwarders: Sequence[Forwarder] = ()) -> Health:
    return Health(journal, lambda: Running(streams, forwarders), settings=THRESHOLDS, version="1.2.3")


def batch(number: int, moment: str = "2016-02-01T16:47:28Z") -> Batch:
    reception = Reception.at("acme", datetime.fromisoformat("2026-11-23T17:00:00Z"))
    return Batch("acme", time.time(), [cast("Event", normalize(message(number, moment), reception, 1_000_000))], [])


def told(health: Health) -> list[str]:
    """The problems, without their seconds."""
    return [re.sub(r"\d+ s: ", "some s: ", problem) for problem in health.problems()]


# --- readiness ---------------------------------------------------------------------------------------------------------


def test_what_has_just_started_is_given_time(journal: Journal) -> None:
    health = make_health(journal, make_stream(journal), forwarders=[make_forwarder(journal, Box())])

    assert health.problems() == []


def test_a_stream_that_never_had_a_session_is_a_problem_after_a_while(journal: Journal) -> None:
    health = make_health(journal, make_stream(journal, ago=61.0))

    assert told(health) == ["stream acme: not connected for some s: no session yet"]


def test_a_stream_that_is_refused_tells_why(journal: Journal) -> None:
    stream = make_stream(journal, ago=90.0)
    stream.step()

    assert told(make_health(journal, stream)) == ["stream acme: not connected for some s: 401 Unauthorized"]


def test_a_stream_within_its_grace_is_no_problem(journal: Journal) -> None:
    stream = make_stream(journal, ago=30.0)
    stream.step()

    assert make_health(journal, stream).problems() == []


def test_a_sink_that_is_down_for_long_is_a_problem_and_tells_why(journal: Journal) -> None:
    sink = Box()
    sink.down = True
    forwarder = make_forwarder(journal, sink, ago=301.0)
    journal.append(batch(1))
    forwarder.step()

    assert told(make_health(journal, forwarders=[forwarder])) == ["sink audit: unavailable for some s: broker down"]


def test_a_sink_that_is_down_since_a_moment_is_none(journal: Journal) -> None:
    sink = Box()
    sink.down = True
    forwarder = make_forwarder(journal, sink, ago=200.0)
    journal.append(batch(1))
    forwarder.step()

    assert make_health(journal, forwarders=[forwarder]).problems() == []


def test_a_sink_that_has_recovered_is_none(journal: Journal) -> None:
    sink = Box()
    sink.down = True
    forwarder = make_forwarder(journal, sink, ago=301.0)
    journal.append(batch(1))
    forwarder.step()
    sink.down = False
    forwarder.step()

    assert make_health(journal, forwarders=[forwarder]).problems() == []


def test_a_sink_that_hangs_in_a_delivery_is_a_problem_though_nothing_failed(journal: Journal) -> None:
    forwarder = make_forwarder(journal, Box())
    journal.append(batch(1))
    forwarder.step()
    forwarder.delivering_since = time.monotonic() - 301.0
    health = make_health(journal, forwarders=[forwarder])

    assert told(health) == ["sink audit: unavailable for some s: a delivery has not returned"]
    assert shown(health)["sinks"]["audit"]["unavailable_seconds"] >= 301.0


def test_a_delivery_under_way_is_no_error(journal: Journal) -> None:
    forwarder = make_forwarder(journal, Box())
    journal.append(batch(1))
    forwarder.step()
    forwarder.delivering_since = time.monotonic()
    health = make_health(journal, forwarders=[forwarder])

    assert health.problems() == []
    assert shown(health)["sinks"]["audit"]["error"] == ""


def test_a_journal_that_is_full_is_a_problem(tmp_path: Path) -> None:
    full = Journal(journal_settings(tmp_path / "full.db", durability="normal", max_bytes=1))
    full.add_sink("audit", "latest")
    health = make_health(full)

    def append() -> None:
        with pytest.raises(Closed):
            full.append(batch(1))

    waiting = threading.Thread(target=append)
    waiting.start()
    until(lambda: full.accepts and health.problems() != [])
    (problem,) = health.problems()
    full.close()
    waiting.join(DEADLINE)

    assert problem.startswith("journal: ")
    assert "full.db: full, journal.max_bytes is 1" in problem


def test_the_process_works_as_long_as_its_main_thread_ticks(journal: Journal) -> None:
    health = make_health(journal)

    assert health.alive(time.monotonic())
    assert health.alive(time.monotonic() - 29.0)
    assert not health.alive(time.monotonic() - 31.0)


# --- books, lags, status -----------------------------------------------------------------------------------------------


def test_a_stream_that_has_said_nothing_has_books_with_zeros(journal: Journal) -> None:
    counters = make_health(journal, make_stream(journal)).counters()

    assert (counters.streams["acme"].received, counters.streams["acme"].malformed) == (0, {})


def test_a_stream_that_has_spoken_has_its_own_books(journal: Journal) -> None:
    journal.append(batch(1))

    assert make_health(journal, make_stream(journal)).counters().streams["acme"].accepted == 1


def test_lag_is_the_age_of_the_oldest_event_that_was_not_delivered(journal: Journal) -> None:
    forwarder = make_forwarder(journal, Box())
    health = make_health(journal, forwarders=[forwarder])
    assert health.lag_seconds() == {"audit": 0.0}

    journal.append(batch(1, "2016-02-01T16:47:28Z"))
    journal.append(batch(2, "2017-02-01T16:47:28Z"))
    expected = time.time() - datetime.fromisoformat("2016-02-01T16:47:28Z").timestamp()
    assert health.lag_seconds()["audit"] == pytest.approx(expected, abs=DEADLINE)

    forwarder.step()
    assert health.lag_seconds() == {"audit": 0.0}


def test_an_event_of_the_future_has_no_negative_lag(journal: Journal) -> None:
    journal.append(batch(1, "2126-02-01T16:47:28Z"))

    assert make_health(journal, forwarders=[make_forwarder(journal, Box())]).lag_seconds() == {"audit": 0.0}


def test_a_journal_that_can_not_be_read_hides_nothing_but_the_lag(tmp_path: Path) -> None:
    class Unreadable(Journal):
        def oldest(self, sink: str) -> bytes | None:
            raise JournalError(f"{sink}: disk I/O error")

    with closing(Unreadable(journal_settings(tmp_path / "bad.db", durability="normal"))) as journal:
        journal.add_sink("audit", "latest")
        health = make_health(journal, forwarders=[make_forwarder(journal, Box())])

        assert math.isnan(health.lag_seconds()["audit"])
        assert shown(health)["sinks"]["audit"]["lag_seconds"] is None
        assert shown(health)["sinks"]["audit"]["pending"] == 0


def test_gap_seconds_are_those_of_the_streams(journal: Journal) -> None:
    stream = make_stream(journal, ago=10.0)

    assert make_health(journal, stream).gap_seconds().keys() == {"acme"}


def test_the_status_tells_everything_as_json(journal: Journal) -> None:
    stream, forwarder = make_stream(journal, ago=90.0), make_forwarder(journal, Box())
    journal.append(batch(1))
    forwarder.step()
    journal.append(batch(2))
    stream.step()

    status: dict[str, Any] = shown(make_health(journal, stream, forwarders=[forwarder]))

    assert status["version"] == "1.2.3"
    assert datetime.fromisoformat(status["started"]).timestamp() == pytest.approx(time.time(), abs=DEADLINE)
    (problem,) = status["problems"]
    assert problem.startswith("stream acme: not connected for ")
    assert status["journal"].keys() == {"bytes", "trouble", "damaged_files"}
    acme = status["streams"]["acme"]
    assert (acme["connected"], acme["reason"], acme["error"], acme["attempts"]) == (
        False,
        "unauthorized",
        "401 Unauthorized",
        1,
    )
    assert (acme["received"], acme["accepted"], acme["duplicate"], acme["malformed"], acme["position"]) == (2, 2, 0, {}, None)
    assert acme["gaps"] == []
    audit = status["sinks"]["audit"]
    assert (audit["up"], audit["reason"], audit["error"], audit["failures"]) == (True, None, "", 0)
    assert (audit["accepted"], audit["delivered"], audit["pending"]) == (2, 1, 1)
    assert audit["lag_seconds"] > 3600
    assert audit["next_retry"] is None


def test_a_damaged_journal_that_was_set_aside_is_counted_and_named_until_somebody_moves_it(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"no journal at all")
    for _ in range(2):
        with closing(Journal(journal_settings(path))) as journal:
            until(lambda opened=journal: opened.accepts)  # type: ignore[misc]
            health = make_health(journal)
            assert health.damaged_journals() == 1
            (kept,) = shown(health)["journal"]["damaged_files"]
            assert Path(kept).read_bytes() == b"no journal at all"
            assert health.problems() == [], "it is over"
    Path(kept).unlink()
    assert health.damaged_journals() == 0
    tmp_path.rename(tmp_path.with_name("gone"))
    assert shown(health)["journal"]["damaged_files"] == []


def test_a_sink_whose_retry_queue_is_full_is_a_problem_that_the_status_explains(journal: Journal) -> None:
    class Failing(Box):
        def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
            return [Failure.retry(entry, "server_error", "500") for entry in entries]

    settings = SinkSettings.model_validate({"type": "box", "retry": {"max_pending": 1}})
    clock = time.time() - THRESHOLDS.sink_grace - 1
    metrics = SinkMetrics(METRICS, "audit")
    forwarder = Forwarder("audit", Failing(), settings, journal, metrics=metrics, clock=lambda: clock)
    journal.append(batch(1))
    for _ in range(2):
        forwarder.step()
    health = make_health(journal, forwarders=[forwarder])
    words = "1 events wait for a retry (retry.max_pending); new ones are tried when fewer do"
    assert told(health) == [f"sink audit: unavailable for some s: {words}"]
    audit = shown(health)["sinks"]["audit"]
    assert (audit["up"], audit["reason"], audit["error"]) == (False, "retry_queue_full", words)
    # Its time has passed; that it has is not when the next one comes.
    assert time.time() - 1 < datetime.fromisoformat(audit["next_retry"]).timestamp() <= time.time()


def test_the_status_shows_the_gaps(journal: Journal) -> None:
    class OnceRefusing(Refusing):
        def __init__(self) -> None:
            self.refusing = True

        def open(self, position: str | None) -> Session:
            if self.refusing:
                return super().open(position)
            return Silent()

    class Silent:
        def read(self) -> Any:
            raise Ended("closed by the server", "closed")

        def abort(self) -> None: ...

        def close(self) -> None: ...

    source, now = OnceRefusing(), 1_700_000_000.0
    stream = Stream(
        "acme",
        SourceSettings(namespace="acme"),
        source,
        journal,
        metrics=StreamMetrics(METRICS, "acme"),
        max_event_bytes=1_000_000,
        clock=lambda: now,
        monotonic=lambda: now,
    )
    stream.step()
    source.refusing, now = False, now + 12.5
    stream.step()

    acme = shown(make_health(journal, stream))["streams"]["acme"]

    assert acme["gaps"] == [
        {
            "start": "2023-11-14T22:13:20.000Z",
            "end": "2023-11-14T22:13:32.500Z",
            "reason": "unauthorized",
            "error": "401 Unauthorized",
        }
    ]
    assert acme["gap_seconds"] == 12.5


# --- what a reload changes ---------------------------------------------------------------------------------------------


def test_it_looks_at_what_runs_now(journal: Journal) -> None:
    streams = [make_stream(journal, ago=1000.0)]
    health = Health(journal, lambda: Running(list(streams), []), settings=THRESHOLDS, version="1.2.3")
    assert health.gap_seconds().keys() == {"acme"}
    assert health.problems()
    streams.clear()

    assert health.gap_seconds() == shown(health)["streams"] == {}
    assert health.problems() == []


def test_a_sink_that_was_forgotten_while_somebody_looks_is_not_shown(journal: Journal) -> None:
    health = make_health(journal, forwarders=[make_forwarder(journal, Box())])
    journal.forget_sinks_except(set())

    assert shown(health)["sinks"] == {}
    assert health.lag_seconds() == {"audit": 0.0}


def test_the_status_tells_of_a_sink_that_is_to_end_and_of_the_last_reload(journal: Journal) -> None:
    forwarder = make_forwarder(journal, Box())
    running = Running([], [forwarder], {"audit": "to be replaced"})
    health = Health(journal, lambda: running, settings=THRESHOLDS, version="1.2.3")
    assert shown(health)["sinks"]["audit"]["leaving"] == "to be replaced"
    assert shown(health)["reload"] is None
    health.reloaded = Reloaded(0.0, ["bridge.yaml: gone"])

    told = {"time": "1970-01-01T00:00:00.000Z", "ok": False, "problems": ["bridge.yaml: gone"]}
    assert shown(health)["reload"] == told


def test_thresholds_apply_at_once(journal: Journal) -> None:
    health = make_health(journal, make_stream(journal, ago=30.0))
    assert health.problems() == []
    health.settings = HealthSettings(stream_grace=10.0, sink_grace=10.0)

    assert len(health.problems()) == 1
