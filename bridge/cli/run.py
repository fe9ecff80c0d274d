"""What the subcommands of `event-bridge` do, once their arguments are understood."""

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import msgspec
import structlog
from pydantic import ValidationError

from bridge import app, logs
from bridge.cli.check import ConnectFailed
from bridge.journal import Batch, DiskFullError, JournalError
from bridge.metrics import Metrics, StreamMetrics
from bridge.reload import Reload
from bridge.simulator.server import Simulator, SimulatorSettings
from bridge.sources.dockercloud.settings import DockerCloudSettings
from bridge.sources.dockercloud.source import DockerCloudSource
from bridge.stream import Stream
from bridge.supervisor import Requests
from config.load import ConfigError, load
from config.rotation import ConfigReader
from config.settings import LogSettings, Settings

log = structlog.get_logger(__name__)

INTERRUPTED: Final = 130
"""Exit status after a second Ctrl-C, by the custom of shells: 128 and the number of the signal."""

_AGAIN: Final = 1.0
"""Seconds between attempts to start."""

_LAST_SECONDS: Final = 1.0
"""How long a stream may take to end when it was told to."""

_HINTS: Final = """\
event-bridge demo, {until}: {story}, through a durable journal, to standard output.
  metrics {url}/metrics   readiness {url}/readyz   everything {url}/status
  try next:  curl {url}/status
             {command} simulate --help          a Docker Cloud of your own, with faults on demand
             {command} demo --engine unix:///var/run/docker.sock
             {command} check --config config/bridge.example.yaml
"""


class OptionError(Exception):
    """An option of the command line makes no sense."""


class Filters(msgspec.Struct, frozen=True):
    """Which events to ask for; any value within a list, and all of the lists; an empty one lets all pass."""

    types: Sequence[str] = ()
    objects: Sequence[str] = ()
    parents: Sequence[str] = ()


def run(config: Path | None, log_format: logs.Format | None) -> bool:
    """Run the bridge until a signal says that it is enough.

    Returns:
        Whether all its threads have ended; if not, one hangs in a call to the outside.

    Raises:
        ConfigError: The configuration can't be used.
        JournalError: The journal can't be opened.
    """
    requests = Requests()
    # From here on, so that a reload that is asked for while the process still starts is made up for.
    signal.signal(signal.SIGHUP, lambda *_: requests.put("reload"))

    def log_as(wanted: LogSettings) -> None:
        logs.configure(log_format or wanted.format, wanted.level)

    try:
        settings = load(config)
        log_as(settings.log)
        reader = ConfigReader(settings, lambda: load(config))
        return _keep_running(settings, _build(settings, reader, requests), log_as)
    finally:
        # At its very end, Python would give the signal back its deadly default.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def demo(engine: str | None, duration: float | None, rate: float, seed: int) -> bool:
    """Show it: a simulator or a Docker Engine, the bridge, and events on standard output, for some seconds or until Ctrl-C.

    Returns:
        See `run`.
    """
    # A demo is watched: what it says beside the events is the hints, and what goes wrong.
    logs.configure("auto", "warning")
    with tempfile.TemporaryDirectory(prefix="event-bridge-demo-") as directory:
        journal = Path(directory) / "journal.db"
        if engine is not None:
            return _demo({"local": {"type": "engine", "url": engine}}, journal, f"the Docker Engine at {engine}", duration)
        with Simulator(SimulatorSettings(port=0, rate=rate, seed=seed, wait_for_clients=1)) as simulator:
            story = f"a simulated Docker Cloud at {simulator.url}, {rate:g} events per second"
            return _demo({"acme": {"url": simulator.url}}, journal, story, duration)


def listen(config: Path | None, url: str | None, namespace: str | None, filters: Filters) -> None:
    """Print live events of one namespace until Ctrl-C. Nothing is stored: for that, `run`.

    Raises:
        ConfigError: The configuration can't be used.
        ConnectFailed: The service refuses the credentials.
        BrokenPipeError: Nobody reads any more.
    """
    env = {**os.environ, **({"DOCKERCLOUD_STREAM_HOST": url} if url else {})}
    configured = load(config, env)
    found = _stream_to_listen(configured, namespace)
    wanted = {"url": url, "namespace": namespace, **msgspec.structs.asdict(filters)}
    try:
        settings = DockerCloudSettings.model_validate(
            found.model_dump() | {key: value for key, value in wanted.items() if value or value == ""}
        )
    except ValidationError as error:
        raise OptionError("; ".join(f"--{e['loc'][0]}: {e['msg']}" for e in error.errors(include_input=False))) from None
    stream = Stream(
        "listen",
        settings,
        DockerCloudSource(settings, lambda: settings, user_agent=app.USER_AGENT),
        _Printer(),
        metrics=StreamMetrics(Metrics(app.VERSION), "listen"),
        max_event_bytes=configured.journal.max_event_bytes,
    )
    outcome = _follow(stream)
    if outcome is not None:
        raise outcome


def simulate(settings: SimulatorSettings) -> None:
    """Be a Stream API server until a signal says that it is enough.

    Raises:
        OptionError: The address can't be listened on, or the events to replay can't be read.
    """
    wanted: SimpleQueue[None] = SimpleQueue()
    stop_on_signals(lambda: wanted.put(None))
    try:
        simulator = Simulator(settings)
        simulator.start()
    except (OSError, ValueError) as error:
        raise OptionError(str(error)) from None
    try:
        log.info("simulating a Docker Cloud; stop with Ctrl-C", url=simulator.url)
        wanted.get()
    finally:
        simulator.stop()


def stop_on_signals(stop: Callable[[], None]) -> None:
    """Call `stop` at SIGTERM and at Ctrl-C; at a second Ctrl-C, end the process on the spot.

    `stop` runs wherever the main thread is, so it must take no lock: to put into a `SimpleQueue` is safe, to set an `Event`
    is not.
    """
    asked = False

    def on_signal(number: int, _: object) -> None:
        nonlocal asked
        if asked and number == signal.SIGINT:
            os._exit(INTERRUPTED)
        asked = True
        stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


def _build(settings: Settings, reader: ConfigReader, requests: Requests) -> app.App:
    """Build a bridge; wait for space for its journal if the disk is full, since a full disk is emptied some day."""
    told = False
    while True:
        try:
            return app.build(settings, reader, requests)
        except DiskFullError as error:
            if not told:
                log.error("the bridge can't start yet, and tries again until it can", error=str(error))  # noqa: TRY400 - all is said
            told = True
            time.sleep(_AGAIN)


def _keep_running(settings: Settings, bridge: app.App, log_as: Callable[[LogSettings], None]) -> bool:
    """Run a bridge until it is told to stop; if its journal is found damaged meanwhile, put another bridge in its place."""
    while True:
        ended = _run(settings, bridge, reload=Reload(bridge, settings, log_as))
        if bridge.supervisor.asked_to_stop:
            return ended
        # Opening the journal sets the file aside. Not before, since somebody may be reading what is still good in it.
        log.error("the journal is damaged; the bridge starts again with another one")
        again = _build_again(bridge)
        if again is None:
            return ended
        settings, bridge = again


def _build_again(bridge: app.App) -> tuple[Settings, app.App] | None:
    """Build a bridge in the place of one that has ended, trying until it works; None if a stop is asked for meanwhile."""
    while not bridge.supervisor.asked_to_stop_within(_AGAIN):
        settings = bridge.reader.current()
        try:
            return settings, app.build(settings, bridge.reader, bridge.supervisor.requests)
        except (ConfigError, JournalError) as error:
            log.error("the bridge can't start again yet", error=str(error))  # noqa: TRY400 - its text says it all
    return None


def _run(
    settings: Settings,
    bridge: app.App,
    *,
    reload: Callable[[], None] = lambda: None,
    announce: Callable[[str], None] | None = None,
    seconds: float | None = None,
) -> bool:
    """Run a bridge; one that announces itself may listen on any port."""
    try:
        server = app.serve(settings, bridge, or_any_port=announce is not None)
    except ConfigError:
        bridge.journal.close()
        raise
    stop_on_signals(bridge.supervisor.stop)
    url = server.url if server else "off"
    log.info(
        "event-bridge is running",
        version=app.VERSION,
        streams=list(settings.streams),
        sinks=list(settings.sinks),
        journal=str(settings.journal.path),
        http=url,
    )
    if announce:
        announce(url)
    ended = bridge.supervisor.run(seconds, reload)
    if server:
        server.close()
    return ended


def _demo(streams: dict[str, Any], journal: Path, story: str, duration: float | None) -> bool:
    settings = app.settings_for_demo(streams, journal)

    def announce(url: str) -> None:
        until = f"for {duration:g} s" if duration is not None else "until Ctrl-C"
        # As it can be typed: from a checkout the command is not on the path.
        command = "event-bridge" if shutil.which("event-bridge") else sys.argv[0]
        print(_HINTS.format(story=story, until=until, url=url, command=command), file=sys.stderr, flush=True)

    bridge = app.build(settings, ConfigReader(settings, lambda: settings))
    return _run(settings, bridge, announce=announce, seconds=duration)


def _stream_to_listen(settings: Settings, namespace: str | None) -> DockerCloudSettings:
    """The configured stream of this namespace, else any: its place and credentials are what is needed."""
    streams = [stream for stream in settings.streams.values() if isinstance(stream, DockerCloudSettings)]
    if not streams:
        raise OptionError("listen: there is no docker-cloud stream in the configuration; give one there, or --url")
    return next((stream for stream in streams if stream.namespace == namespace), streams[0])


def _follow(stream: Stream) -> Exception | None:
    """Keep a stream going until a signal says that it is enough; return why it can't go on, if that is so."""
    outcomes: SimpleQueue[Exception | None] = SimpleQueue()
    stopped = threading.Event()

    def follow() -> None:
        seconds = 0.0
        try:
            while not stopped.wait(seconds):
                seconds = stream.step()
                if stream.status.reason == "unauthorized":
                    outcomes.put(ConnectFailed(stream.status.error))
                    return
        except Exception as error:  # noqa: BLE001 - the main thread raises it again
            outcomes.put(error)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    stop_on_signals(lambda: outcomes.put(None))
    outcome = outcomes.get()
    stopped.set()
    stream.stop()
    thread.join(_LAST_SECONDS)
    return outcome


class _Printer:
    """Takes a stream's batches and prints them."""

    def append(self, batch: Batch) -> None:
        sys.stdout.buffer.write(b"".join(event.json + b"\n" for event in batch.events))
        sys.stdout.buffer.flush()

    def position(self, stream: str) -> None:
        """There is nowhere to resume from."""
