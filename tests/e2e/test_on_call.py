"""Somebody on call puts things right with the real command, beside a running bridge."""

import re
import signal
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import Bridge, Receiver, command
from tests.support.ports import free_port
from tests.support.waiting import until

EVENTS = 400


def is_bad(event: dict[str, Any]) -> bool:
    """Every twentieth event or so."""
    return int(event["uuid"][-4:], 16) % 20 == 0


def streams(simulator: Simulator) -> dict[str, Any]:
    return {"streams": {"acme": {"url": simulator.url}}}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Refuses bad events for good."""
    with Receiver() as receiver:
        receiver.answer = lambda events: (422 if any(map(is_bad, events)) else 200, {})
        yield receiver


@pytest.fixture
def bridge(tmp_path: Path, receiver: Receiver) -> Iterator[Bridge]:
    """It has given up the bad events and delivered the others."""
    simulated = SimulatorSettings(port=0, rate=0, count=EVENTS, record=True, wait_for_clients=1, seed=7)
    sink = {"type": "webhook", "url": receiver.url, "start_at": "earliest", "backoff": {"first": "50ms", "max": "50ms"}}
    with (
        Simulator(simulated) as simulator,
        Bridge(tmp_path, {"streams": {"acme": {"url": simulator.url}}, "sinks": {"alerts": sink}}) as bridge,
    ):
        until(lambda: bridge.status()["sinks"]["alerts"]["accepted"] == EVENTS and bridge.pending() == 0, "all have an outcome")
        yield bridge


def test_a_replay_is_followed_to_the_end_of_each_event(bridge: Bridge, receiver: Receiver) -> None:
    dead = bridge.status()["sinks"]["alerts"]["dead_letters"]
    assert dead > 4
    hard: set[str] = set()

    def refuse_one(events: list[dict[str, Any]]) -> tuple[int, dict[str, str]]:
        uuid = events[0]["uuid"]
        hard.update([] if hard else [uuid])
        return 422 if uuid in hard else 200, {}

    receiver.answer = refuse_one
    first = command("dead-letters", "replay", "--all", "--wait", cwd=bridge.directory)

    assert first.stdout == f"alerts: {dead} dead letters queued\nalerts: {dead - 1} delivered, 1 dead letter again\n"
    assert first.returncode == 1
    receiver.answer = lambda _: (200, {})
    second = command("dead-letters", "replay", "--all", "--wait", cwd=bridge.directory)
    assert (second.stdout, second.returncode) == ("alerts: 1 dead letter queued\nalerts: 1 delivered\n", 0)
    assert receiver.count() == EVENTS


def test_a_replay_to_a_dead_receiver_is_queued_and_says_so(bridge: Bridge, receiver: Receiver) -> None:
    dead = bridge.status()["sinks"]["alerts"]["dead_letters"]
    receiver.stop()
    until(lambda: not receiver.is_listening, "nobody listens")

    waited = command("dead-letters", "replay", "--all", "--wait", "--patience", "1s", cwd=bridge.directory)

    assert waited.returncode == 1
    assert waited.stdout == f"alerts: {dead} dead letters queued\nalerts: 0 delivered, {dead} waiting\n"
    assert "none was delivered for 1 s" in waited.stderr
    assert "alerts is down and delivers when it is back: " in waited.stderr


def test_streams_and_sinks_try_again_now_where_asked_to(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    slow = {"backoff": {"first": "1h", "max": "1h"}}
    sink = {"type": "webhook", "url": f"http://127.0.0.1:{ports[1]}/", **slow}
    streams = {"acme": {"url": f"ws://127.0.0.1:{ports[0]}", **slow}}
    with Bridge(tmp_path, {"streams": streams, "sinks": {"alerts": sink}}) as bridge:

        def part(name: str) -> Any:
            return bridge.status()[name]["acme" if name == "streams" else "alerts"]

        until(lambda: part("streams")["next_attempt"] and part("sinks")["next_attempt"], "both wait")
        assert part("streams")["next_attempt"] > datetime.now(UTC).isoformat()
        assert re.search("down: .*Connection refused; next try in [1-9]", command("backlog", cwd=tmp_path).stdout)
        unknown = command("retry-now", "--sink", "alert", cwd=tmp_path)
        assert (unknown.returncode, unknown.stdout) == (1, "")
        assert "there is no sink-alert; there are stream-acme, sink-alerts" in unknown.stderr
        with Simulator(SimulatorSettings(port=ports[0])), Receiver(ports[1]):
            woken = command("retry-now", "--stream", "acme", cwd=tmp_path)
            assert (woken.returncode, woken.stdout) == (0, "tried again now: stream-acme\n")
            until(lambda: part("streams")["connected"], "the stream is connected")
            assert part("streams")["next_attempt"] is None
            assert not part("sinks")["up"]
            bridge.signal(signal.SIGUSR1)
            until(lambda: part("sinks")["up"], "the sink is up")
            assert part("sinks")["next_attempt"] is None
