"""Settings in, a bridge ready to run out: the one place that knows both the configuration and the parts."""

import threading
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from bridge.dockercloud import DockerCloudSource
from bridge.dockercloud_url import DockerCloudOptions
from bridge.engine import EngineOptions, EngineSource
from bridge.forwarder import Forwarder
from bridge.health import Health, Thresholds
from bridge.journal import Journal, JournalOptions
from bridge.metrics import Metrics, SinkMetrics, StreamMetrics
from bridge.server import Server
from bridge.sink import Sink, SinkSettings
from bridge.source import Source
from bridge.stream import Stream, StreamPolicy
from bridge.supervisor import Supervisor
from config.load import ConfigError
from config.plugins import installed, load_plugin
from config.settings import DockerCloudSettings, EngineSettings, Settings

log = structlog.get_logger(__name__)

VERSION: Final = version("event-bridge")
USER_AGENT: Final = f"event-bridge/{VERSION}"

_FRESH_ENOUGH: Final = 1.0
"""Seconds for which a configuration that was just read is not read again: many streams may reconnect at once."""


class Credentials:
    """The streams' Authorization headers, as environment and files say them now.

    Args:
        settings: The configuration that the process runs with.
        reload: Reads the configuration anew.
    """

    def __init__(self, settings: Settings, reload: Callable[[], Settings]) -> None:
        self._settings = settings
        self._reload = reload
        self._lock = threading.Lock()
        self._read_at = time.monotonic()

    def of(self, stream: str) -> str | None:
        """The value of a stream's Authorization header; None if it has none. The last good one if it can't be read now."""
        with self._lock:
            if time.monotonic() - self._read_at > _FRESH_ENOUGH:
                self._read_again()
            settings = self._settings.streams.get(stream)
        return settings.authorization() if isinstance(settings, DockerCloudSettings) else None

    def _read_again(self) -> None:
        self._read_at = time.monotonic()
        try:
            self._settings = self._reload()
        except ConfigError as error:
            log.warning("credentials can't be read again, the last ones are used", problems=error.problems)


class Bridge(NamedTuple):
    """All parts of one process."""

    journal: Journal
    streams: list[Stream]
    forwarders: list[Forwarder]
    metrics: Metrics
    health: Health
    supervisor: Supervisor


def build(settings: Settings, credentials: Credentials) -> Bridge:
    """Make all parts; nothing runs yet.

    Raises:
        JournalError: The journal can't be opened.
    """
    metrics = Metrics(VERSION)
    metrics.journal_limit.set(settings.journal.max_bytes)
    journal = open_journal(settings, metrics)
    journal.forget_sinks_except(set(settings.sinks))
    for name, sink in settings.sinks.items():
        journal.add_sink(name, sink.start_at)
    streams = [
        Stream(
            name,
            stream.namespace,
            source(name, stream, credentials),
            journal,
            metrics=StreamMetrics(metrics, name),
            policy=StreamPolicy(
                backoff=(stream.backoff.first, stream.backoff.max),
                auth_backoff=(stream.auth_backoff.first, stream.auth_backoff.max),
                stable_after=stream.stable_after,
                max_event_bytes=settings.journal.max_event_bytes,
            ),
        )
        for name, stream in settings.streams.items()
    ]
    forwarders = [
        Forwarder(name, make_sink(name, sink), sink, journal, metrics=SinkMetrics(metrics, name))
        for name, sink in settings.sinks.items()
    ]
    thresholds = Thresholds(settings.health.stream_grace, settings.health.sink_grace)
    health = Health(journal, streams, forwarders, thresholds=thresholds, version=VERSION)
    metrics.observe(health)
    supervisor = Supervisor(journal, streams, forwarders, restarts=metrics.thread_restarts, grace=settings.shutdown.grace)
    return Bridge(journal, streams, forwarders, metrics, health, supervisor)


def serve(settings: Settings, bridge: Bridge, *, or_any_port: bool = False) -> Server | None:
    """Open the HTTP port, if there is to be one; if that is taken, maybe any other.

    Raises:
        ConfigError: The address can't be listened on.
    """
    if settings.http.address is None:
        return None
    host, port = settings.http.address
    listen = partial(
        Server, health=bridge.health, registry=bridge.metrics.registry, last_tick=lambda: bridge.supervisor.last_tick
    )
    try:
        return listen(host, port)
    except OSError as error:
        if or_any_port:
            return listen(host, 0)
        raise ConfigError([f"http.listen: {host}:{port}: {error.strerror}; choose another address, or off"]) from None


def open_journal(settings: Settings, metrics: Metrics) -> Journal:
    """Open the journal that the settings name.

    Raises:
        JournalError: It can't be opened.
    """
    journal = settings.journal
    options = JournalOptions(
        path=journal.path,
        durability=journal.durability,
        max_bytes=journal.max_bytes,
        when_full=journal.when_full,
        window=journal.dedup.window,
        window_events=journal.dedup.max_events,
    )
    return Journal(options, metrics.journal_commit.observe)


def source(name: str, settings: DockerCloudSettings | EngineSettings, credentials: Credentials) -> Source:
    """Make what a stream's sessions are opened with."""
    if isinstance(settings, EngineSettings):
        return EngineSource(
            EngineOptions(
                url=settings.url,
                namespace=settings.namespace,
                connect_timeout=settings.connect_timeout,
                ca_file=settings.ca_file,
                cert_file=settings.cert_file,
                key_file=settings.key_file,
            )
        )
    return docker_cloud_source(settings, lambda: credentials.of(name))


def docker_cloud_source(settings: DockerCloudSettings, authorization: Callable[[], str | None]) -> DockerCloudSource:
    """Make what a websocket stream's sessions are opened with."""
    options = DockerCloudOptions(
        url=settings.url,
        namespace=settings.namespace,
        path=settings.path,
        types=tuple(settings.types),
        objects=tuple(settings.objects),
        parents=tuple(settings.parents),
        ping_interval=settings.ping_interval,
        ping_timeout=settings.ping_timeout,
        idle_timeout=settings.idle_timeout,
        connect_timeout=settings.connect_timeout,
        max_frame_bytes=settings.max_frame_bytes,
        ca_file=str(settings.ca_file) if settings.ca_file else None,
        proxy=settings.proxy.get_secret_value() if settings.proxy else None,
        user_agent=USER_AGENT,
    )
    return DockerCloudSource(options, authorization, time.monotonic)


def settings_for_demo(streams: dict[str, Any], journal: Path) -> Settings:
    """What a demo runs with: these streams, and standard output."""
    sink = load_plugin(installed(), "stdout").Settings(type="stdout", start_at="earliest")
    return Settings.model_validate(
        {
            "journal": {"path": journal},
            "shutdown": {"grace": 2},
            "streams": streams,
            "sinks": {"stdout": sink},
        }
    )


def make_sink(name: str, settings: SinkSettings) -> Sink:
    """Make a sink of the plug-in that the settings' type names."""
    return load_plugin(installed(), settings.type)(name, settings)
