"""The state of a sink by itself; tests of the forwarder let sinks fail."""

from structlog.testing import capture_logs

from bridge.metrics import Metrics, SinkMetrics
from bridge.pipeline.availability import Availability
from bridge.sink import SinkSettings
from tests.support.forwarding import Clock


def test_changes_are_logged_and_not_each_failure() -> None:
    clock, metrics = Clock(), Metrics("test")
    settings = SinkSettings.model_validate({"type": "a", "backoff": {"first": 1, "max": 2}})
    sink = Availability("a", settings, SinkMetrics(metrics, "a"), lambda: clock.day, lambda _, highest: highest)
    began = clock.day

    with capture_logs() as logs:
        delays = [sink.failed("unreachable", "refused", None) for _ in range(3)]
        clock.pass_(5.0)
        sink.works()
        sink.works()
        sink.works("retry_queue_full", 7)
        sink.works("retry_queue_full", 7)
        assert paused(metrics) == {"retry_queue_full": 1.0, "dead_letters_full": 0.0}
        clock.pass_(1.0)
        assert sink.failed("timeout", "no answer", 30.0) == 33.0

    assert paused(metrics) == {"retry_queue_full": 0.0, "dead_letters_full": 0.0}
    assert delays == [1.0, 2.0, 2.0]
    assert [(line["event"], line.get("reason")) for line in logs] == [
        ("sink unavailable", "unreachable"),
        ("sink available", None),
        ("sink unavailable", "retry_queue_full"),
        ("sink unavailable", "timeout"),
    ]
    assert (logs[1]["after_seconds"], logs[1]["failures"]) == (5.0, 3)
    assert (sink.status.up, sink.status.since, sink.status.reason) == (False, began + 5.0, "timeout")


def test_the_first_failure_after_an_acknowledgement_has_the_shortest_delay() -> None:
    settings = SinkSettings.model_validate({"type": "a", "backoff": {"first": 1, "max": 60}})
    sink = Availability("a", settings, SinkMetrics(Metrics("test"), "a"), lambda: 0.0, lambda _, highest: highest)

    assert [sink.failed("unreachable", "", None) for _ in range(3)] == [1.0, 2.0, 4.0]
    sink.acknowledged = True
    assert [sink.failed("unreachable", "", None) for _ in range(2)] == [1.0, 2.0]


def paused(metrics: Metrics) -> dict[str, float]:
    return {sample.labels["reason"]: sample.value for family in metrics.sink_paused.collect() for sample in family.samples}
