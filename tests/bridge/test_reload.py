"""What a reload does with a configuration, told from the orders that it gives; nothing runs here."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from structlog.testing import capture_logs

from bridge import app
from bridge.admin.health import Health
from bridge.journal import JournalError
from bridge.metrics import SinkMetrics, StreamMetrics
from bridge.pipeline.supervisor import Running, Supervisor
from bridge.reload import Reload
from bridge.sink import Sink, SinkSettings
from config.load import ConfigError
from config.rotation import ConfigReader
from config.settings import LogSettings, Settings
from sinks.webhook.settings import WebhookSettings

SECRET = "s3cret"


def shown(health: Health) -> Any:
    """The status as its readers decode it."""
    return msgspec.json.decode(msgspec.json.encode(health.status()))


class Orders:
    """Notes what a supervisor would have to do."""

    def __init__(self, running: Running) -> None:
        self.grace = 10.0
        self.given: list[str] = []
        self.put: dict[str, Any] = {}
        self._running = running

    def running(self) -> Running:
        return self._running

    def put_stream(self, stream: Any) -> None:
        self.given.append(f"put stream {stream.name}")
        self.put[stream.name] = stream

    def put_sink(self, forwarder: Any) -> None:
        self.given.append(f"put sink {forwarder.name}")
        self.put[forwarder.name] = forwarder

    def drop_stream(self, name: str) -> None:
        self.given.append(f"drop stream {name}")

    def drop_sink(self, name: str) -> None:
        self.given.append(f"drop sink {name}")

    def forget_sinks(self) -> None:
        self.given.append("forget sinks")


class Bench:
    """A bridge that was made and does not run, and a configuration that the test rewrites."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.found: Callable[[], Settings] = self.settings
        self.logged_as: list[LogSettings] = []
        first = self.settings()
        reader = ConfigReader(first, lambda: self.found())  # noqa: PLW0108 - the test sets another one
        bridge = app.build(first, reader)
        self.journal, self.metrics, self.health = bridge.journal, bridge.metrics, bridge.health
        self.running = bridge.supervisor.running()
        self.orders = Orders(self.running)
        self.reload = Reload(bridge._replace(supervisor=cast("Supervisor", self.orders)), first, self.logged_as.append)

    def settings(self, **sections: Any) -> Settings:
        """The first configuration, with other sections."""
        base = {
            "journal": {"path": self.directory / "journal.db", "durability": "normal"},
            "streams": {"acme": stream("ws://127.0.0.1:1"), "other": stream("ws://127.0.0.1:2")},
            "sinks": {"audit": hook("http://127.0.0.1:1"), "home": hook("http://127.0.0.1:2")},
        }
        return Settings.model_validate({**base, **sections})

    def reloads(self, **sections: Any) -> list[str]:
        """Reload what has other sections; return the orders that were given."""
        found = self.settings(**sections)
        self.found = lambda: found
        self.orders.given.clear()
        self.reload()
        return list(self.orders.given)

    def value(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"event_bridge_{name}")

    def labels(self) -> set[str]:
        """The names of streams and sinks that have metrics of their own."""
        families = self.metrics.registry.collect()
        names = ("event_bridge_stream_connected", "event_bridge_sink_up")
        return {value for family in families if family.name in names for s in family.samples for value in s.labels.values()}


def stream(url: str, **others: Any) -> dict[str, Any]:
    return {"url": url, **others}


def hook(url: str, **others: Any) -> WebhookSettings:
    return WebhookSettings.model_validate({"url": url, **others})


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.journal.close()


def test_the_same_configuration_changes_nothing(bench: Bench) -> None:
    assert bench.reloads() == []
    assert bench.value("config_last_reload_successful") == 1


def test_only_what_differs_is_touched(bench: Bench) -> None:
    streams = {"other": stream("ws://127.0.0.1:2", types=["container"]), "new": stream("ws://127.0.0.1:3")}
    sinks = {"home": hook("http://127.0.0.1:2", token=SECRET), "new-hook": hook("http://127.0.0.1:3")}

    assert bench.reloads(streams=streams, sinks=sinks) == [
        *("drop sink audit", "put sink new-hook", "put sink home"),
        *("drop stream acme", "put stream new", "put stream other"),
    ]
    assert bench.labels() == {"other", "new", "home", "new-hook"}
    assert bench.reloads(streams=streams, sinks=sinks) == []


def test_a_changed_stream_goes_on_with_the_gaps_of_the_old_one_and_a_new_one_begins_its_own(bench: Bench) -> None:
    bench.reloads(streams={"acme": stream("ws://127.0.0.1:9"), "other": stream("ws://127.0.0.1:2"), "new": stream("ws://x")})

    trackers = {one.name: one.gaps for one in bench.running.streams}
    assert bench.orders.put["acme"].gaps is trackers["acme"]
    assert bench.orders.put["new"].gaps not in trackers.values()


def test_a_new_sink_has_its_cursor_before_it_runs_and_a_changed_one_keeps_its_own(bench: Bench) -> None:
    before = bench.journal.counters().sinks
    bench.reloads(
        sinks={"audit": hook("http://x", start_at="earliest"), "home": hook("http://127.0.0.1:2"), "new": hook("http://y")}
    )

    assert bench.journal.counters().sinks == {**before, "new": before["home"]}


def test_what_applies_at_once_does(bench: Bench) -> None:
    orders = bench.reloads(log={"level": "debug"}, health={"stream_grace": 1, "sink_grace": 2}, shutdown={"grace": 3})

    assert orders == []
    assert [log.level for log in bench.logged_as] == ["debug"]
    assert (bench.health.settings.stream_grace, bench.health.settings.sink_grace) == (1, 2)
    assert bench.orders.grace == 3


def test_what_needs_a_restart_is_said_each_time_and_the_rest_is_applied(bench: Bench) -> None:
    journal = {"path": bench.directory / "elsewhere.db", "max_event_bytes": 2048}
    for _ in range(2):
        with capture_logs() as logs:
            bench.reloads(journal=journal, shutdown={"grace": 3})
        assert [line["keys"] for line in logs if line["log_level"] == "warning"] == [
            ["journal.path", "journal.durability", "journal.max_event_bytes"]
        ]
    assert bench.orders.grace == 3
    assert bench.value("config_last_reload_successful") == 1


def unchanged(bench: Bench) -> bool:
    """Whether nothing was ordered and nothing was made but the problems."""
    cursors = bench.journal.counters().sinks.keys()
    return not (bench.logged_as or bench.orders.put) and bench.labels() == {"acme", "other", "audit", "home"} == {
        *cursors,
        "acme",
        "other",
    }


def test_a_bad_file_changes_nothing_and_is_said_everywhere_and_then_a_good_one_is_applied(bench: Bench) -> None:
    began = bench.value("config_last_reload_success_timestamp_seconds")

    def bad() -> Settings:
        raise ConfigError(["bridge.yaml: streams.acme.urll: no such key", "bridge.yaml: sinks.a.type: is missing"])

    bench.found = bad
    with capture_logs() as logs:
        bench.reload()

    assert unchanged(bench)
    assert bench.orders.given == []
    assert [(line["log_level"], line["problem"]) for line in logs] == [
        ("error", "bridge.yaml: sinks.a.type: is missing"),
        ("error", "bridge.yaml: streams.acme.urll: no such key"),
    ]
    assert bench.value("config_last_reload_successful") == 0
    assert bench.value("config_last_reload_success_timestamp_seconds") == began
    told = shown(bench.health)["reload"]
    assert (told["ok"], told["problems"]) == (False, [line["problem"] for line in logs])

    assert bench.reloads(streams={"acme": stream("ws://127.0.0.1:1")}) == ["drop stream other"]
    assert bench.value("config_last_reload_successful") == 1
    assert cast("float", began) < cast("float", bench.value("config_last_reload_success_timestamp_seconds")) <= time.time()
    assert shown(bench.health)["reload"]["ok"]


def test_a_sink_that_can_t_be_made_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sink = app.make_sink

    def buggy(name: str, settings: SinkSettings) -> Sink:
        if name.startswith("bad"):
            raise ValueError(f"{name} is not my day")
        return make_sink(name, settings)

    monkeypatch.setattr("bridge.app.make_sink", buggy)
    sinks = {name: hook("http://x") for name in ("good", "bad-one", "bad-two")}

    assert bench.reloads(sinks=sinks, streams={"new": stream("ws://x")}, log={"level": "debug"}) == []
    assert unchanged(bench)
    assert shown(bench.health)["reload"]["problems"] == [
        "sinks.bad-one: can't be made: ValueError: bad-one is not my day",
        "sinks.bad-two: can't be made: ValueError: bad-two is not my day",
    ]


def test_a_certificate_that_can_t_be_read_changes_nothing(bench: Bench) -> None:
    missing = str(bench.directory / "ca.pem")
    sinks = {"audit": hook("https://x", ca_file=missing), "home": hook("http://127.0.0.1:2")}
    streams = {"acme": stream("wss://x", ca_file=missing), "other": stream("ws://127.0.0.1:2")}

    assert bench.reloads(sinks=sinks, streams=streams) == []
    assert unchanged(bench)
    assert shown(bench.health)["reload"]["problems"] == [
        f"{place}.ca_file: {missing}: can't be read: No such file or directory" for place in ("sinks.audit", "streams.acme")
    ]
    Path(missing).write_text("there")
    assert bench.reloads(sinks=sinks, streams=streams) == ["put sink audit", "put stream acme"]


def test_a_cursor_that_can_t_be_recorded_changes_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise JournalError("journal.db: disk I/O error")

    monkeypatch.setattr(bench.journal, "add_sink", fail)

    assert bench.reloads(sinks={"new": hook("http://x")}) == ["forget sinks"]
    assert unchanged(bench)
    assert shown(bench.health)["reload"]["problems"] == ["journal.db: disk I/O error"]


def test_a_bug_is_logged_and_counts_as_a_failed_reload(bench: Bench) -> None:
    def bug() -> Settings:
        raise ZeroDivisionError

    bench.found = bug
    with capture_logs() as logs:
        bench.reload()

    assert [line.get("exc_info", False) for line in logs] == [True, False]
    assert bench.value("config_last_reload_successful") == 0


def test_a_secret_is_not_shown_by_anything_that_a_reload_says(bench: Bench) -> None:
    with capture_logs() as logs:
        bench.reloads(sinks={"audit": hook("http://127.0.0.1:1", token=SECRET)}, http={"listen": "off"})
        bench.reloads(sinks={"audit": hook("http://127.0.0.1:1", token=SECRET, ca_file="/nowhere")})

    assert len(logs) >= 3
    assert SECRET not in str(logs)
    assert SECRET not in str(bench.health.status())


def test_the_metrics_of_a_stream_that_left_begin_anew_when_it_comes_back(bench: Bench) -> None:
    StreamMetrics(bench.metrics, "acme").undated.inc()
    SinkMetrics(bench.metrics, "audit").up.set(1)
    bench.reloads(streams={"other": stream("ws://127.0.0.1:2")}, sinks={"home": hook("http://127.0.0.1:2")})
    bench.reloads()

    registry = bench.metrics.registry
    assert registry.get_sample_value("event_bridge_events_undated_total", {"stream": "acme"}) == 0
    assert registry.get_sample_value("event_bridge_sink_up", {"sink": "audit"}) == 0
