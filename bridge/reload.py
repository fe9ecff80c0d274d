"""The configuration as it is now, applied to a bridge that runs: all of it that can be, or nothing."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import structlog
from pydantic import BaseModel

from bridge import app
from bridge.admin.health import Reloaded
from bridge.journal import JournalError
from config.diff import Changes, as_far_as_possible, changes, needing_restart
from config.load import ConfigError
from config.settings import LogSettings, Settings

log = structlog.get_logger(__name__)

_CERTIFICATES: Final = ("ca_file", "cert_file", "key_file")


class Reload:
    """Reads the configuration again and applies what is new in it; only the main thread calls it.

    Args:
        settings: The running configuration.
        log_as: Changes how the process logs.
    """

    def __init__(self, bridge: app.App, settings: Settings, log_as: Callable[[LogSettings], None]) -> None:
        self._bridge = bridge
        self._settings = settings
        self._log_as = log_as

    def __call__(self) -> None:
        """Read and apply; never raises."""
        problems: list[str] = []
        try:
            self._apply(self._bridge.reader.read())
        except ConfigError as error:
            problems = error.problems
        except JournalError as error:
            problems = [str(error)]
        except Exception:
            log.exception("reloading has a bug")
            problems = ["a bug, see the log"]
        for problem in problems:
            log.error("the configuration can't be used, nothing was changed", problem=problem)
        metrics = self._bridge.metrics
        metrics.reload_successful.set(not problems)
        if not problems:
            metrics.reload_success_time.set_to_current_time()
        self._bridge.health.reloaded = Reloaded(time.time(), problems)

    def _apply(self, found: Settings) -> None:
        """Apply a configuration.

        Raises:
            ConfigError: Something in it can't be made. Nothing was changed.
            JournalError: A new sink can't get its cursor. Nothing was changed.
        """
        old, new = self._settings, as_far_as_possible(self._settings, found)
        streams, sinks = changes(old.streams, new.streams), changes(old.sinks, new.sinks)
        _require_certificates(new, streams, sinks)
        factory = app.Factory(new, self._bridge.reader, [*streams.added, *streams.changed], [*sinks.added, *sinks.changed])
        self._add_cursors(new, sinks)
        # From here on nothing can fail.
        self._settings = new
        self._log_as(new.log)
        self._bridge.health.settings = new.health
        self._bridge.supervisor.grace = new.shutdown.grace
        self._apply_sinks(sinks, factory)
        self._apply_streams(streams, factory)
        log.info("configuration reloaded", streams=streams._asdict(), sinks=sinks._asdict())
        if keys := needing_restart(old, found):
            log.warning("some changes need a restart of the process", keys=keys)

    def _add_cursors(self, new: Settings, sinks: Changes) -> None:
        try:
            for name in (*sinks.added, *sinks.changed):
                self._bridge.journal.add_sink(name, new.sinks[name].start, new.sinks[name].retry.max_pending)
        except JournalError:
            self._bridge.supervisor.forget_sinks()
            raise

    def _apply_sinks(self, sinks: Changes, factory: app.Factory) -> None:
        journal, metrics, supervisor = self._bridge.journal, self._bridge.metrics, self._bridge.supervisor
        for name in sinks.removed:
            supervisor.drop_sink(name)
            metrics.forget_sink(name)
        for name in (*sinks.added, *sinks.changed):
            supervisor.put_sink(factory.forwarder(name, journal, metrics))

    def _apply_streams(self, streams: Changes, factory: app.Factory) -> None:
        journal, metrics, supervisor = self._bridge.journal, self._bridge.metrics, self._bridge.supervisor
        trackers = {stream.name: stream.gaps for stream in supervisor.running().streams}
        for name in streams.removed:
            supervisor.drop_stream(name)
            metrics.forget_stream(name)
        for name in (*streams.added, *streams.changed):
            supervisor.put_stream(factory.stream(name, journal, metrics, trackers.get(name)))


def _require_certificates(new: Settings, streams: Changes, sinks: Changes) -> None:
    """Refuse files that can't be read. At the start they are waited for; but what works is not given up for what can't.

    Raises:
        ConfigError: With all of them.
    """
    problems: list[str] = []
    for name in (*streams.added, *streams.changed):
        problems += _unreadable(f"streams.{name}", new.streams[name])
    for name in (*sinks.added, *sinks.changed):
        problems += _unreadable(f"sinks.{name}", new.sinks[name])
    if problems:
        raise ConfigError(problems)


def _unreadable(place: str, settings: BaseModel) -> Iterator[str]:
    for key in _CERTIFICATES:
        path = getattr(settings, key, None)
        try:
            if path is not None:
                Path(path).open("rb").close()
        except OSError as error:
            yield f"{place}.{key}: {path}: can't be read: {error.strerror}"
