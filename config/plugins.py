"""The kinds of sinks there are: ours and strangers', all registered in the same entry point group."""

from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Final

from bridge.sink import SinkPlugin, SinkSettings

GROUP: Final = "event_bridge.sinks"

Plugins = Mapping[str, Callable[[], Any]]
"""The types of sinks, and for each the function that loads its class; nothing is imported before that."""


class PluginError(Exception):
    """What an entry point names can't be loaded, or is no sink."""


@cache
def installed() -> Plugins:
    """The plug-ins of all installed packages, looked up once: later there may be no descriptor for it."""
    return {point.name: point.load for point in entry_points(group=GROUP)}


def load_plugin(plugins: Plugins, kind: str) -> SinkPlugin:
    """Import the class of a type of sink.

    Raises:
        KeyError: There is no such type.
        PluginError: It can't be imported, or is no sink.
    """
    load = plugins[kind]
    try:
        plugin = load()
    except Exception as error:
        raise PluginError(f"the plug-in for type {kind} can't be loaded: {type(error).__name__}: {error}") from error
    settings = getattr(plugin, "Settings", None)
    if not (callable(plugin) and isinstance(settings, type) and issubclass(settings, SinkSettings)):
        raise PluginError(f"the plug-in for type {kind} is no sink: it needs a `Settings` model derived from SinkSettings")
    return plugin  # type: ignore[no-any-return]  # It was checked by hand: a protocol's class attributes can't be.
