"""The unit of systemd: it is right, confined, and lets the command do what it needs."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from bridge.simulator.server import Simulator, SimulatorSettings
from config.load import load
from tests.e2e.harness import EVENT_BRIDGE, Bridge
from tests.support.waiting import until

ROOT: Final = Path(__file__).parents[2]
UNIT: Final = ROOT / "deploy" / "event-bridge.service"
needs_systemd: Final = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="not installed: systemd")


def analyze(*arguments: str) -> str:
    """Run `systemd-analyze`; return what it prints, if it has no complaint."""
    done = subprocess.run(["systemd-analyze", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def installed(directory: Path) -> Path:
    """Write the unit for the command of this checkout."""
    path = directory / UNIT.name
    path.write_text(UNIT.read_text().replace("/opt/event-bridge/bin/event-bridge", EVENT_BRIDGE))
    return path


@needs_systemd
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    said = analyze("verify", "--man=no", str(installed(tmp_path)))
    assert [line for line in said.splitlines() if UNIT.name in line] == []


@needs_systemd
def test_the_service_may_do_little(tmp_path: Path) -> None:
    analyze("security", "--offline=yes", "--threshold=20", "--no-pager", str(installed(tmp_path)))


def calls_of(group: str) -> set[str]:
    """Return the system calls of a group like `@system-service`, those of the groups in it included."""
    lines = analyze("--no-pager", "syscall-filter", group).splitlines()
    words = {line.split("#")[0].strip() for line in lines[1:]} - {""}
    return {word for word in words if word[0] != "@"}.union(*(calls_of(word) for word in words if word[0] == "@"))


@needs_systemd
@pytest.mark.skipif(shutil.which("strace") is None, reason="not installed: strace")
def test_the_filter_of_system_calls_takes_nothing_that_is_needed(tmp_path: Path) -> None:
    filters = re.findall(r"^SystemCallFilter=(~?)(.*)$", UNIT.read_text(), re.MULTILINE)
    allowed: set[str] = set()
    for denied, groups in filters:
        calls = set().union(*map(calls_of, groups.split()))
        allowed = allowed - calls if denied else allowed | calls
    trace = tmp_path / "trace"
    with Simulator(SimulatorSettings(port=0, rate=50)) as simulator:
        bridge = Bridge(tmp_path / "bridge", {"streams": {"acme": {"url": simulator.url}}})
        bridge.command = ["strace", "-D", "-f", "-qq", "-o", str(trace), *bridge.command]
        with bridge:
            until(lambda: len(bridge.lines()) > 50, "events arrive")
            assert bridge.stop() == 0
    used = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))

    assert {"openat", "fsync", "fdatasync"} & used
    # SQLite gives its files to the owner of the directory, but only as root.
    assert used - allowed <= {"fchown"}


def test_a_stop_has_longer_than_the_grace_and_a_restart_is_no_remedy_for_a_wrong_configuration() -> None:
    text = UNIT.read_text()
    settings = load(None, {"DOCKERCLOUD_USER": "bob", "DOCKERCLOUD_APIKEY": "key", "BRIDGE_SECRETS_DIR": ""})

    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    (useless,) = re.findall(r"^RestartPreventExitStatus=(.*)$", text, re.MULTILINE)
    assert int(stop) > settings.shutdown.grace
    assert useless.split() == ["78", "2"]


def test_the_credential_of_the_example_is_the_key_of_a_stream(tmp_path: Path) -> None:
    (name,) = re.findall(r"^#LoadCredential=(\w+):", UNIT.read_text(), re.MULTILINE)
    (tmp_path / name).write_text("secret\n")
    variables = {"BRIDGE_STREAMS__ACME__USERNAME": "bob", "BRIDGE_SINKS__LOG__TYPE": "stdout"}

    settings = load(None, {**variables, "CREDENTIALS_DIRECTORY": str(tmp_path), "BRIDGE_SECRETS_DIR": ""})

    assert "secret" not in repr(settings)
    assert settings.streams["acme"].model_dump()["api_key"].get_secret_value() == "secret"
