"""Builds the application from its settings: the one place that knows both the configuration and what runs."""

import errno
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from secrets import token_urlsafe
from typing import Any, Final, NamedTuple, TypeVar

import structlog

from bridge.admin.health import Health
from bridge.admin.retry import retry_route
from bridge.admin.routes import Access, operation_routes, reload_route
from bridge.admin.server import Server
from bridge.admin.starting import answering_probes
from bridge.journal import Journal
from bridge.metrics import Metrics, SinkMetrics, StreamMetrics
from bridge.pipeline.forwarder import Forwarder
from bridge.pipeline.gaps import GapTracker
from bridge.pipeline.stream import Stream
from bridge.pipeline.supervisor import Requests, Supervisor
from bridge.sink import Sink, SinkSettings
from bridge.source import Source
from bridge.sources.dockercloud.source import DockerCloudSource
from bridge.sources.engine.settings import EngineSettings
from bridge.sources.engine.source import EngineSource
from bridge.tls import ServerContext
from config.load import ConfigError
from config.plugins import installed, load_plugin
from config.rotation import ConfigReader, FreshSecrets
from config.settings import Settings, StreamSettings

log = structlog.get_logger(__name__)

VERSION: Final = version("event-bridge")
USER_AGENT: Final = f"event-bridge/{VERSION}"

Made = TypeVar("Made")


class PortError(Exception):
    """The HTTP port can't be opened now, since somebody else has it or its address is not there yet; this may pass."""


class Factory:
    """Builds the sources and sinks named in the settings; what can fail happens here, `stream` and `forwarder` only wire.

    Args:
        settings: The whole configuration.
        reader: Gives new secrets when something is opened.
        streams: Names of the streams to build sources for.
        sinks: Names of the sinks to build.

    Raises:
        ConfigError: With everything that can't be built.
    """

    def __init__(self, settings: Settings, reader: ConfigReader, streams: Iterable[str], sinks: Iterable[str]) -> None:
        self._settings = settings
        self._reader = reader
        self._problems: list[str] = []
        self._sources = self._made("streams", streams, lambda name: source(name, settings.streams[name], reader))
        self._sinks = self._made("sinks", sinks, lambda name: make_sink(name, settings.sinks[name]))
        if self._problems:
            raise ConfigError(self._problems)

    def stream(self, name: str, journal: Journal, metrics: Metrics, gaps: GapTracker | None = None) -> Stream:
        """Wire a stream; with the gap tracker of the one that it replaces, if there is one."""
        return Stream(
            name,
            self._settings.streams[name],
            self._sources[name],
            journal,
            metrics=StreamMetrics(metrics, name),
            max_event_bytes=self._settings.journal.max_event_bytes,
            gaps=gaps,
        )

    def forwarder(self, name: str, journal: Journal, metrics: Metrics) -> Forwarder:
        """Wire a forwarder, which gets a new sink if secrets have changed when the sink is opened."""
        settings = made_with = self._settings.sinks[name]
        for deprecation in settings.deprecations:
            log.warning("a setting has an old name", sink=name, setting=deprecation)
        secrets = FreshSecrets(self._reader, settings, "sinks", name)

        def rebuild_sink() -> Sink | None:
            nonlocal made_with
            current = secrets.current()
            if current is made_with:
                return None
            sink, made_with = make_sink(name, current), current
            log.info("the sink has other secrets now", sink=name)
            return sink

        return Forwarder(
            name, self._sinks[name], settings, journal, metrics=SinkMetrics(metrics, name), rebuild_sink=rebuild_sink
        )

    def _made(self, section: str, names: Iterable[str], make: Callable[[str], Made]) -> dict[str, Made]:
        made: dict[str, Made] = {}
        for name in names:
            try:
                made[name] = make(name)
            except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
                self._problems.append(f"{section}.{name}: can't be made: {type(error).__name__}: {error}")
        return made


class App(NamedTuple):
    """Parts of one process."""

    journal: Journal
    metrics: Metrics
    health: Health
    supervisor: Supervisor
    reader: ConfigReader


def build(settings: Settings, reader: ConfigReader, requests: Requests | None = None) -> App:
    """Build everything; nothing runs yet.

    Args:
        settings: The whole configuration.
        reader: Gives new secrets when something is opened.
        requests: See `Supervisor`.

    Raises:
        ConfigError: A source or a sink can't be built.
        JournalError: The journal can't be opened.
    """
    factory = Factory(settings, reader, settings.streams, settings.sinks)
    metrics = Metrics(VERSION)
    metrics.journal_limit.set(settings.journal.max_bytes)
    journal = Journal(settings.journal, metrics.journal_commit.observe)
    journal.forget_sinks_except(set(settings.sinks))
    for name, sink in settings.sinks.items():
        journal.add_sink(name, sink.start, sink.retry.max_pending)
    supervisor = Supervisor(
        journal,
        [factory.stream(name, journal, metrics) for name in settings.streams],
        [factory.forwarder(name, journal, metrics) for name in settings.sinks],
        restarts=metrics.thread_restarts,
        grace=settings.shutdown.grace,
        requests=requests,
    )
    health = Health(journal, supervisor.running, settings=settings.health, version=VERSION)
    metrics.observe(health)
    return App(journal, metrics, health, supervisor, reader)


def serve(settings: Settings, app: App, *, or_any_port: bool = False) -> Server | None:
    """Open the HTTP port, if one is configured; if it is taken and `or_any_port`, any other.

    Raises:
        ConfigError: The address can't be listened on.
        PortError: It can't be listened on now.
    """
    if settings.http.address is None:
        return None
    host, port = settings.http.address
    secret = token_urlsafe()

    def token() -> str | None:
        # Also if the address was changed together with it: the old token must not stay valid.
        configured = app.reader.current().http.token
        return configured.get_secret_value() if configured else None

    def note_wrong_token(client: str) -> None:
        log.warning("a client sent a wrong token", client=client)
        app.metrics.http_wrong_tokens.inc()

    access = Access(secret, token, note_wrong_token)
    operations = operation_routes(app.journal)
    operations["/-/retry"] = retry_route(app.supervisor.running)
    operations["/-/reload"] = reload_route(app.health, app.supervisor.requests)
    listen = partial(
        Server,
        health=app.health,
        registry=app.metrics.registry,
        last_tick=lambda: app.supervisor.last_tick,
        operations=operations,
        tls=_server_context(settings),
        access=access,
    )
    try:
        server = listen(host, port)
    except OSError as error:
        if not or_any_port:
            problem = f"http.listen: {host}:{port}: {error.strerror}; choose another address, or off"
            if error.errno in {errno.EADDRINUSE, errno.EADDRNOTAVAIL}:
                raise PortError(problem) from None
            raise ConfigError([problem]) from None
        server = listen(host, 0)
    app.journal.announce(server.url, secret)
    return server


def serve_probes(settings: Settings) -> AbstractContextManager[None]:
    """Let the HTTP port, if one is configured, say that the bridge can't start yet.

    Raises:
        ConfigError: The certificates can't be used.
    """
    if settings.http.address is None:
        return nullcontext()
    return answering_probes(settings.http.address, _server_context(settings))


def _server_context(settings: Settings) -> ServerContext | None:
    try:
        return ServerContext(*settings.http.tls.files) if settings.http.tls else None
    except OSError as error:
        raise ConfigError([f"http.tls: {error}"]) from None


def source(name: str, settings: StreamSettings, reader: ConfigReader) -> Source:
    """Build the source of a stream."""
    if isinstance(settings, EngineSettings):
        return EngineSource(settings)
    return DockerCloudSource(settings, FreshSecrets(reader, settings, "streams", name).current, user_agent=USER_AGENT)


def settings_for_demo(streams: dict[str, Any], journal: Path) -> Settings:
    """Give the settings of a demo: these streams, and standard output."""
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
    """Build a sink of the plug-in that the settings' type names."""
    return load_plugin(installed(), settings.type)(name, settings)
