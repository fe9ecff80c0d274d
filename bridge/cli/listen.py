"""The command listen: the live events of one namespace on standard output."""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Final
from urllib.parse import urlsplit

import msgspec
from pydantic import ValidationError

from bridge import app
from bridge.cli.check import ConnectFailed
from bridge.cli.output import json_line
from bridge.cli.run import OptionError, stop_on_signals
from bridge.journal import Batch
from bridge.metrics import Metrics, StreamMetrics
from bridge.pipeline.stream import Stream
from bridge.sources.dockercloud.settings import ORIGINAL_URL, DockerCloudSettings
from bridge.sources.dockercloud.source import DockerCloudSource
from config.load import load
from config.settings import Settings

_CREDENTIALS: Final = ("auth", "username", "api_key", "password")


class Filters(msgspec.Struct, frozen=True):
    """Which events to ask for; any value within a list, and all of the lists; an empty one lets all pass."""

    types: Sequence[str] = ()
    objects: Sequence[str] = ()
    parents: Sequence[str] = ()


def listen(config: Path | None, url: str | None, namespace: str | None, filters: Filters) -> None:
    """Print live events of one namespace until Ctrl-C. Nothing is stored: for that, `run`.

    Raises:
        ConfigError: The configuration can't be used.
        ConnectFailed: The service refuses the credentials.
        BrokenPipeError: Nobody reads any more.
    """
    configured = load(config, {**os.environ, "DOCKERCLOUD_STREAM_HOST": url} if url else os.environ)
    found = _stream_to_listen(configured, namespace).model_dump()
    own_url = os.environ.get("DOCKERCLOUD_STREAM_HOST", ORIGINAL_URL) if found["url"] == url else found["url"]
    if url and any(found[key] for key in _CREDENTIALS) and _origin(url) != _origin(own_url):
        print(f"the configured credentials are for {own_url}; none are sent to {url}", file=sys.stderr)
        found |= dict.fromkeys(_CREDENTIALS)
    wanted = {"url": url, "namespace": namespace, **msgspec.structs.asdict(filters)}
    try:
        settings = DockerCloudSettings.model_validate(
            found | {key: value for key, value in wanted.items() if value or value == ""}
        )
    except ValidationError as error:
        raise OptionError("; ".join(f"--{e['loc'][0]}: {e['msg']}" for e in error.errors(include_input=False))) from None
    printer = _Printer()
    stream = Stream(
        "listen",
        settings,
        DockerCloudSource(settings, lambda: settings, user_agent=app.USER_AGENT),
        printer,
        metrics=StreamMetrics(Metrics(app.VERSION), "listen"),
        max_event_bytes=configured.journal.max_event_bytes,
    )
    printer.stop = stream.stop
    outcome = _follow(stream, printer)
    if outcome is not None:
        raise outcome


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return what a server is known by, to which credentials belong."""
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname, parts.port or {"ws": 80, "wss": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None


def _stream_to_listen(settings: Settings, namespace: str | None) -> DockerCloudSettings:
    """The configured stream of this namespace, else any: its place and credentials are what is needed."""
    streams = [stream for stream in settings.streams.values() if isinstance(stream, DockerCloudSettings)]
    if not streams:
        raise OptionError("listen: there is no docker-cloud stream in the configuration; give one there, or --url")
    return next((stream for stream in streams if stream.namespace == namespace), streams[0])


class _Printer:
    """Takes a stream's batches and prints them, until that fails.

    Attributes:
        failed: Why nobody gets them any more.
        stop: Called then: a failure is not the stream's.
    """

    failed: OSError | None = None

    def __init__(self) -> None:
        self.stop: Callable[[], None] = lambda: None

    def append(self, batch: Batch) -> None:
        if self.failed is None:
            try:
                sys.stdout.buffer.write(json_line(b"".join(event.json + b"\n" for event in batch.events)))
                sys.stdout.buffer.flush()
            except OSError as error:
                self.failed = error
                self.stop()

    def position(self, stream: str) -> None:
        """There is nowhere to resume from."""


def _follow(stream: Stream, printer: _Printer) -> Exception | None:
    """Keep a stream going until a signal says that it is enough; return why it can't go on, if that is so."""
    outcomes: SimpleQueue[Exception | None] = SimpleQueue()
    stopped = threading.Event()

    def follow() -> None:
        seconds = 0.0
        try:
            while not stopped.wait(seconds):
                seconds = stream.step()
                if printer.failed:
                    outcomes.put(printer.failed)
                    return
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
    thread.join(1.0)
    return outcome
