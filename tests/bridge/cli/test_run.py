"""What the commands decide; as processes they are tried in tests/e2e/test_command.py."""

from pathlib import Path

import pytest

from bridge.cli import run
from bridge.cli.run import OptionError
from bridge.simulator.server import Simulator, SimulatorSettings


@pytest.fixture(autouse=True)
def _own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration but that of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRIDGE_SECRETS_DIR", "")


def test_an_address_in_use_is_no_place_for_a_simulator() -> None:
    with Simulator(SimulatorSettings(port=0)) as simulator, pytest.raises(OptionError):
        run.simulate(SimulatorSettings(port=simulator.port))
