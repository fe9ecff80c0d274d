"""Names, first values and formats of the metrics, and that the books balance in a real scrape."""

import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from bridge.admin.health import Health
from bridge.admin.settings import HealthSettings
from bridge.event import CONTROL_TYPES
from bridge.journal import Counters, Journal, JournalSettings, SinkCounters, StreamCounters
from bridge.metrics import MALFORMED_REASONS, EventHistogram, Metrics, SinkMetrics, StreamMetrics
from bridge.pipeline.forwarder import Forwarder
from bridge.pipeline.stream import Stream
from bridge.pipeline.supervisor import Running
from bridge.sink import REASONS, Entry, Failure, RetrySettings, SinkSettings
from bridge.source import END_REASONS, Ended, Read, SourceSettings
from tests.support.messages import message

# The tables of the design and of the documentation: name, type, labels.
EXPECTED = {
    ("event_bridge_events_received", "counter", ("stream",)),
    ("event_bridge_events_accepted", "counter", ("stream",)),
    ("event_bridge_events_duplicate", "counter", ("stream",)),
    ("event_bridge_events_malformed", "counter", ("reason", "stream")),
    ("event_bridge_events_undated", "counter", ("stream",)),
    ("event_bridge_stream_lag_seconds", "histogram", ("stream",)),
    ("event_bridge_stream_connected", "gauge", ("stream",)),
    ("event_bridge_stream_reconnects", "counter", ("reason", "stream")),
    ("event_bridge_stream_gap_seconds", "counter", ("stream",)),
    ("event_bridge_stream_last_frame_timestamp_seconds", "gauge", ("stream",)),
    ("event_bridge_stream_control_frames", "counter", ("stream", "type")),
    ("event_bridge_stream_ignored", "counter", ("stream",)),
    ("event_bridge_sink_events_delivered", "counter", ("sink",)),
    ("event_bridge_sink_events_filtered", "counter", ("sink",)),
    ("event_bridge_sink_events_dead", "counter", ("sink",)),
    ("event_bridge_sink_events_dropped", "counter", ("sink",)),
    ("event_bridge_sink_pending_events", "gauge", ("sink",)),
    ("event_bridge_sink_retry_events", "gauge", ("sink",)),
    ("event_bridge_sink_events_replayed", "counter", ("sink",)),
    ("event_bridge_sink_events_rewound", "counter", ("sink",)),
    ("event_bridge_sink_dead_letters_discarded", "counter", ("sink",)),
    ("event_bridge_sink_dead_letters", "gauge", ("sink",)),
    ("event_bridge_sink_lag_seconds", "gauge", ("sink",)),
    ("event_bridge_sink_latency_seconds", "histogram", ("sink",)),
    ("event_bridge_sink_up", "gauge", ("sink",)),
    ("event_bridge_sink_paused", "gauge", ("reason", "sink")),
    ("event_bridge_sink_last_delivery_timestamp_seconds", "gauge", ("sink",)),
    ("event_bridge_stream_last_event_timestamp_seconds", "gauge", ("stream",)),
    ("event_bridge_ready", "gauge", ()),
    ("event_bridge_sink_failures", "counter", ("reason", "sink")),
    ("event_bridge_sink_delivery_seconds", "histogram", ("sink",)),
    ("event_bridge_journal_bytes", "gauge", ()),
    ("event_bridge_journal_limit_bytes", "gauge", ()),
    ("event_bridge_journal_damaged_files", "gauge", ()),
    ("event_bridge_journal_in_trouble", "gauge", ()),
    ("event_bridge_journal_commit_seconds", "histogram", ()),
    ("event_bridge_build_info", "gauge", ("python", "version")),
    ("event_bridge_config_last_reload_successful", "gauge", ()),
    ("event_bridge_config_last_reload_success_timestamp_seconds", "gauge", ()),
    ("event_bridge_http_wrong_tokens", "counter", ()),
    ("event_bridge_thread_restarts", "counter", ()),
}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Observed:
    """Books of one stream and one sink that have done nothing yet."""

    def problems(self) -> list[str]:
        return []

    def counters(self) -> Counters:
        return Counters({"acme": StreamCounters(malformed={})}, {"audit": SinkCounters(0, 0, 0, 0, 0, 0, 0, 0)}, 4096, None)

    def gap_seconds(self) -> Mapping[str, float]:
        return {"acme": 1.5}

    def lag_seconds(self) -> Mapping[str, float]:
        return {"audit": 0.0}

    def damaged_journals(self) -> int:
        return 2


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics("1.2.3")
    StreamMetrics(made, "acme")
    SinkMetrics(made, "audit")
    made.observe(Observed())
    return made


def scrape(metrics: Metrics) -> str:
    text: str = generate_latest(metrics.registry).decode()
    return text


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


# --- names and first values --------------------------------------------------------------------------------------------


def test_the_metrics_are_those_of_the_documentation(metrics: Metrics) -> None:
    found = {
        (family.name, family.type, tuple(sorted({label for sample in family.samples for label in sample.labels} - {"le"})))
        for family in text_string_to_metric_families(scrape(metrics))
        if family.name.startswith("event_bridge_")
    }

    assert found == EXPECTED


def test_the_process_and_the_interpreter_are_there_as_well(metrics: Metrics) -> None:
    names = {family.name for family in text_string_to_metric_families(scrape(metrics))}

    assert {"process_resident_memory_bytes", "process_open_fds", "python_info", "python_gc_collections"} <= names


def test_everything_is_there_with_its_first_value_before_anything_happens(metrics: Metrics) -> None:
    ours = {key: value for key, value in samples(scrape(metrics)).items() if key[0].startswith("event_bridge_")}
    not_zero = {key[0]: value for key, value in ours.items() if value}
    began = not_zero.pop("event_bridge_config_last_reload_success_timestamp_seconds")

    assert time.time() - 3600 < began <= time.time()
    assert not_zero == {
        "event_bridge_build_info": 1,
        "event_bridge_config_last_reload_successful": 1,
        "event_bridge_journal_bytes": 4096,
        "event_bridge_journal_damaged_files": 2,
        "event_bridge_ready": 1,
        "event_bridge_stream_gap_seconds_total": 1.5,
    }
    by_reason = {
        "event_bridge_events_malformed_total": ("reason", MALFORMED_REASONS, ("stream", "acme")),
        "event_bridge_stream_reconnects_total": ("reason", END_REASONS, ("stream", "acme")),
        "event_bridge_stream_control_frames_total": ("type", sorted(CONTROL_TYPES), ("stream", "acme")),
        "event_bridge_sink_failures_total": ("reason", REASONS, ("sink", "audit")),
    }
    for name, (label, values, of) in by_reason.items():
        assert {key for key in ours if key[0] == name} == {(name, tuple(sorted([of, (label, value)]))) for value in values}


def test_the_version_is_told(metrics: Metrics) -> None:
    info = [dict(labels) for name, labels in samples(scrape(metrics)) if name == "event_bridge_build_info"]

    assert [labels["version"] for labels in info] == ["1.2.3"]


def test_there_are_no_series_about_when_others_were_made(metrics: Metrics) -> None:
    assert "_created" not in scrape(metrics)


def test_what_left_the_configuration_leaves_the_metrics(metrics: Metrics) -> None:
    StreamMetrics(metrics, "other")
    SinkMetrics(metrics, "other")

    metrics.forget_stream("acme")
    metrics.forget_sink("audit")

    left = {key[0] for key in samples(scrape(metrics)) if {"acme", "audit"} & {value for _, value in key[1]}}
    # These come from the books, which have forgotten them by themselves.
    from_books = (
        *("event_bridge_events_", "event_bridge_stream_gap_", "event_bridge_sink_events_", "event_bridge_sink_pending_"),
        *("event_bridge_sink_retry_", "event_bridge_sink_dead_", "event_bridge_sink_lag_"),
    )
    assert [name for name in left if not name.startswith(from_books) or "undated" in name] == []
    assert 'event_bridge_stream_connected{stream="other"} 0.0' in scrape(metrics)


# --- formats -----------------------------------------------------------------------------------------------------------


def test_prometheus_has_nothing_to_complain_about(metrics: Metrics) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (package prometheus)")

    checked = subprocess.run(
        [promtool, "check", "metrics"], input=scrape(metrics), capture_output=True, text=True, timeout=60, check=False
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_open_format_says_the_same(metrics: Metrics) -> None:
    encode, _ = choose_encoder("application/openmetrics-text")
    text = encode(metrics.registry).decode()
    said = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_openmetrics(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if family.name.startswith("event_bridge_")
    }

    assert text.endswith("# EOF\n")
    assert said == {key: value for key, value in samples(scrape(metrics)).items() if key[0].startswith("event_bridge_")}


# --- the books ---------------------------------------------------------------------------------------------------------


class Script:
    """A source with one session that brings what it was given."""

    def __init__(self, *reads: Sequence[bytes]) -> None:
        self._reads = deque(reads)

    def open(self, position: str | None) -> "Script":
        del position
        return self

    def read(self) -> Read:
        if not self._reads:
            raise Ended("closed by the server", "closed")
        return Read(self._reads.popleft(), heard=True)

    def abort(self) -> None: ...

    def close(self) -> None: ...


class Picky:
    """A sink that fails every third event for now, and every fifth for ever."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        return [
            Failure.rejected(entry, "rejected", "400") if entry.seq % 5 == 0 else Failure.retry(entry, "timeout", "slow")
            for entry in entries
            if entry.seq % 5 == 0 or entry.seq % 3 == 0
        ]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(JournalSettings(path=tmp_path / "journal.db", durability="normal"))
    yield opened
    opened.close()


def test_the_books_balance_in_a_scrape(journal: Journal) -> None:
    metrics = Metrics("1.2.3")
    names = ("all", "picky", "idle")
    for name in names:
        journal.add_sink(name, "latest")
    source = Script(
        [message(n, type="container" if n % 4 else "node") for n in range(40)],
        [message(n, type="container" if n % 4 else "node") for n in range(30, 60)],
        [b"junk", b"[]", message(60, type="node")],
    )
    stream = Stream(
        "acme",
        SourceSettings(namespace="acme"),
        source,
        journal,
        metrics=StreamMetrics(metrics, "acme"),
        max_event_bytes=1_000_000,
    )
    settings = SinkSettings(
        type="picky", match=[{"type": ["container"]}], retry=RetrySettings(first_delay=3600.0, max_delay=7200.0)
    )
    forwarders = [Forwarder(name, Picky(), settings, journal, metrics=SinkMetrics(metrics, name)) for name in names]
    metrics.observe(Health(journal, lambda: Running([stream], forwarders), settings=HealthSettings(), version="1.2.3"))

    stream.step()
    for forwarder in forwarders[:2]:
        forwarder.step()
    counters = samples(scrape(metrics))

    def of(name: str, **labels: str) -> float:
        return counters[f"event_bridge_{name}", tuple(sorted(labels.items()))]

    door = {field: of(f"events_{field}_total", stream="acme") for field in ("received", "accepted", "duplicate")}
    malformed = {reason: of("events_malformed_total", stream="acme", reason=reason) for reason in MALFORMED_REASONS}
    assert door == {"received": 73, "accepted": 61, "duplicate": 10}
    assert malformed == {"not_json": 1, "not_object": 1, "bad_field": 0, "too_large": 0}
    assert door["received"] == door["accepted"] + door["duplicate"] + sum(malformed.values())
    for sink in names:
        exits = [of(f"sink_events_{field}_total", sink=sink) for field in ("delivered", "filtered", "dead", "dropped")]
        assert sum(exits) + of("sink_pending_events", sink=sink) == door["accepted"]
        assert of("sink_events_replayed_total", sink=sink) == of("sink_dead_letters_discarded_total", sink=sink) == 0
        assert all(exits[:3]) == (sink != "idle")
        assert of("sink_dead_letters", sink=sink) == of("sink_events_dead_total", sink=sink) == exits[2]
        assert of("sink_retry_events", sink=sink) == (of("sink_pending_events", sink=sink) if sink != "idle" else 0)
        assert of("sink_lag_seconds", sink=sink) > 3600
        assert of("sink_failures_total", sink=sink, reason="rejected") == exits[2]


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.3, 99_999.0])
def test_many_events_are_observed_as_one_by_one(seconds: float) -> None:
    """The library's own way is the oracle: what is added here reaches into it."""
    found = []
    for at_once in (True, False):
        metrics = Metrics("1")
        latency = metrics.sink_latency.labels("audit")
        assert isinstance(latency, EventHistogram)
        if at_once:
            latency.observe_all(seconds, 7)
        else:
            for _ in range(7):
                latency.observe(seconds)
        lines = scrape(metrics).splitlines()
        found.append([line for line in lines if line.startswith("event_bridge_sink_latency_seconds")])

    assert [line.rpartition(" ")[0] for line in found[0]] == [line.rpartition(" ")[0] for line in found[1]]
    values = [[float(line.rpartition(" ")[2]) for line in lines] for lines in found]
    assert values[0] == pytest.approx(values[1])
    assert max(values[0]) >= 7
