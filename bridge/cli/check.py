"""`event-bridge check`: whether the configuration can be used and, if asked for, whether streams and sinks can be reached."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pydantic import BaseModel, SecretStr

from bridge import app
from bridge.field_types import is_loopback
from bridge.sink import SinkSettings, Unavailable
from bridge.source import Ended
from config.load import load
from config.rotation import ConfigReader
from config.settings import StreamSettings

_PLAIN: Final = frozenset({"http", "ws", "mqtt", "tcp"})


class ConnectFailed(Exception):
    """Something could not be reached."""


def check(config: Path | None, *, connect: bool) -> None:
    """Validate the configuration; if wanted, try every stream and sink.

    Raises:
        ConfigError: The configuration can't be used.
        ConnectFailed: Something could not be reached.
    """
    settings = load(config)
    print(f"configuration ok: streams {', '.join(settings.streams)}; sinks {', '.join(settings.sinks)}")
    for name, sink in settings.sinks.items():
        for deprecation in sink.deprecations:
            print(f"sink {name}: {deprecation}")
    for what, part in [(f"stream {name}", stream) for name, stream in settings.streams.items()] + [
        (f"sink {name}", sink) for name, sink in settings.sinks.items()
    ]:
        for host in hosts_in_clear_text(part):
            print(f"{what}: its credentials go to {host} in clear text; use TLS")
    if not connect:
        return
    attempts: list[tuple[str, Callable[[], Sequence[str]]]] = []
    reader = ConfigReader(settings, lambda: settings)
    for name, stream in settings.streams.items():
        attempts.append((f"stream {name}", partial(_try_stream, name, stream, reader)))
    for name, sink in settings.sinks.items():
        attempts.append((f"sink {name}", partial(_try_sink, name, sink, settings.journal.max_event_bytes)))
    failed = [what for what, attempt in attempts if not _succeeds(what, attempt)]
    if failed:
        raise ConnectFailed(f"not reached: {', '.join(failed)}")


def hosts_in_clear_text(settings: BaseModel) -> list[str]:
    """Return the hosts beyond this machine to which settings with a secret in them connect without TLS.

    A part has a `url`, or `bootstrap_servers` and `uses_tls`; so may a plug-in.
    """
    if not any(isinstance(value, SecretStr) or (isinstance(value, dict) and value) for value in _values(settings)):
        return []
    urls = [getattr(settings, "url", None) or ""]
    if not getattr(settings, "uses_tls", True):
        urls += [f"tcp://{server}" for server in getattr(settings, "bootstrap_servers", [])]
    parts = [urlsplit(url) for url in urls]
    return [part.hostname for part in parts if part.scheme in _PLAIN and part.hostname and not is_loopback(part.hostname)]


def _values(settings: BaseModel) -> Iterator[object]:
    """Yield the values that may be secret: fields, and mappings of secrets such as headers."""
    for value in dict(settings).values():
        yield {key: inner for key, inner in value.items() if isinstance(inner, SecretStr)} if isinstance(value, dict) else value


def _try_stream(name: str, settings: StreamSettings, reader: ConfigReader) -> Sequence[str]:
    app.source(name, settings, reader).open(None).close()
    return ()


def _try_sink(name: str, settings: SinkSettings, max_event_bytes: int) -> Sequence[str]:
    sink = app.make_sink(name, settings.for_preflight())
    try:
        sink.open()
        remarks: Callable[[int], Sequence[str]] | None = getattr(sink, "remarks", None)
        return remarks(max_event_bytes) if remarks else ()
    finally:
        sink.close()


def _succeeds(what: str, attempt: Callable[[], Sequence[str]]) -> bool:
    """Try it, and print how it went and what there is to say."""
    try:
        remarks = attempt()
    except (Ended, Unavailable) as error:
        print(f"{what}: {error.reason}: {error}")
        return False
    except Exception as error:  # noqa: BLE001 - of a stranger's sink any exception means that it is not available
        print(f"{what}: internal: {type(error).__name__} in the sink")
        return False
    print(f"{what}: ok")
    for remark in remarks:
        print(f"{what}: {remark}")
    return True
