"""The commands that run a process: run, demo, simulate."""

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import structlog

from bridge import app, logs
from bridge.admin import systemd
from bridge.journal import DiskFullError, JournalError
from bridge.pipeline.supervisor import Requests
from bridge.reload import Reload
from bridge.simulator.settings import SimulatorSettings
from config.load import ConfigError, find, load
from config.rotation import ConfigReader
from config.settings import LogSettings, Settings

log = structlog.get_logger(__name__)

INTERRUPTED: Final = 130
"""Exit status after a second Ctrl-C, by the custom of shells: 128 and the number of the signal."""

_AGAIN: Final = 1.0
"""Seconds between attempts to start."""

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


def run(config: Path | None, log_format: logs.Format | None) -> bool:
    """Run the bridge until a signal says that it is enough.

    Returns:
        Whether all its threads have ended; if not, one hangs in a call to the outside.

    Raises:
        ConfigError: The configuration can't be used.
        JournalError: The journal can't be opened.
    """
    # What is stored is for this user; an umask of the system lets everybody read it.
    os.umask(0o077)
    requests = Requests()
    stops: SimpleQueue[None] = SimpleQueue()

    def stop() -> None:
        requests.put("stop")
        stops.put(None)

    # From here on, so that what is asked for while the process still starts is made up for.
    signal.signal(signal.SIGHUP, lambda *_: requests.put("reload"))
    signal.signal(signal.SIGUSR1, lambda *_: requests.put("retry"))
    stop_on_signals(stop)

    def log_as(wanted: LogSettings) -> None:
        logs.configure(log_format or wanted.format, wanted.level)

    try:
        settings = load(config)
        log_as(settings.log)
        log.info("the configuration is read", file=str(find(config, os.environ) or "variables only"))
        reader = ConfigReader(settings, lambda: load(config))
        bridge = _build(settings, reader, requests, stops)
        return bridge is None or _keep_running(settings, bridge, log_as)
    finally:
        # At its very end, Python would give the signals back their deadly default.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def demo(engine: str | None, duration: float | None, rate: float, seed: int) -> bool:
    """Show it: a simulator or a Docker Engine, the bridge, and events on standard output, for some seconds or until Ctrl-C.

    Returns:
        See `run`.
    """
    from bridge.simulator.server import Simulator  # noqa: PLC0415 - asyncio, which it needs, takes every other command 50 ms

    # A demo is watched: what it says beside the events is the hints, and what goes wrong.
    logs.configure("auto", "warning")
    with tempfile.TemporaryDirectory(prefix="event-bridge-demo-") as directory:
        journal = Path(directory) / "journal.db"
        if engine is not None:
            return _demo({"local": {"type": "engine", "url": engine}}, journal, f"the Docker Engine at {engine}", duration)
        with Simulator(SimulatorSettings(port=0, rate=rate, seed=seed, wait_for_clients=1)) as simulator:
            story = f"a simulated Docker Cloud at {simulator.url}, {rate:g} events per second"
            return _demo({"acme": {"url": simulator.url}}, journal, story, duration)


def simulate(settings: SimulatorSettings) -> None:
    """Be a Stream API server until a signal says that it is enough.

    Raises:
        OptionError: The address can't be listened on, or the events to replay can't be read.
    """
    from bridge.simulator.server import Simulator  # noqa: PLC0415 - see `demo`

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
        systemd.tell("STOPPING=1", "STATUS=stopping")
        stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)


def _build(settings: Settings, reader: ConfigReader, requests: Requests, stops: SimpleQueue[None]) -> app.App | None:
    """Build a bridge; wait for space for its journal if the disk is full, since a full disk is emptied some day.

    Returns:
        The bridge; None if a stop is asked for meanwhile.
    """
    try:
        return app.build(settings, reader, requests)
    except DiskFullError as error:
        problem = str(error)
    log.error("the bridge can't start yet, and tries again until it can", error=problem)
    with app.serve_probes(settings):
        while True:
            systemd.tell("READY=1", "WATCHDOG=1", systemd.status_of([problem]))
            try:
                stops.get(timeout=_AGAIN)
            except Empty:
                with suppress(DiskFullError):
                    return app.build(settings, reader, requests)
            else:
                return None


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
            systemd.tell("WATCHDOG=1", systemd.status_of([str(error)]))
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
    except (ConfigError, app.PortError):
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
    supervisor = bridge.supervisor
    with systemd.telling_that_it_works(bridge.health, lambda: supervisor.last_tick, lambda: supervisor.asked_to_stop):
        ended = supervisor.run(seconds, reload)
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
