"""`EngineSource` against a real Docker Engine."""

import itertools
import json
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from uuid import uuid5

import msgspec
import pytest
from structlog.testing import capture_logs

from bridge.event import NAMESPACE
from bridge.source import Ended, Read
from bridge.sources.engine.events import EngineEvent, Identity, to_event
from bridge.sources.engine.settings import EngineSettings
from bridge.sources.engine.source import EngineSource
from tests.support.servers.dockerd import IMAGE, CuttableSocket, Dockerd, available, exits, idle

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))


@pytest.fixture
def dockerd(tmp_path: Path) -> Iterator[Dockerd]:
    with Dockerd(tmp_path) as dockerd:
        dockerd.import_image()
        yield dockerd


@pytest.fixture
def proxy(dockerd: Dockerd) -> Iterator[CuttableSocket]:
    with CuttableSocket(dockerd.socket.with_name("proxy.sock"), dockerd.socket) as proxy:
        yield proxy


class Reader:
    """Reads a source as a stream does, in a thread: one session after the other, each from the last position."""

    def __init__(self, url: str) -> None:
        self.reads: list[Read] = []
        self.ends: list[Ended] = []
        self.sessions = 0
        self._source = EngineSource(EngineSettings(type="engine", url=url, namespace="acme"), read_timeout=0.2)
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> Self:
        self._thread.start()
        self.wait(lambda: bool(self.reads))
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(20)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the events that were read, each once, at its first arrival."""
        read = [json.loads(message) for each in list(self.reads) for message in each.messages]
        return list({event["uuid"]: event for event in reversed(read)}.values())[::-1]

    def wait(self, condition: Any, timeout: float = 30.0) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout), f"not within {timeout} s; {self.ends}"

    def _follow(self) -> None:
        position = None
        while not self._stopping.is_set():
            try:
                session = self._source.open(position)
            except Ended as end:
                self._note(end)
                self._stopping.wait(0.05)
                continue
            self.sessions += 1
            try:
                while not self._stopping.is_set():
                    read = session.read()
                    position = read.position
                    self._note(read)
            except Ended as end:
                self._note(end)
            finally:
                session.close()

    def _note(self, what: Read | Ended) -> None:
        with self._changed:
            if isinstance(what, Read):
                self.reads.append(what)
            else:
                self.ends.append(what)
            self._changed.notify_all()


def by_container(events: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The uuids of each container's events, in their order."""
    uuids = defaultdict(list)
    for event in events:
        uuids[event["resource_uri"]].append(event["uuid"])
    return dict(uuids)


def replay(dockerd: Dockerd) -> list[dict[str, Any]]:
    """Return the events of the Engine's own memory, mapped."""
    info = json.loads(dockerd.call("GET", "/info"))
    mapped = (to_event(msgspec.convert(raw, EngineEvent), Identity(info["ID"]), "acme") for raw in dockerd.events())
    return [json.loads(event) for event in mapped if event is not None]


def live(dockerd: Dockerd, name: str) -> None:
    """The whole life of a container."""
    container = dockerd.run(name, labels={"com.docker.compose.project": "shop", "com.docker.compose.service": "web"})
    dockerd.kill(container)
    dockerd.wait(container)
    dockerd.remove(container)


def test_nothing_is_lost_or_out_of_order_when_the_socket_is_cut(dockerd: Dockerd, proxy: CuttableSocket) -> None:
    with Reader(proxy.url) as reader:
        for number in range(5):
            live(dockerd, f"before-{number}")
        with proxy.refusing():
            for number in range(3):
                live(dockerd, f"unheard-{number}")
        for number in range(5):
            live(dockerd, f"between-{number}")
        container = dockerd.run("across")
        proxy.cut()
        dockerd.remove(container, force=True)
        for number in range(6):
            live(dockerd, f"after-{number}")
        expected = replay(dockerd)
        reader.wait(lambda: len(reader.events) >= len(expected))

    assert len(expected) == 20 * 5
    assert by_container(reader.events) == by_container(expected)
    assert reader.sessions >= 3
    positions = [int(read.position.rstrip("+")) for read in reader.reads if read.position]
    assert all(one <= two for one, two in itertools.pairwise(positions))


def test_a_container_s_life_is_told_with_its_reasons(dockerd: Dockerd) -> None:
    with Reader(dockerd.url) as reader:
        killed = dockerd.run("killed")
        dockerd.kill(killed, "HUP")
        dockerd.kill(killed, "KILL")
        dockerd.wait(killed)
        failed = dockerd.run("failed", exits(3))
        dockerd.wait(failed)
        dockerd.remove(failed)
        reader.wait(lambda: len(reader.events) >= 8)

    told = [(event["name"], event["state"], event.get("signal"), event.get("exit_code")) for event in reader.events]
    assert told == [
        ("killed", "Starting", None, None),
        ("killed", "Running", None, None),
        ("killed", "Stopping", "9", None),
        ("killed", "Stopped", None, 137),
        ("failed", "Starting", None, None),
        ("failed", "Running", None, None),
        ("failed", "Stopped", None, 3),
        ("failed", "Terminated", None, None),
    ]
    assert {event["image"] for event in reader.events} == {"tiny"}


def test_a_first_session_does_not_tell_the_past(dockerd: Dockerd) -> None:
    live(dockerd, "past")
    with Reader(dockerd.url) as reader:
        live(dockerd, "present")
        reader.wait(lambda: len(reader.events) >= 5)

    assert {event["name"] for event in reader.events} == {"present"}


def test_a_session_follows_a_daemon_that_crashed_and_says_that_its_memory_is_gone(dockerd: Dockerd) -> None:
    with capture_logs() as logs, Reader(dockerd.url) as reader:
        live(dockerd, "before")
        reader.wait(lambda: len(reader.events) == 5)
        dockerd.crash()
        reader.wait(lambda: len(reader.ends) >= 2)
        dockerd.start()
        live(dockerd, "after")
        reader.wait(lambda: len(reader.events) == 10)

    assert [end.reason for end in reader.ends[:2]] == ["closed", "network"]
    assert [event["name"] for event in reader.events] == ["before"] * 5 + ["after"] * 5
    assert len({parent for event in reader.events for parent in event["parents"]}) == 3
    assert len([entry for entry in logs if entry["event"].startswith("events may be missing")]) == 1


def test_more_events_than_the_engine_remembers_are_said_to_be_missing(dockerd: Dockerd, proxy: CuttableSocket) -> None:
    with capture_logs() as logs, Reader(proxy.url) as reader:
        live(dockerd, "seen")
        reader.wait(lambda: len(reader.events) == 5)
        container = dockerd.create("renamed")
        with proxy.refusing():
            for number in range(300):
                dockerd.call("POST", f"/containers/{container}/rename?name=renamed-{number}")
        dockerd.remove(container)
        reader.wait(lambda: any(event["state"] == "Terminated" and event["name"] != "seen" for event in reader.events))

    assert len([entry for entry in logs if entry["event"].startswith("events may be missing")]) == 1


def test_a_container_of_a_swarm_service_has_all_its_parents(dockerd: Dockerd) -> None:
    # In a network namespace of its own the addresses are free.
    addresses = {"ListenAddr": "127.0.0.1:2377", "AdvertiseAddr": "127.0.0.1", "DataPathAddr": "127.0.0.1"}
    dockerd.call("POST", "/swarm/init", addresses)
    stack = {"com.docker.stack.namespace": "web"}
    task = {"ContainerSpec": {"Image": IMAGE, "Command": idle(), "Labels": stack}}
    with Reader(dockerd.url) as reader:
        answer = dockerd.call("POST", "/services/create", {"Name": "web_app", "Labels": stack, "TaskTemplate": task})
        reader.wait(lambda: len(reader.events) >= 2)
    swarm = json.loads(dockerd.call("GET", "/info"))["Swarm"]

    keys = [
        ("app/v1/acme/service", f"service:{json.loads(answer)['ID']}"),
        ("infra/v1/acme/node", f"node:{swarm['NodeID']}"),
        ("app/v1/acme/stack", f"stack:swarm:{swarm['Cluster']['ID']}:web"),
        ("infra/v1/acme/nodecluster", f"nodecluster:{swarm['Cluster']['ID']}"),
    ]
    assert reader.events[0]["parents"] == [f"/api/{path}/{uuid5(NAMESPACE, key)}/" for path, key in keys]
    assert [event["state"] for event in reader.events[:2]] == ["Starting", "Running"]


def test_a_silent_daemon_proves_that_it_lives_and_a_frozen_one_is_dead(dockerd: Dockerd) -> None:
    time = [0.0]
    settings = EngineSettings(type="engine", url=dockerd.url, connect_timeout=1)
    session = EngineSource(settings, clock=lambda: time[0], read_timeout=0.05).open(None)
    session.read()
    silent = session.read()
    time[0] = 31.0
    proved = session.read()
    time[0] = 62.0
    with dockerd.frozen(), pytest.raises(Ended) as end:
        session.read()
    session.close()

    assert (silent.heard, proved.heard) == (False, True)
    assert end.value.reason == "dead"
