"""The options of the simulator; as those of the command they are tried in tests/bridge/cli/test_main.py."""

import argparse

import pytest

from bridge.simulator.arguments import add, settings_of


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args(words)


def test_options_become_settings() -> None:
    settings = settings_of(parsed("--listen", "[::1]:0", "--rate", "3", "--namespace", "a", "--refuse", "503"))

    assert (settings.host, settings.port, settings.rate) == ("::1", 0, 3.0)
    assert (settings.namespaces, settings.refuse) == (("a",), 503)


@pytest.mark.parametrize(("words", "text"), [(("--listen", "x"), "--listen: "), (("--rate", "-1"), "--rate")])
def test_a_wrong_one_is_named(words: tuple[str, ...], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        settings_of(parsed(*words))
