"""The command check: is the configuration usable and, if asked for, can everything be opened that `run` opens."""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec

from bridge import app
from bridge.event import normalize_all
from bridge.field_types import is_loopback
from bridge.journal import JournalError, JournalReader, check_access, holder
from bridge.sink import Entry, SinkSettings, Unavailable
from bridge.source import Ended
from bridge.tls import ServerContext, hosts_in_clear_text
from config.load import find, load
from config.rotation import ConfigReader
from config.settings import Settings, StreamSettings


class ConnectFailed(Exception):
    """Something could not be reached."""


def check(config: Path | None, *, connect: bool, send: bool = False) -> None:
    """Validate the configuration; if wanted, try the journal, the port, and every stream and sink.

    Args:
        config: The configuration.
        connect: Open what `run` opens.
        send: Deliver a test event to every sink, too.

    Raises:
        ConfigError: The configuration can't be used.
        ConnectFailed: Something could not be reached.
    """
    settings, file = load(config), find(config, os.environ) or "variables only"
    print(f"configuration ok: streams {', '.join(settings.streams)}; sinks {', '.join(settings.sinks)}; read from {file}")
    for name, sink in settings.sinks.items():
        for deprecation in sink.deprecations:
            print(f"sink {name}: {deprecation}")
    for what, part in [(f"stream {name}", stream) for name, stream in settings.streams.items()] + [
        (f"sink {name}", sink) for name, sink in settings.sinks.items()
    ]:
        for host in hosts_in_clear_text(part):
            print(f"{what}: its credentials go to {host} in clear text; use TLS")
    http = settings.http
    if http.token and not http.tls and http.address and not is_loopback(http.address[0]):
        print("http: the token of operators crosses the network in clear text; set http.tls, or a proxy that adds TLS in front")
    if not connect:
        return
    attempts: list[tuple[str, Callable[[], Sequence[str]]]] = [
        ("journal", partial(_try_journal, settings.journal.path)),
        ("http", partial(_try_port, settings)),
    ]
    reader = ConfigReader(settings, lambda: settings)
    for name, stream in settings.streams.items():
        attempts.append((f"stream {name}", partial(_try_stream, name, stream, reader)))
    event = _test_event(next(iter(settings.streams.values())).namespace) if send else None
    for name, sink in settings.sinks.items():
        attempts.append((f"sink {name}", partial(_try_sink, name, sink, settings.journal.max_event_bytes, event)))
    failed = [what for what, attempt in attempts if not _succeeds(what, attempt)]
    if failed:
        raise ConnectFailed(f"not reached: {', '.join(failed)}")


def _try_journal(path: Path) -> Sequence[str]:
    try:
        check_access(path)
        running = holder(path) if path.exists() else None
        if path.exists() and path.stat().st_size:
            JournalReader(path).close()
    except JournalError as error:
        raise ConnectFailed(str(error)) from None
    return [f"in use by the bridge that runs (process {running.process})"] if running else []


def _try_port(settings: Settings) -> Sequence[str]:
    http, path = settings.http, settings.journal.path
    try:
        if http.tls:
            ServerContext(*http.tls.files)
        # Beside a running bridge the port is taken: by that one.
        if http.address and not (path.exists() and holder(path)):
            family, kind, *_, address = socket.getaddrinfo(*http.address, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
    except (OSError, JournalError) as error:
        raise ConnectFailed(f"{http.listen}: {getattr(error, 'strerror', None) or error}") from None
    return []


def _test_event(namespace: str) -> Entry:
    """Return an event that says that it is none."""
    now = datetime.now(UTC)
    resource = f"/api/app/v1/{namespace or 'event-bridge'}/container/event-bridge-check/"
    frame = msgspec.json.encode({"type": "container", "action": "test", "state": "Test", "resource_uri": resource})
    (event,), _, _ = normalize_all([frame], namespace, now, len(frame))
    return Entry(0, now.timestamp(), event.json)


def _try_stream(name: str, settings: StreamSettings, reader: ConfigReader) -> Sequence[str]:
    app.source(name, settings, reader).open(None).close()
    return ()


def _try_sink(name: str, settings: SinkSettings, max_event_bytes: int, event: Entry | None) -> Sequence[str]:
    sink = app.make_sink(name, settings.for_preflight())
    try:
        sink.open()
        remarks: Callable[[int], Sequence[str]] | None = getattr(sink, "remarks", None)
        found = list(remarks(max_event_bytes)) if remarks else []
        if event is not None:
            sys.stdout.flush()  # A stdout sink does not write through this buffer.
            for failure in sink.deliver([event]):
                raise Unavailable(failure.error, failure.reason)
            found.append(f"test event {event.fields.uuid} acknowledged")
        return found
    finally:
        sink.close()


def _succeeds(what: str, attempt: Callable[[], Sequence[str]]) -> bool:
    """Try it, and print how it went and what there is to say."""
    try:
        remarks = attempt()
    except (Ended, Unavailable) as error:
        print(f"{what}: {error.reason}: {error}")
        return False
    except ConnectFailed as error:
        print(f"{what}: {error}")
        return False
    except Exception as error:  # noqa: BLE001 - of a stranger's sink any exception means that it is not available
        print(f"{what}: internal: {type(error).__name__} in the sink")
        return False
    print(f"{what}: ok")
    for remark in remarks:
        print(f"{what}: {remark}")
    return True
