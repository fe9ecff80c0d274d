"""`make peers`: events through the real command to each broker and receiver, and through each proxy.

The table goes to docs/compatibility.md if all peers were asked for, else to standard output only. Its rows need Go, npm, pip,
Maven, and the packages that the tests install.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import structlog

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import Bridge, command, value
from tests.peers import http, kafka, mqtt
from tests.peers.peer import Peer, Running

PAGE: Final = Path(__file__).parents[2] / "docs" / "compatibility.md"
KINDS: Final = {"Stream behind": http.PROXIES, "Kafka": kafka.PEERS, "MQTT": mqtt.PEERS, "Webhook": http.RECEIVERS}
BEGIN: Final = "<!-- written by `make peers` -->"
END: Final = "<!-- end -->"
EVENTS: Final = 600
RATE: Final = 100
SECONDS: Final = 30.0
"""Time for what is left when the stream has ended."""


class Outcome(NamedTuple):
    """What became of the events."""

    check: str
    sent: int
    accepted: int
    arrived: int
    dead: int
    waiting: int
    words: str

    @property
    def works(self) -> str:
        """In words: whether all events arrived, none more than once, and what the check said."""
        if self.check != "ok":
            return f"no; check: {self.check}"
        if self.sent == self.accepted == self.arrived >= EVENTS:
            return "yes"
        known = self.sent == self.accepted == self.arrived + self.dead + self.waiting
        return "; ".join(filter(None, ["partly" if known and self.arrived else "no", self.words]))


def main() -> int:
    """Run the command; return the exit status, 1 if a peer could not be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description="Try brokers, receivers and proxies of others.")
    parser.add_argument("peers", nargs="*", metavar="PEER", help="a part of a name; all if none is given")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    wanted = [part.lower() for part in parser.parse_args().peers]
    rows, failed = [], False
    for kind, peers in KINDS.items():
        for peer in peers:
            if not wanted or any(part in f"{kind} {peer.name}".lower() for part in wanted):
                print(f"{kind}: {peer.name}", file=sys.stderr)
                cells = _cells(peer)
                failed |= len(cells) == 1
                rows.append(f"| {kind} | {peer.name} | {' | '.join(cells)}{' | | | | |' if len(cells) == 1 else ''} |")
    table = "\n".join(["| | Peer | Works | Sent | Accepted | Arrived | Dead letters | Waiting |", "| --- " * 8 + "|", *rows])
    print(table)
    if not wanted:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}")
    return failed


def _cells(peer: Peer) -> list[str]:
    if peer.missing:
        return [f"not tried: {', '.join(peer.missing)} is not installed"]
    try:
        outcome = _outcome(peer)
    except (RuntimeError, AssertionError, OSError) as error:
        return [f"not tried: {' '.join(str(error).split())[:200]}"]
    return [outcome.works, *(f"{number:,}" for number in outcome[1:6])]


def _outcome(peer: Peer) -> Outcome:
    with (
        tempfile.TemporaryDirectory() as path,
        Simulator(SimulatorSettings(port=0, rate=RATE, seed=1)) as simulator,
    ):
        directory = Path(path, "peer")
        directory.mkdir()
        with peer.run(directory, simulator.url) as running:
            return _deliver(Path(path), running, simulator)


def _deliver(path: Path, running: Running, simulator: Simulator) -> Outcome:
    stream = {"url": running.url or simulator.url, "namespace": "acme", "username": "bob", "api_key": "secret"}
    sink = running.sink or {"type": "stdout"}
    bridge = Bridge(path / "bridge", {"streams": {"acme": stream}, "sinks": {"peer": sink}})
    checked = command("check", "--config", str(bridge.config), "--connect", cwd=path)
    before = simulator.sent
    with bridge:
        _wait(lambda: simulator.sent - before >= EVENTS, EVENTS / RATE + SECONDS)
        simulator.stop()
        _wait(lambda: bridge.pending() == 0, SECONDS)
        time.sleep(0.5)  # A subscriber that is not ours gets what was acknowledged a moment later.
        metrics, report = bridge.metrics(), bridge.status()["sinks"]["peer"]
        arrived = running.arrived() if running.sink else len(bridge.lines())
    return Outcome(
        "ok" if checked.returncode == 0 else checked.stderr.strip().splitlines()[-1],
        simulator.sent - before,
        int(value(metrics, "events_accepted_total")),
        arrived,
        int(report["dead_letters"]),
        int(report["pending"]),
        _words(report),
    )


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.1)


def _words(report: Mapping[str, Any]) -> str:
    words = [report.get("error") or "", *(report.get("waiting") or {}).values()]
    return "; ".join(filter(None, words)).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
