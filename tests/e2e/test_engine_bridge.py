"""A real Docker Engine, a bridge that is killed, a socket that is cut, and a webhook receiver that wants every state change."""

import contextlib
import http.client
import json
import socket
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Bridge, Receiver, assert_books_balance, repeated, uuids, value
from tests.support.servers import dockerd
from tests.support.waiting import until

CONTAINERS = 200

STATES = {"create": "Starting", "start": "Running", "kill": "Stopping", "die": "Stopped", "destroy": "Terminated"}


@pytest.mark.skipif(dockerd.available() is not None, reason=str(dockerd.available()))
@pytest.mark.timeout(300)
def test_every_state_change_of_two_hundred_containers_arrives_once_and_in_order(tmp_path: Path) -> None:
    with (
        dockerd.Dockerd(tmp_path) as daemon,
        tempfile.TemporaryDirectory(dir="/tmp") as short,
        dockerd.CuttableSocket(Path(short) / "docker.sock", daemon.socket) as between,
        Receiver() as receiver,
    ):
        daemon.import_image()
        reported: list[dict[str, Any]] = []
        settings = {
            "streams": {"host": {"type": "engine", "url": between.url, "backoff": {"first": "100ms", "max": "500ms"}}},
            "sinks": {"hook": {"type": "webhook", "url": receiver.url, "format": "batch", "connections": 1}},
        }
        with listening(daemon.socket, reported), Bridge(tmp_path / "bridge", settings) as bridge:
            until(lambda: bridge.status()["streams"]["host"]["connected"], "the bridge follows the engine")

            def live_and_die(number: int) -> None:
                name = f"box-{number}"
                daemon.run(name)
                daemon.kill(name)
                daemon.wait(name)
                daemon.remove(name)

            with ThreadPoolExecutor(4) as hands:
                lives = [hands.submit(live_and_die, number) for number in range(CONTAINERS)]
                wait_for(lives, 40)
                bridge.kill()
                bridge.start()
                wait_for(lives, 80)
                assert between.cut() > 0
                wait_for(lives, 120)
                bridge.kill()
                bridge.start()
                for life in lives:
                    life.result()
            until(lambda: len(states(reported)) == CONTAINERS, "the test has heard of all containers")
            until(lambda: arrived(receiver) == states(reported), "every state change arrives, in order per container", 30)
            metrics = bridge.metrics()
            assert_books_balance(metrics)
            assert bridge.stop() == 0
        # Accepted once each. But a process that is killed does not know what it had just sent: one request may come again.
        assert value(metrics, "events_accepted_total") == len(set(uuids(receiver.events())))
        *cut_short, _ = {number: uuids(events) for number, events in receiver.requests}.values()
        assert repeated(receiver.events()) <= {uuid for last in cut_short for uuid in last}
        assert states(reported)["box-0"] == ["Starting", "Running", "Stopping", "Stopped", "Terminated"]


def wait_for(lives: Sequence[Future[None]], count: int) -> None:
    until(lambda: sum(life.done() for life in lives) >= count, f"{count} containers have lived", 120)


def arrived(receiver: Receiver) -> dict[str, list[str]]:
    """The states of each container, by name, as the receiver got them first."""
    found = defaultdict(list)
    for event in {event["uuid"]: event for event in receiver.events()}.values():
        found[event["name"]].append(event["state"])
    return found


def states(reported: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The states of each container, by name, that the engine's own words mean."""
    found = defaultdict(list)
    for event in reported:
        if event["Type"] == "container" and event["Action"] in STATES:
            found[event["Actor"]["Attributes"]["name"]].append(STATES[event["Action"]])
    return found


@contextlib.contextmanager
def listening(path: Path, reported: list[dict[str, Any]]) -> Iterator[None]:
    """Follow the engine without our code, as the measure of what it reported."""
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", "/events?since=0")
    answer = connection.getresponse()

    def follow() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, AttributeError):
            reported.extend(json.loads(line) for line in answer)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        connection.sock.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        connection.close()
