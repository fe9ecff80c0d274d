from typing import Any

import pytest

from bridge.simulator.settings import SimulatorSettings


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"duplicates": 1.5}, "duplicates: must be between 0 and 1, not 1.5"),
        ({"malformed": -0.1}, "malformed: must be between 0 and 1"),
        ({"fragmented": float("nan")}, "fragmented: must be between 0 and 1, not nan"),
        ({"rate": -1}, "rate: must be at least 0, not -1"),
        ({"count": -1}, "count: must be at least 0"),
        ({"port": 70_000}, "port: must be between 0 and 65535"),
        ({"refuse": 200}, "refuse: must be between 300 and 599"),
        ({"disconnect_every": 0}, "disconnect_every: must be at least 0.01, not 0"),
        ({"silence_after": -1}, "silence_after: must be at least 0"),
        ({"namespaces": ["a/b"]}, "namespaces: must be letters, digits and ._~- only, not 'a/b'"),
        ({"username": 'a"b'}, "username: must be letters"),
    ],
)
def test_a_setting_out_of_range_is_named(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match="^" + problem.replace(".", r"\.")):
        SimulatorSettings(**options)


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(SimulatorSettings(api_key="secret"))
