"""SIGHUP, and secrets that rotate: what changes while the real process runs, and what does not notice."""

import signal
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import (
    Bridge,
    Receiver,
    assert_books_balance,
    assert_order_per_resource,
    repeated,
    running,
    uuids,
    value,
)
from tests.support.ports import free_port
from tests.support.waiting import until

RATE = 300


def simulators(stack: ExitStack, *names: str) -> dict[str, Simulator]:
    """A simulator of its own for each stream."""
    made = {}
    for seed, name in enumerate(names):
        simulated = SimulatorSettings(port=0, rate=RATE, seed=seed, namespaces=(name,), record=True, wait_for_clients=1)
        made[name] = stack.enter_context(Simulator(simulated))
    return made


def receivers(stack: ExitStack, *names: str) -> dict[str, Receiver]:
    return {name: stack.enter_context(Receiver()) for name in names}


def hook(receiver: Receiver, **others: Any) -> dict[str, Any]:
    """A sink with one connection."""
    return {"type": "webhook", "url": receiver.url, "format": "batch", "connections": 1, **others}


def connections(receiver: Receiver) -> set[int]:
    """The numbers of the connections that brought something."""
    return {number for number, _ in receiver.requests}


def assert_sinks_balance(status: Mapping[str, Any]) -> None:
    for sink in status["sinks"].values():
        assert sink["accepted"] == sum(sink[end] for end in ("delivered", "filtered", "dead", "dropped", "pending"))


def test_what_changes_loses_nothing_and_what_does_not_change_notices_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        places = simulators(stack, "stays", "changes", "goes", "comes")
        streams: dict[str, Any] = {name: {"url": place.url} for name, place in places.items()}
        boxes = receivers(stack, "stays", "changes", "goes", "comes")
        sinks = {name: hook(box) for name, box in boxes.items()}
        bridge = Bridge(tmp_path, {"streams": without(streams, "comes"), "sinks": without(sinks, "comes")})
        stack.enter_context(bridge)
        until(lambda: all(boxes[name].count() > RATE for name in ("stays", "changes", "goes")), "events arrive")
        before = bridge.metrics()

        streams["changes"]["ping_interval"] = "7s"
        sinks["changes"]["batch"] = {"max_events": 50}
        bridge.configure({"streams": without(streams, "goes"), "sinks": without(sinks, "goes")})
        bridge.hang_up()
        until(lambda: places["changes"].handshakes == 2, "the changed stream has a second session")
        assert value(bridge.metrics(), "stream_connected", stream="changes") == 1
        until(lambda: places["changes"].connections == 1, "the first session of the changed stream ends")
        until(lambda: boxes["comes"].count() > RATE and places["comes"].sent > RATE, "what is new works")
        for place in places.values():
            place.change(rate=0.001)
        alive = ("stays", "changes", "comes")
        until(lambda: heard(bridge, alive) == [len(places[name].sent_uuids()) for name in alive], "all that was sent is heard")
        until(lambda: bridge.pending() == 0, "everything is delivered")
        metrics, status = bridge.metrics(), bridge.status()
        assert bridge.stop() == 0

        # What stays has not noticed.
        assert places["stays"].handshakes == 1
        assert len(connections(boxes["stays"])) == 1
        # What changed has lost nothing: one session took over from the other, one connection from the other.
        assert places["changes"].handshakes == 2
        assert len(connections(boxes["changes"])) == 2
        gap = value(before, "stream_gap_seconds_total", stream="changes")
        assert value(metrics, "stream_gap_seconds_total", stream="changes") == gap
        assert status["streams"]["changes"]["gaps"] == []
        assert value(metrics, "events_duplicate_total", stream="changes") > 0
        sent = [uuid for name in alive for uuid in places[name].sent_uuids()]
        arrived = {name: boxes[name].events() for name in boxes}
        for name in ("stays", "changes"):
            assert set(sent) <= set(uuids(arrived[name]))
            assert repeated(arrived[name]) == set()
            assert uuids(arrived[name]) == uuids(arrived["stays"])
            for place in places.values():
                known = set(place.sent_uuids())
                assert_order_per_resource([e for e in arrived[name] if e["uuid"] in known], place.sent_uuids())
        # What came got all from then on; what went is gone, but for what its stream has in the books.
        latest = status["sinks"]["comes"]["accepted"]
        assert uuids(arrived["comes"]) == uuids(arrived["stays"])[-latest:]
        assert uuids(arrived["goes"]) == uuids(arrived["stays"])[: boxes["goes"].count()]
        assert boxes["goes"].count() < boxes["stays"].count()
        assert status["streams"].keys() == status["sinks"].keys() == set(alive)
        assert {dict(labels).get("sink") for _, labels in metrics} == {None, *alive}
        assert {dict(labels)["stream"] for name, labels in metrics if name == "event_bridge_stream_connected"} == set(alive)
        assert value(metrics, "events_accepted_total", stream="goes") > 0
        assert [line["attributes"]["sink"] for line in bridge.said("its cursor is forgotten")] == ["goes"]
        assert_sinks_balance(status)
        assert "bug" not in bridge.log.read_text()


def without(mapping: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {other: item for other, item in mapping.items() if other != name}


def heard(bridge: Bridge, names: tuple[str, ...]) -> list[float]:
    """Count the events of each stream."""
    metrics = bridge.metrics()
    return [value(metrics, "events_accepted_total", stream=name) for name in names]


def test_a_bad_file_changes_nothing_and_a_good_one_puts_it_right(tmp_path: Path) -> None:
    with ExitStack() as stack:
        (place,) = simulators(stack, "acme").values()
        (box,) = receivers(stack, "hook").values()
        good = {"streams": {"acme": {"url": place.url}}, "sinks": {"hook": hook(box)}}
        bridge = stack.enter_context(Bridge(tmp_path, good))
        box.wait_for_more()

        for sinks in ({"hook": {**hook(box), "tokn": "x", "timeout": -1}}, {"hook": hook(box, ca_file="/nowhere.pem")}):
            bridge.configure({"streams": {"other": {"url": place.url}}, "sinks": sinks})
            bridge.hang_up()
            metrics, told = bridge.metrics(), bridge.status()["reload"]
            assert value(metrics, "config_last_reload_successful") == 0
            assert told["ok"] is False
            problems = [line["attributes"]["problem"] for line in bridge.said("nothing was changed")]
            assert problems[-len(told["problems"]) :] == told["problems"]
        bridge.config.write_text("streams: [")
        bridge.hang_up()
        bridge.config.unlink()
        bridge.hang_up()
        box.wait_for_more()
        said = [line["attributes"]["problem"] for line in bridge.said("nothing was changed")]
        expected = ["sinks.hook.timeout", "sinks.hook.tokn", "/nowhere.pem", "line 1", "No such file"]
        assert [part in line for part, line in zip(expected, said, strict=True)] == [True] * 5, said
        assert all(line["severity_text"] == "ERROR" for line in bridge.said("nothing was changed"))

        bridge.configure({**good, "journal": {"path": str(tmp_path / "elsewhere.db")}, "log": {"level": "warning"}})
        bridge.hang_up()
        box.wait_for_more()
        metrics = bridge.metrics()
        assert value(metrics, "config_last_reload_successful") == 1
        assert value(metrics, "config_last_reload_success_timestamp_seconds") > time.time() - 60
        assert bridge.status()["reload"]["ok"]
        assert [line["attributes"]["keys"] for line in bridge.said("need a restart")] == [["journal.path"]]
        assert not (tmp_path / "elsewhere.db").exists()
        assert bridge.stop() == 0
        assert not bridge.said("stopping"), "the log level applies at once"
    assert place.handshakes == 1
    assert len(connections(box)) == 1


def test_a_rotated_token_is_picked_up_without_being_told(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")
    with ExitStack() as stack:
        (place,) = simulators(stack, "acme").values()
        (box,) = receivers(stack, "hook").values()
        box.token = "old"
        sink = hook(box, token_file=str(token))
        bridge = stack.enter_context(Bridge(tmp_path, {"streams": {"acme": {"url": place.url}}, "sinks": {"hook": sink}}))
        box.wait_for_more()
        box.token = "new"
        until(lambda: bridge.status()["sinks"]["hook"]["reason"] == "unauthorized", "the old token is refused")
        token.write_text("new\n")
        box.wait_for_more()
        place.change(rate=0.001)
        until(lambda: heard(bridge, ("acme",)) == [len(place.sent_uuids())], "all that was sent is heard")
        until(lambda: bridge.pending() == 0, "everything is delivered")
        assert_books_balance(bridge.metrics())
        assert bridge.status()["reload"] is None
        assert bridge.stop() == 0

        assert sorted(uuids(box.events())) == sorted(place.sent_uuids())
        assert place.handshakes == 1


def test_without_a_file_a_hangup_reads_the_secrets_again(tmp_path: Path) -> None:
    secrets, port = tmp_path / "secrets", free_port()
    secrets.mkdir()
    key = secrets / "bridge_streams__acme__api_key"
    key.write_text("old")
    simulated = SimulatorSettings(port=0, username="bob", api_key="old", rate=RATE, wait_for_clients=1)
    with (
        Simulator(simulated) as place,
        running(
            "run",
            cwd=tmp_path,
            BRIDGE_SECRETS_DIR=str(secrets),
            BRIDGE_STREAMS__ACME__URL=place.url,
            BRIDGE_STREAMS__ACME__USERNAME="bob",
            BRIDGE_HTTP__LISTEN=f"127.0.0.1:{port}",
            BRIDGE_LOG__LEVEL="error",
        ) as process,
    ):
        assert process.stdout is not None
        process.stdout.readline()
        place.change(api_key="new")
        key.write_text("new")
        process.send_signal(signal.SIGHUP)
        until(lambda: place.handshakes == 2 and place.connections >= 1, "a session with the new key opens")
        process.terminate()
        _, errors = process.communicate(timeout=20)

    assert (process.returncode, errors) == (0, b"")


def catches(process_id: int, number: signal.Signals) -> bool:
    """Return True if a process has a handler for a signal, by the kernel's list."""
    status = Path(f"/proc/{process_id}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_hangups_at_any_time_and_many_at_once_do_no_harm(tmp_path: Path) -> None:
    with ExitStack() as stack:
        (place,) = simulators(stack, "acme").values()
        (box,) = receivers(stack, "hook").values()

        def settings(number: int) -> dict[str, Any]:
            """Another configuration for every number."""
            return {
                "streams": {"acme": {"url": place.url, "ping_interval": f"{20 + number}s"}},
                "sinks": {"hook": hook(box, batch={"max_events": 1000 + number})},
            }

        # What is sent to a session that is still being opened when it is given up, nobody has heard; so nothing is sent yet.
        place.change(rate=0.001)
        bridge = stack.enter_context(LaunchedBridge(tmp_path, settings(0)))
        until(lambda: catches(bridge.pid, signal.SIGHUP), "the process starts")
        for number in range(20):
            bridge.configure(settings(number))
            bridge.signal(signal.SIGHUP)
        until(bridge.answers, "the bridge answers")
        until(lambda: bool(bridge.status()["streams"]["acme"]["connected"]), "the stream is connected")
        # A session that opened just when it was given up is a gap until the next one is open; it is the only kind there may be.
        gaps = bridge.status()["streams"]["acme"]["gaps"]
        assert {gap["error"] for gap in gaps} <= {"stopped by us"}
        place.change(rate=RATE)
        box.wait_for_more()
        for number in range(20, 40):
            bridge.configure(settings(number))
            bridge.signal(signal.SIGHUP)
            time.sleep(0.02)
        until(lambda: box.count() > RATE, "events arrive")
        until(lambda: place.connections == 1, "one session is left")
        place.change(rate=0.001)
        until(lambda: heard(bridge, ("acme",)) == [len(place.sent_uuids())], "all that was sent is heard")
        until(lambda: bridge.pending() == 0, "everything is delivered")
        assert_books_balance(bridge.metrics())
        assert bridge.status()["streams"]["acme"]["connected"]
        assert bridge.status()["streams"]["acme"]["gaps"] == gaps
        process = bridge.process
        process.terminate()
        while process.poll() is None:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.001)

        assert process.returncode == 0
        assert uuids(box.events()) == list(dict.fromkeys(uuids(box.events())))
        assert sorted(uuids(box.events())) == sorted(place.sent_uuids())
        assert "bug" not in bridge.log.read_text()


class LaunchedBridge(Bridge):
    """A bridge that nobody waits for at its start."""

    def start(self) -> None:
        self.launch()


def test_a_sink_that_hangs_delays_its_own_replacement_and_nothing_else(tmp_path: Path) -> None:
    with ExitStack() as stack:
        (place,) = simulators(stack, "acme").values()
        boxes = receivers(stack, "hangs", "goes", "flows", "new")
        sinks = {name: hook(boxes[name], timeout="1m") for name in ("hangs", "goes", "flows")}
        streams = {"acme": {"url": place.url}}
        bridge = stack.enter_context(Bridge(tmp_path, {"streams": streams, "sinks": sinks}))
        until(lambda: all(boxes[name].count() for name in sinks), "events arrive")
        for name in ("hangs", "goes"):
            boxes[name].hang.set()
        until(lambda: boxes["hangs"].hung and boxes["goes"].hung, "both deliveries hang")
        delivering = [bridge.status()["sinks"][name]["delivered"] for name in ("hangs", "goes")]
        bridge.configure({"streams": streams, "sinks": {"hangs": hook(boxes["new"]), "flows": sinks["flows"]}})
        bridge.hang_up()
        boxes["flows"].wait_for_more()
        until(lambda: len(leaving(bridge)) == 2, "status tells of those that hang")
        assert leaving(bridge) == {"hangs": "to be replaced", "goes": "to be removed"}
        assert not bridge.said("cursor is forgotten")
        assert boxes["new"].count() == 0
        assert all(after >= before for before, after in zip(delivering, delivered(bridge, "hangs", "goes"), strict=True))

        for name in ("hangs", "goes"):
            boxes[name].hang.clear()
        boxes["new"].wait_for_more()
        until(lambda: leaving(bridge) == {}, "nobody hangs any more")
        place.change(rate=0.001)
        until(lambda: heard(bridge, ("acme",)) == [len(place.sent_uuids())], "all that was sent is heard")
        until(lambda: bridge.pending() == 0, "everything is delivered")
        assert_books_balance(bridge.metrics())
        assert bridge.status()["sinks"].keys() == {"hangs", "flows"}
        assert [line["attributes"]["sink"] for line in bridge.said("cursor is forgotten")] == ["goes"]
        assert bridge.stop() == 0

        both = uuids(boxes["hangs"].events()) + uuids(boxes["new"].events())
        assert both == uuids(boxes["flows"].events())
        assert sorted(both) == sorted(place.sent_uuids())
        assert "bug" not in bridge.log.read_text()


def leaving(bridge: Bridge) -> dict[str, str]:
    """The sinks that were told to end, and what is to become of them."""
    return {name: sink["leaving"] for name, sink in bridge.status()["sinks"].items() if sink["leaving"]}


def delivered(bridge: Bridge, *names: str) -> list[int]:
    status = bridge.status()["sinks"]
    return [status[name]["delivered"] for name in names]


@pytest.mark.parametrize("command", ["demo", "listen"])
def test_what_is_watched_on_a_terminal_ends_with_it(tmp_path: Path, command: str) -> None:
    with Simulator(SimulatorSettings(port=0, rate=RATE, wait_for_clients=1)) as place:
        options = ("--url", place.url, "--namespace", "acme") if command == "listen" else ()
        with running(command, *options, cwd=tmp_path) as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGHUP)
            assert process.wait(20) == -signal.SIGHUP


def test_the_configuration_is_read_again_over_http_as_by_prometheus(tmp_path: Path) -> None:
    with Receiver() as receiver, Bridge(tmp_path, {"streams": {"acme": {"url": "ws://127.0.0.1:1"}}}) as bridge:
        secret = (tmp_path / "journal.db.lock").read_text().split()[2]

        def reload(**headers: str) -> tuple[int, str]:
            request = urllib.request.Request(f"http://127.0.0.1:{bridge.port}/-/reload", method="POST", headers=headers)
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        assert reload()[0] == 401
        bridge.configure({"streams": {"acme": {"url": "ws://127.0.0.1:1"}}, "sinks": {"new": hook(receiver)}})
        assert reload(Authorization=f"Bearer {secret}") == (200, "ok\n")
        assert bridge.status()["sinks"].keys() == {"new"}
        bridge.configure({"streams": {"acme": {"url": "nonsense"}}})
        status, words = reload(Authorization=f"Bearer {secret}")
        assert (status, "streams.acme.url" in words) == (500, True)
        assert len(bridge.said("an operator asked for the configuration to be read again")) == 2
