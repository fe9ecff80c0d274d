"""The names of all metrics.

The counters of the journal live in the journal and are read at the scrape, all at one instant, so they balance and survive
restarts: `received = accepted + duplicate + malformed`; per sink `dead = dead_letters + replayed + discarded` and
`accepted + replayed + rewound = delivered + filtered + dead + dropped + pending`. The rest is counted here, once per batch and
never per event.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from platform import python_version
from typing import Final, Protocol, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from bridge.event import CONTROL_TYPES, MalformedReason
from bridge.journal import Counters, Paused
from bridge.sink import REASONS
from bridge.source import END_REASONS

MALFORMED_REASONS: Final[tuple[str, ...]] = get_args(MalformedReason)

_FAST_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# Retries and outages make latencies hours long.
_SLOW_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 300, 1800, 7200, 43200)


class Observed(Protocol):
    """The values that are read at a scrape."""

    def counters(self) -> Counters:
        """All counts at one instant, of every configured stream and sink."""

    def gap_seconds(self) -> Mapping[str, float]:
        """For how long each stream was disconnected, all in all, the present gap included."""

    def lag_seconds(self) -> Mapping[str, float]:
        """Return the age of the oldest pending event of each sink; 0 if there is none."""

    def damaged_journals(self) -> int:
        """Return the number of damaged journals that were set aside and are still there."""

    def problems(self) -> Sequence[str]:
        """Return the reasons why the process is not ready."""


class EventHistogram(Histogram):
    """A histogram of events that come in batches: a quantile of it is one of events, not of batches."""

    def observe_all(self, seconds: float, count: int) -> None:
        """Observe the same value for so many events, as `observe` of the library does for one."""
        self._sum.inc(seconds * count)
        for bound, bucket in zip(self._upper_bounds, self._buckets, strict=True):
            if seconds <= bound:
                bucket.inc(count)
                break


class StreamMetrics:
    """The metrics of one stream, ready to be counted without a look-up."""

    def __init__(self, metrics: "Metrics", name: str) -> None:
        self.connected = metrics.stream_connected.labels(name)
        self.last_frame = metrics.stream_last_frame.labels(name)
        self.last_event = metrics.stream_last_event.labels(name)
        self.lag = metrics.stream_lag.labels(name)
        self.undated = metrics.events_undated.labels(name)
        self.ignored = metrics.stream_ignored.labels(name)
        self.reconnects = {reason: metrics.stream_reconnects.labels(name, reason) for reason in END_REASONS}
        self.control = {kind: metrics.stream_control.labels(name, kind) for kind in sorted(CONTROL_TYPES)}


class SinkMetrics:
    """The metrics of one sink, ready to be counted without a look-up."""

    def __init__(self, metrics: "Metrics", name: str) -> None:
        self.up = metrics.sink_up.labels(name)
        self.paused = {reason: metrics.sink_paused.labels(name, reason) for reason in get_args(Paused)}
        self.last_delivery = metrics.sink_last_delivery.labels(name)
        self.latency = metrics.sink_latency.labels(name)
        self.delivery = metrics.sink_delivery.labels(name)
        self.failures = {reason: metrics.sink_failures.labels(name, reason) for reason in REASONS}


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(self, version: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"event_bridge_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"event_bridge_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> EventHistogram:
            return EventHistogram(f"event_bridge_{name}", text, labels, registry=registry, buckets=tuple(buckets))

        self.stream_connected = gauge("stream_connected", "1 while the stream is connected.", "stream")
        self.stream_reconnects = counter(
            "stream_reconnects", "Sessions that ended or could not be opened, by reason.", "stream", "reason"
        )
        self.stream_last_frame = gauge(
            "stream_last_frame_timestamp_seconds", "When anything at all arrived last, a pong for example.", "stream"
        )
        self.stream_lag = histogram(
            "stream_lag_seconds", "Time from an event to its reception, by the oldest of each read.", _SLOW_SECONDS, "stream"
        )
        self.stream_control = counter("stream_control_frames", "Messages that are no events, by type.", "stream", "type")
        self.stream_ignored = counter("stream_ignored", "What has no counterpart among the events of Docker Cloud.", "stream")
        self.events_undated = counter("events_undated", "Events without a readable time; they got that of reception.", "stream")
        self.stream_last_event = gauge("stream_last_event_timestamp_seconds", "When an event arrived last.", "stream")
        self.sink_last_delivery = gauge("sink_last_delivery_timestamp_seconds", "When an event was acknowledged last.", "sink")
        self.sink_up = gauge("sink_up", "1 while the sink is able to deliver.", "sink")
        self.sink_paused = gauge(
            "sink_paused", "1 while the sink gets no new events, since its queue is full.", "sink", "reason"
        )
        self.sink_failures = counter(
            "sink_failures", "Deliveries that failed as a whole, and events that failed by themselves.", "sink", "reason"
        )
        self.sink_latency = histogram(
            "sink_latency_seconds",
            "Time from reception to acknowledgement, by the oldest of each delivery.",
            _SLOW_SECONDS,
            "sink",
        )
        self.sink_delivery = histogram("sink_delivery_seconds", "Duration of one delivery.", _FAST_SECONDS, "sink")
        self.journal_commit = histogram("journal_commit_seconds", "Duration of one commit of events.", _FAST_SECONDS)
        self.journal_limit = gauge("journal_limit_bytes", "How large the journal may become.")
        self.reload_successful = gauge("config_last_reload_successful", "1 if the configuration was read without errors.")
        self.reload_successful.set(1)
        self.reload_success_time = gauge(
            "config_last_reload_success_timestamp_seconds", "When the configuration was read without errors."
        )
        self.reload_success_time.set_to_current_time()
        self.http_wrong_tokens = counter("http_wrong_tokens", "Requests with a wrong token for operations.")
        self.thread_restarts = counter("thread_restarts", "Threads that died of a bug and were started again.")
        gauge("build_info", "The version that runs.", "version", "python").labels(version, python_version()).set(1)

    def observe(self, observed: Observed) -> None:
        """Scrape these, too."""
        self.registry.register(_CountersCollector(observed))

    def forget_stream(self, name: str) -> None:
        """A stream left the configuration."""
        for metric in (
            self.stream_connected,
            self.stream_last_frame,
            self.stream_last_event,
            self.stream_lag,
            self.events_undated,
            self.stream_ignored,
        ):
            metric.remove_by_labels({"stream": name})
        for labelled in (self.stream_reconnects, self.stream_control):
            labelled.remove_by_labels({"stream": name})

    def forget_sink(self, name: str) -> None:
        """A sink left the configuration."""
        for metric in (
            self.sink_up,
            self.sink_paused,
            self.sink_failures,
            self.sink_latency,
            self.sink_delivery,
            self.sink_last_delivery,
        ):
            metric.remove_by_labels({"sink": name})


class _CountersCollector(Collector):
    def __init__(self, observed: Observed) -> None:
        self._observed = observed

    def describe(self) -> Iterable[Metric]:
        """Nothing: the names are known without a look at the journal."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read everything at one instant."""
        counters = self._observed.counters()
        yield from _streams(counters)
        yield _family(
            CounterMetricFamily("event_bridge_stream_gap_seconds", "Seconds without a connection.", labels=["stream"]),
            self._observed.gap_seconds(),
        )
        yield from _sinks(counters)
        yield _family(
            GaugeMetricFamily(
                "event_bridge_sink_lag_seconds", "Age of the oldest event that was not delivered; 0 if none.", labels=["sink"]
            ),
            self._observed.lag_seconds(),
        )
        yield GaugeMetricFamily("event_bridge_ready", "1 if /readyz says yes.", value=not self._observed.problems())
        yield GaugeMetricFamily("event_bridge_journal_bytes", "How much of the journal is in use.", value=counters.bytes)
        yield GaugeMetricFamily(
            "event_bridge_journal_in_trouble",
            "1 while something fails in the journal: it is full, or the disk is.",
            value=counters.last_error is not None,
        )
        yield GaugeMetricFamily(
            "event_bridge_journal_damaged_files",
            "Damaged journals that were set aside and lie beside this one, with what they had not delivered.",
            value=self._observed.damaged_journals(),
        )


def _streams(counters: Counters) -> Iterator[Metric]:
    for field, text in (
        ("received", "Events that arrived, malformed ones included."),
        ("accepted", "Events that the journal took."),
        ("duplicate", "Events whose uuid was seen before."),
    ):
        family = CounterMetricFamily(f"event_bridge_events_{field}", text, labels=["stream"])
        yield _family(family, {name: getattr(stream, field) for name, stream in counters.streams.items()})
    malformed = CounterMetricFamily(
        "event_bridge_events_malformed", "Messages that are no events.", labels=["stream", "reason"]
    )
    for name, stream in counters.streams.items():
        for reason in MALFORMED_REASONS:
            malformed.add_metric([name, reason], stream.malformed.get(reason, 0))
    yield malformed


def _sinks(counters: Counters) -> Iterator[Metric]:
    for metric, field, text in (
        ("events_delivered", "delivered", "Events that the far side acknowledged."),
        ("events_filtered", "filtered", "Events that the sink's filter leaves out."),
        ("events_dead", "dead", "Events that became dead letters."),
        ("events_dropped", "dropped", "Events that were given up to make room, or were damaged on disk."),
        ("events_replayed", "replayed", "Dead letters that were sent back to the retry queue."),
        ("events_rewound", "rewound", "Events that the sink got again, since its cursor was set back."),
        ("dead_letters_discarded", "discarded", "Dead letters that were deleted, by an operator or to make room."),
    ):
        family = CounterMetricFamily(f"event_bridge_sink_{metric}", text, labels=["sink"])
        yield _family(family, {name: getattr(sink, field) for name, sink in counters.sinks.items()})
    for metric, field, text in (
        ("pending_events", "pending", "Events that wait for delivery, retries included."),
        ("retry_events", "retrying", "Events that wait in the retry queue."),
        ("dead_letters", "dead_letters", "Dead letters that lie there now."),
    ):
        gauge = GaugeMetricFamily(f"event_bridge_sink_{metric}", text, labels=["sink"])
        yield _family(gauge, {name: getattr(sink, field) for name, sink in counters.sinks.items()})


def _family(
    family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]
) -> CounterMetricFamily | GaugeMetricFamily:
    for label, value in values.items():
        family.add_metric([label], value)
    return family
