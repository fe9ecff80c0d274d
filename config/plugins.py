"""The installed types of sinks: built-in and third-party, all registered in the same entry point group."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any, Final

from bridge.sink import SinkPlugin, SinkSettings
from config.errors import Problems, no_such_type
from config.layers import Layer

GROUP: Final = "event_bridge.sinks"

Plugins = Mapping[str, Callable[[], Any]]
"""The function that loads the class of each type of sink; it is not imported before that."""


class PluginError(Exception):
    """An entry point can't be loaded, or is no sink."""


@cache
def installed() -> Plugins:
    """Return the plug-ins of all installed packages, looked up once: later there may be no free file descriptor.

    A type that two packages offer can't be loaded: one could take the place of a built-in sink, and get its secrets.
    """
    found: dict[str, Callable[[], Any]] = {}
    for point in entry_points(group=GROUP):
        found[point.name] = partial(_refuse_twin, point.value) if point.name in found else point.load
    return found


def _refuse_twin(value: str) -> Any:
    raise PluginError(f"it is offered by several packages, one of them with {value}; uninstall the others")


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
    return plugin  # type: ignore[no-any-return]  # Checked above: isinstance can't check a protocol's class attributes.


def settings_models(layers: Iterable[Layer], plugins: Plugins, problems: Problems) -> dict[str, type[SinkSettings]]:
    """Return the settings model of each sink, by name, without the sinks whose type is missing or wrong.

    Args:
        layers: The sources, the one that wins last.
        plugins: The types of sinks.
        problems: Takes what is wrong with the types.
    """
    kinds: dict[str, Any] = {}
    for layer in layers:
        for name, sink in layer.data.get("sinks", {}).items():
            kinds[name] = sink.get("type", kinds.get(name))
    models = {}
    for name, kind in kinds.items():
        if kind is None:
            problems.add(("sinks", name, "type"), f"is missing; types are {', '.join(sorted(plugins))}")
        elif not isinstance(kind, str) or kind not in plugins:
            problems.add(("sinks", name, "type"), no_such_type(kind, plugins))
        else:
            try:
                models[name] = load_plugin(plugins, kind).Settings
            except PluginError as error:
                problems.add(("sinks", name, "type"), str(error))
    return models
