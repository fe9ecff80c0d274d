from importlib.metadata import EntryPoint
from typing import Any

import pytest

from bridge.sink import SinkSettings
from config.plugins import GROUP, PluginError, installed, load_plugin


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


def test_a_type_that_two_packages_offer_is_not_loaded_from_either(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("stdout", "sinks.stdout:StdoutSink", GROUP), EntryPoint("stdout", "stranger:Sink", GROUP)]
    monkeypatch.setattr("config.plugins.entry_points", lambda **_: points)
    installed.cache_clear()
    try:
        with pytest.raises(PluginError, match="offered by several packages, one of them with stranger:Sink"):
            load_plugin(installed(), "stdout")
    finally:
        installed.cache_clear()
