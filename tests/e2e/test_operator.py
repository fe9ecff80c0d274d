"""An operator looks inside, sends dead letters again and reads the journal of a dead process, with the real command."""

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e import harness
from tests.e2e.harness import EVENT_BRIDGE, Bridge, Receiver, assert_books_balance, clean_environment, uuids
from tests.support.ports import free_port
from tests.support.servers.receiver import make_certificate
from tests.support.waiting import until

EVENTS = 1000
SECRET = "geheim und lang genug"


def command(bridge: Bridge, *arguments: str, expect: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `event-bridge` with the bridge's configuration, in its directory."""
    done = harness.command(*arguments, "--config", str(bridge.config), cwd=bridge.directory, seconds=60, **variables)
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done


def lines(done: subprocess.CompletedProcess[str]) -> list[Any]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def is_bad(uuid: str) -> bool:
    """Every fiftieth event or so."""
    return int(uuid[-4:], 16) % 50 == 0


def refusing(status: Callable[[str], int]) -> Callable[[list[dict[str, Any]]], tuple[int, dict[str, str]]]:
    return lambda events: (status(events[0]["uuid"]) if is_bad(events[0]["uuid"]) else 200, {})


def retrying(delay: str) -> dict[str, Any]:
    return {"max_attempts": 2, "first_delay": delay, "max_delay": delay, "max_pending": 10}


def settings(url: str, alerts: Receiver, audit: Receiver, delay: str) -> dict[str, Any]:
    """`alerts` and `audit` can be repaired; `away` is never there, so that the journal keeps everything."""
    base = {"type": "webhook", "start_at": "earliest", "ordering": "none"}
    return {
        "streams": {"acme": {"url": url}},
        "sinks": {
            "alerts": {**base, "url": alerts.url, "retry": {**retrying(delay), "max_pending": 1000}},
            "audit": {**base, "url": audit.url, "retry": retrying("10ms")},
            "away": {"type": "webhook", "url": f"http://127.0.0.1:{free_port()}/", "start_at": "earliest"},
        },
    }


def test_dead_letters_are_looked_at_repaired_and_sent_again_once(tmp_path: Path) -> None:
    simulated = SimulatorSettings(port=0, rate=0, count=EVENTS, record=True, wait_for_clients=1, seed=7)
    with Simulator(simulated) as simulator, Receiver() as alerts, Receiver() as audit:
        alerts.answer = refusing(lambda uuid: 400 if int(uuid[-4:], 16) % 100 else 500)
        audit.answer = refusing(lambda _: 422)
        # For so long that nothing is tried a second time here: what arrives did not wait for it.
        bridge = Bridge(tmp_path, settings(simulator.url, alerts, audit, "600s"))
        with bridge:
            until(lambda: len(simulator.sent_uuids()) == EVENTS, "all events are sent")
            sent = simulator.sent_uuids()
            bad = {uuid for uuid in sent if is_bad(uuid)}
            rejected = {uuid for uuid in bad if int(uuid[-4:], 16) % 100}
            assert len(bad) > len(rejected) > 5
            until(lambda: alerts.count() == audit.count() == EVENTS - len(bad), "the others arrive")
            until(lambda: bridge.status()["sinks"]["alerts"]["dead_letters"] == len(rejected), "the bad ones are settled")
            waiting = {line["sink"]: line for line in lines(command(bridge, "backlog", "--interval", "10ms", "--json"))}
            assert (waiting["alerts"]["retrying"], waiting["alerts"]["up"]) == (len(bad) - len(rejected), True)
            assert (waiting["away"]["pending"], waiting["away"]["up"]) == (EVENTS, False)
        # A due time that can't be meant is due: with a short delay, what waits is tried again at once, and dies.
        again = Bridge(tmp_path, settings(simulator.url, alerts, audit, "10ms"))
        with again:
            until(lambda: again.status()["sinks"]["alerts"]["dead_letters"] == len(bad), "the bad ones are given up")
            look_at(again, bad, rejected)
            alerts.answer = audit.answer = lambda _: (200, {})
            replay_beside_the_bridge(again, alerts, sent, bad)
            again.kill()
            replay_on_the_file(again, audit, sent, bad)
            save_what_is_left(again, tmp_path, sent)


def look_at(bridge: Bridge, bad: set[str], rejected: set[str]) -> None:
    """The lists show each dead letter with its reason; looking and hesitating change nothing."""
    letters = lines(command(bridge, "dead-letters", "list", "--sink", "alerts", "--json"))
    assert {letter["event"]["uuid"]: letter["reason"] for letter in letters} == {
        uuid: "rejected" if uuid in rejected else "too_many_attempts" for uuid in bad
    }
    one = letters[0]
    shown = command(bridge, "dead-letters", "show", str(one["id"])).stdout
    assert one["event"]["uuid"] in shown
    assert "answered 4" in shown or "answered 5" in shown
    assert "would be queued" in command(bridge, "dead-letters", "replay", "--all", "--dry-run").stderr
    assert "--yes" in command(bridge, "dead-letters", "drop", "--all", expect=2).stderr
    assert lines(command(bridge, "dead-letters", "list", "--sink", "alerts", "--json")) == letters


def replay_beside_the_bridge(bridge: Bridge, receiver: Receiver, sent: list[str], bad: set[str]) -> None:
    done = command(bridge, "dead-letters", "replay", "--sink", "alerts")
    assert done.stdout == f"alerts: {len(bad)} dead letters queued\n"
    until(lambda: receiver.count() == len(sent), "they arrive")
    assert Counter(uuids(receiver.events())) == Counter(sent)
    assert command(bridge, "dead-letters", "replay", "--sink", "alerts").stderr == "no dead letters\n"
    until(lambda: bridge.status()["sinks"]["alerts"]["pending"] == 0, "nothing waits")
    assert receiver.count() == len(sent)


def replay_on_the_file(bridge: Bridge, receiver: Receiver, sent: list[str], bad: set[str]) -> None:
    """On the file, half of the retry queue is filled; the rest goes beside the running bridge, five at a time."""
    before = receiver.count()
    dropped = lines(command(bridge, "dead-letters", "list", "--sink", "audit", "--json"))[-1]
    assert command(bridge, "dead-letters", "drop", str(dropped["id"]), "--yes").stdout == "deleted 1 dead letter\n"
    left = len(bad) - 1 - 5
    done = command(bridge, "dead-letters", "replay", "--sink", "audit", expect=1)
    assert f"audit: 5 dead letters queued, {left} left: audit has 5 events waiting for a retry" in done.stderr
    assert command(bridge, "backlog").stdout.count("stopped") == 3
    assert receiver.count() == before
    with bridge:
        until(lambda: receiver.count() == before + 5, "those that were sent on the file arrive")
        assert command(bridge, "dead-letters", "replay", "--all").stdout == f"audit: {left} dead letters queued\n"
        until(lambda: receiver.count() == len(sent) - 1, "the others arrive")
        until(lambda: bridge.status()["sinks"]["audit"]["pending"] == 0, "nothing waits")
        assert Counter(uuids(receiver.events())) == Counter(set(sent) - {dropped["event"]["uuid"]})
        bridge.kill()


def save_what_is_left(bridge: Bridge, directory: Path, sent: list[str]) -> None:
    """The journal of a killed bridge has all that it took; a damaged copy gives what can be read, and nothing else."""
    saved = directory / "saved.jsonl"
    assert f"exported {EVENTS:,} events" in command(bridge, "journal", "export", "--output", str(saved)).stderr
    events = [json.loads(line) for line in saved.read_text().splitlines()]
    assert uuids(events) == sent
    head = subprocess.run(
        f"{EVENT_BRIDGE} journal export --config {bridge.config} | head -n 3",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=directory,
        env=clean_environment(),
    )
    assert head.stdout == "".join(saved.read_text().splitlines(keepends=True)[:3])
    assert "Traceback" not in head.stderr
    with Path("/dev/full").open("w") as full:
        status = subprocess.run(
            [EVENT_BRIDGE, "journal", "export", "--config", str(bridge.config)],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
            timeout=60,
            cwd=directory,
            env=clean_environment(),
        )
    assert (status.returncode, status.stderr) == (1, b"event-bridge: can't be written: No space left on device\n")
    assert " are in use" in command(bridge, "journal", "prune").stdout
    copy = directory / "copy.db"
    shutil.copy(directory / "journal.db", copy)
    content = bytearray(copy.read_bytes())
    place = content.index(events[len(events) // 2]["uuid"].encode())
    content[place : place + 4] = b"\0\0\0\0"
    copy.write_bytes(content)
    done = command(bridge, "journal", "export", "--journal", str(copy), expect=1)
    assert "could not be read" in done.stderr
    found = lines(done)
    assert 0 < len(found) < EVENTS
    assert all(event in events for event in found)
    assert "lost: " in command(bridge, "journal", "verify", "--journal", str(copy), expect=1).stdout


def status_of(bridge: Bridge, path: str, method: str = "GET", **headers: str) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{bridge.port}{path}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def simulator() -> Any:
    with Simulator(SimulatorSettings(port=0, rate=50, malformed=0.5, wait_for_clients=1)) as made:
        yield made


def test_a_token_is_for_the_operations_and_comes_from_the_configuration(tmp_path: Path, simulator: Simulator) -> None:
    token = tmp_path / "token"
    token.write_text(SECRET + "\n")
    http = {"listen": f"127.0.0.1:{free_port()}", "token_file": str(token)}
    bridge = Bridge(tmp_path, {"streams": {"acme": {"url": simulator.url}}, "http": http})
    bridge.port = int(http["listen"].rpartition(":")[2])
    url = f"http://127.0.0.1:{bridge.port}"
    with bridge:
        until(lambda: bridge.status()["streams"]["acme"]["malformed"] != {}, "something is malformed")
        assert [status_of(bridge, path) for path in ("/dead-letters", "/journal/events", "/status", "/metrics")] == [
            401,
            401,
            200,
            200,
        ]
        assert status_of(bridge, "/dead-letters/drop", "POST") == 401
        assert status_of(bridge, "/quarantine", Authorization=f"Bearer {SECRET}") == 200
        assert status_of(bridge, "/quarantine", Authorization=f"Bearer {SECRET}", Origin="http://evil.example") == 403
        assert lines(command(bridge, "quarantine", "export"))[0]["stream"] == "acme"
        wrong = command(bridge, "quarantine", "list", "--url", url, expect=1, BRIDGE_HTTP__TOKEN="some other token")
        assert wrong.stderr.startswith(f"event-bridge: {url}: the token is not the one of http.token")
        elsewhere = [EVENT_BRIDGE, "quarantine", "export", "--url", url]
        for variables, status in (({"BRIDGE_HTTP__TOKEN": SECRET}, 0), ({}, 1)):
            done = subprocess.run(
                elsewhere, cwd="/", env=clean_environment(**variables), capture_output=True, text=True, timeout=30, check=False
            )
            assert done.returncode == status, done.stderr
        assert SECRET not in bridge.log.read_text()


def test_a_sink_is_set_back_and_gets_everything_once_more_in_order_while_new_events_come(tmp_path: Path) -> None:
    simulated = SimulatorSettings(port=0, rate=500, seed=4, record=True, wait_for_clients=1)
    with Simulator(simulated) as simulator, Receiver() as receiver:
        sinks = {
            "audit": {"type": "webhook", "url": receiver.url, "format": "batch", "connections": 1},
            "other": {"type": "stdout"},
        }
        settings = {"streams": {"acme": {"url": simulator.url}}, "sinks": sinks}
        bridge = Bridge(tmp_path, settings)
        bridge.configure({**settings, "journal": {"path": str(tmp_path / "journal.db"), "retention": "1h"}})
        with bridge:
            until(lambda: receiver.count() > 1500, "events arrive")
            done = command(bridge, "rewind", "--sink", "audit", "--to", "1")
            again = int(done.stdout.split()[2].replace(",", ""))
            simulator.stop()
            until(lambda: bridge.pending() == 0 and receiver.count() >= len(simulator.sent_uuids()) + again, "all is there")
            assert command(bridge, "skip", "--sink", "audit", "--yes", expect=1).stderr == "audit: no event waits\n"
            assert_books_balance(bridge.metrics())
    arrived, sent = uuids(receiver.events()), simulator.sent_uuids()
    # What was under way when the cursor was set back came a third time, or was not counted.
    assert sorted(set(arrived)) == sorted(sent)
    first_again = next(place for place in range(1, len(arrived)) if arrived[place] == sent[0])
    assert arrived[first_again:] == sent


def test_commands_find_a_bridge_with_tls_that_asks_for_client_certificates(tmp_path: Path, simulator: Simulator) -> None:
    certificate, key = make_certificate(tmp_path)
    tls = {"cert_file": str(certificate), "key_file": str(key), "client_ca_file": str(certificate)}
    bridge = Bridge(tmp_path, {"streams": {"acme": {"url": simulator.url}}, "http": {"listen": "127.0.0.1:0", "tls": tls}})
    bridge.launch()
    try:
        until(lambda: bridge.output.stat().st_size > 0, "events arrive")
        assert "stdout" in command(bridge, "backlog").stdout
        assert command(bridge, "dead-letters", "list").returncode == 0
        (running,) = bridge.said("event-bridge is running")
        url = running["attributes"]["http"]
        assert url.startswith("https://127.0.0.1:")
        assert "TLS: " in command(bridge, "backlog", "--url", url, expect=1).stderr
    finally:
        bridge.kill()


def test_without_its_port_a_running_bridge_says_so_and_the_file_can_still_be_read(tmp_path: Path, simulator: Simulator) -> None:
    bridge = Bridge(tmp_path, {"streams": {"acme": {"url": simulator.url}}, "http": {"listen": False}})
    bridge.launch()
    try:
        until(lambda: bridge.output.stat().st_size > 0, "events arrive")
        off = command(bridge, "backlog", expect=1)
        assert f"the bridge runs (process {bridge.pid}), but its HTTP port is off" in off.stderr
        assert "journal verify" not in off.stderr
        path = str(tmp_path / "journal.db")
        assert "0 lost" in command(bridge, "journal", "verify", "--journal", path).stdout
        url = f"http://127.0.0.1:{free_port()}"
        nobody = command(bridge, "backlog", "--url", url, expect=1)
        assert nobody.stderr.startswith(f"event-bridge: {url}: connection refused")
    finally:
        bridge.kill()
    gone = command(bridge, "backlog", "--url", simulator.url.replace("ws:", "http:"), expect=1)
    assert "what answers there is no event-bridge" in gone.stderr


def test_a_sink_that_came_by_a_reload_can_be_replayed_to(tmp_path: Path) -> None:
    simulated = SimulatorSettings(port=0, rate=0, count=EVENTS, record=True, wait_for_clients=1, seed=7)
    with Simulator(simulated) as simulator, Receiver() as late:
        late.answer = refusing(lambda _: 422)
        streams = {"acme": {"url": simulator.url}}
        away = {"type": "webhook", "url": f"http://127.0.0.1:{free_port()}/", "start_at": "earliest"}
        with Bridge(tmp_path, {"streams": streams, "sinks": {"away": away}}) as bridge:
            until(lambda: bridge.pending() == EVENTS, "the events are in the journal")
            hook = {"type": "webhook", "url": late.url, "start_at": "earliest"}
            bridge.configure({"streams": streams, "sinks": {"away": away, "late": hook}})
            bridge.hang_up()
            bad = {uuid for uuid in simulator.sent_uuids() if is_bad(uuid)}
            until(lambda: bridge.status()["sinks"]["late"]["dead_letters"] == len(bad), "the bad ones are dead letters")
            late.answer = lambda _: (200, {})
            command(bridge, "dead-letters", "replay", "--sink", "late")
            until(lambda: late.count() == EVENTS, "all of them arrive")
            assert sorted(uuids(late.events())) == sorted(simulator.sent_uuids())
