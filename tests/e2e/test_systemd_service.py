"""The unit under a real systemd: it starts, is ready, is watched, is reloaded and stops, confined as it says."""

from pathlib import Path

import pytest
import yaml

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.support.ports import free_port
from tests.support.servers.machine import machine, unavailable
from tests.support.waiting import until

UNIT = (Path(__file__).parents[2] / "deploy" / "event-bridge.service").read_text()


@pytest.mark.timeout(400)
@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_the_unit_works_under_systemd(tmp_path: Path) -> None:
    unit = UNIT.replace("#LoadCredential", "LoadCredential").replace("WatchdogSec=60", "WatchdogSec=4")
    simulated = SimulatorSettings(port=free_port(), rate=20, username="bob", api_key="key")
    config = {
        "streams": {"acme": {"url": f"ws://127.0.0.1:{simulated.port}", "username": "bob", "backoff": {"max": "1s"}}},
        "sinks": {"log": {"type": "stdout"}},
        "http": {"listen": f"127.0.0.1:{free_port()}"},
        "health": {"stream_grace": "1s"},
    }
    files = {
        "etc/systemd/system/event-bridge.service": unit,
        "etc/event-bridge/bridge.yaml": yaml.safe_dump(config),
        "etc/event-bridge/secrets/api_key": "key\n",
    }
    with machine(tmp_path, files) as debian:
        if debian is None:
            pytest.skip("a Debian with systemd can not be made or started here")
        with Simulator(simulated):
            debian.run("systemctl", "start", "event-bridge")
            assert debian.shows("ActiveState") == "active", debian.run("journalctl", "--no-pager")
            until(lambda: debian.shows("StatusText") == "ready", "it is ready")
            journal = "BRIDGE_JOURNAL__PATH=/var/lib/event-bridge/journal.db"
            backlog = debian.run("env", journal, "/opt/event-bridge/bin/event-bridge", "backlog")
            assert backlog.splitlines()[-1].split()[0] == "log"
            assert backlog.endswith("up")
            said = debian.run("cat", f"/proc/{debian.shows('MainPID')}/status")
            confined = dict(line.split(":\t") for line in said.splitlines())
            assert (confined["CapEff"], confined["NoNewPrivs"], confined["Seccomp"]) == ("0" * 16, "1", "2")
        until(lambda: debian.shows("StatusText").startswith("stream acme: not connected"), "it says why it is not ready")
        assert debian.run("systemctl", "reload", "event-bridge") == ""
        debian.run("kill", "-STOP", debian.shows("MainPID"))
        until(lambda: debian.shows("NRestarts") == "1", "the watchdog starts it again")
        until(lambda: debian.shows("ActiveState") == "active", "it runs again")
        assert debian.run("systemctl", "stop", "event-bridge") == ""
        assert (debian.shows("Result"), debian.shows("ExecMainStatus")) == ("success", "0")
        debian.run("sh", "-c", "echo nonsense: 1 >/etc/event-bridge/bridge.yaml; systemctl start event-bridge")
        assert (debian.shows("ActiveState"), debian.shows("ExecMainStatus")) == ("failed", "78")
