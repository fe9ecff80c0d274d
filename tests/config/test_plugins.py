from typing import Any

import pytest

from bridge.sink import SinkSettings
from config.plugins import PluginError, installed, load_plugin


class Plain:
    Settings = SinkSettings

    def __init__(self, name: str, settings: Any) -> None:
        self.made = (name, settings)


def broken() -> Any:
    raise ModuleNotFoundError("No module named 'paho'")


def test_our_own_sinks_are_installed_like_anybody_elses() -> None:
    plugins = installed()

    assert {"stdout", "webhook"} <= plugins.keys()
    assert issubclass(load_plugin(plugins, "stdout").Settings, SinkSettings)


def test_a_plugin_is_loaded_when_it_is_asked_for() -> None:
    assert load_plugin({"plain": lambda: Plain, "broken": broken}, "plain").Settings is SinkSettings


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (broken, "can't be loaded: ModuleNotFoundError: No module named 'paho'"),
        (lambda: object, "is no sink"),
        (lambda: type("NoSettings", (), {"Settings": dict}), "is no sink"),
        (lambda: 5, "is no sink"),
    ],
    ids=["can't be imported", "no settings", "settings of another kind", "no class"],
)
def test_what_is_no_plugin_is_told(load: Any, says: str) -> None:
    with pytest.raises(PluginError, match=says):
        load_plugin({"wrong": load}, "wrong")


def test_there_is_no_plugin_for_an_unknown_type() -> None:
    with pytest.raises(KeyError):
        load_plugin({}, "unknown")
