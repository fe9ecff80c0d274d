"""The command as a person uses it: first steps, first mistakes, signals, exit statuses."""

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.simulator.server import Simulator, SimulatorSettings
from tests.e2e.harness import EVENT_BRIDGE, Bridge, Receiver, clean_environment, command, running
from tests.support.ports import free_port
from tests.support.waiting import until

SECRET = "s3cret-api-key"


def first_line(process: subprocess.Popen[bytes]) -> Any:
    """The next event that it prints."""
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


def test_the_demo_shows_events_and_says_what_to_try_next(tmp_path: Path) -> None:
    done = command("demo", "--duration", "3", "--rate", "10", cwd=tmp_path)

    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert len(events) >= 10
    assert {event["namespace"] for event in events} == {"acme"}
    assert "metrics http://127.0.0.1:" in done.stderr
    assert "try next" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_demos_at_once_do_not_meet(tmp_path: Path) -> None:
    with running("demo", "--duration", "4", cwd=tmp_path) as first:
        second = command("demo", "--duration", "2", cwd=tmp_path)
        first.communicate(timeout=20)

    assert first.returncode == 0
    assert second.returncode == 0


def test_the_original_variables_alone_are_enough(tmp_path: Path) -> None:
    simulated = SimulatorSettings(port=0, username="bob", api_key=SECRET, rate=50, record=True, wait_for_clients=1)
    with (
        Simulator(simulated) as simulator,
        running(
            "run",
            cwd=tmp_path,
            DOCKERCLOUD_USER="bob",
            DOCKERCLOUD_APIKEY=SECRET,
            DOCKERCLOUD_STREAM_HOST=simulator.url,
            BRIDGE_HTTP__LISTEN=f"127.0.0.1:{free_port()}",
        ) as process,
    ):
        first = first_line(process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
        sent = simulator.sent_uuids()

    assert process.returncode == 0
    assert first.keys() >= {"type", "action", "state", "uuid", "datetime", "received_at"}
    assert {first["uuid"], *(json.loads(line)["uuid"] for line in output.splitlines())} <= set(sent)
    assert SECRET not in errors.decode()
    for line in errors.decode().splitlines():
        assert json.loads(line).keys() >= {"timestamp", "severity_text", "body"}


def test_listen_prints_the_events_that_were_asked_for(tmp_path: Path) -> None:
    simulated = SimulatorSettings(port=0, rate=200, seed=1, wait_for_clients=1)
    with (
        Simulator(simulated) as simulator,
        running(
            "listen", "--url", simulator.url, "--namespace", "acme", "--type", "container,service", cwd=tmp_path
        ) as process,
    ):
        events = [first_line(process) for _ in range(50)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)

    assert process.returncode == 0
    assert {event["type"] for event in events} == {"container", "service"}
    assert {event["namespace"] for event in events} == {"acme"}
    assert list(tmp_path.iterdir()) == []


def test_listen_says_that_credentials_are_refused_and_ends(tmp_path: Path) -> None:
    with Simulator(SimulatorSettings(port=0, username="bob", api_key="another")) as simulator:
        done = command(
            "listen", cwd=tmp_path, DOCKERCLOUD_USER="bob", DOCKERCLOUD_APIKEY=SECRET, DOCKERCLOUD_STREAM_HOST=simulator.url
        )

    assert done.returncode == 1
    assert "401" in done.stderr
    assert SECRET not in done.stderr + done.stdout


def test_listen_ends_quietly_when_nobody_reads_any_more(tmp_path: Path) -> None:
    with Simulator(SimulatorSettings(port=0, rate=200, wait_for_clients=1)) as simulator:
        done = subprocess.run(
            f"{EVENT_BRIDGE} listen --url {simulator.url} | head -n 3",
            shell=True,
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert len(done.stdout.splitlines()) == 3
    assert "Traceback" not in done.stderr
    assert "disconnected" not in done.stderr


def test_debug_shows_each_commit_and_delivery(tmp_path: Path) -> None:
    with Simulator(SimulatorSettings(port=0, rate=100, wait_for_clients=1)) as simulator:
        bridge = Bridge(tmp_path, {"streams": {"acme": {"url": simulator.url}}, "log": {"level": "debug"}})
        with bridge:
            until(lambda: len(bridge.said("committed")) > 60 and len(bridge.said("delivered")) > 60, "each has a line")
            assert bridge.said("committed")[0]["attributes"]["stream"] == "acme"
            delivered = [line["attributes"] for line in bridge.said("delivered")]
            assert {line["sink"] for line in delivered} == {"stdout"}
            assert all(line["events"] > 0 and not line["failed"] for line in delivered)
            bridge.configure({"streams": {"acme": {"url": simulator.url}}})
            bridge.hang_up()
            lines = len(bridge.said("delivered"))
            received = bridge.status()["streams"]["acme"]["received"]
            until(lambda: bridge.status()["streams"]["acme"]["received"] > received + 20, "events go on arriving")
            assert len(bridge.said("delivered")) <= lines + 1


def test_a_second_process_on_the_same_journal_is_refused_with_the_holders_process_id(tmp_path: Path) -> None:
    with Simulator(SimulatorSettings(port=0)) as simulator:
        bridge = Bridge(tmp_path, {"streams": {"acme": {"url": simulator.url}}})
        with bridge:
            done = command("run", "--config", str(bridge.config), cwd=tmp_path, BRIDGE_HTTP__LISTEN=f"127.0.0.1:{free_port()}")
            holder = bridge.pid
            assert bridge.stop() == 0

    assert done.returncode == 78
    assert done.stderr.splitlines()[-1].startswith(f"event-bridge: {tmp_path}/journal.db: in use by process {holder}")


def test_check_tries_every_stream_and_sink(tmp_path: Path) -> None:
    with Simulator(SimulatorSettings(port=0)) as simulator, Receiver() as receiver:
        config = tmp_path / "bridge.yaml"
        sinks: dict[str, Any] = {"hook": {"type": "webhook", "url": receiver.url}, "out": {"type": "stdout"}}
        config.write_text(yaml.safe_dump({"streams": {"acme": {"url": simulator.url}}, "sinks": sinks}))
        good = command("check", "--connect", cwd=tmp_path, BRIDGE_HTTP__LISTEN="127.0.0.1:0")
        sinks["gone"] = {"type": "webhook", "url": f"http://127.0.0.1:{free_port()}/"}
        config.write_text(yaml.safe_dump({"streams": {"acme": {"url": simulator.url}}, "sinks": sinks}))
        bad = command("check", "--connect", cwd=tmp_path, BRIDGE_HTTP__LISTEN="127.0.0.1:0")

    assert good.returncode == 0
    assert good.stdout.splitlines()[1:] == [
        f"{part}: ok" for part in ("journal", "http", "stream acme", "sink hook", "sink out")
    ]
    assert bad.returncode == 1
    assert "sink gone: unreachable" in bad.stdout
    assert "sink gone" in bad.stderr


def test_check_sends_a_test_event_where_asked_to(tmp_path: Path) -> None:
    with Simulator(SimulatorSettings(port=0)) as simulator, Receiver() as receiver:
        receiver.token = "right and long"
        hook = {"type": "webhook", "url": receiver.url, "token": "wrong and long"}
        sinks = {"hook": hook, "out": {"type": "stdout"}}
        settings = {"streams": {"acme": {"url": simulator.url}}, "sinks": sinks, "http": {"listen": "off"}}
        (tmp_path / "bridge.yaml").write_text(yaml.safe_dump(settings))
        connected = command("check", "--connect", cwd=tmp_path)
        refused = command("check", "--connect", "--send", cwd=tmp_path)
        accepted = command("check", "--send", cwd=tmp_path, BRIDGE_SINKS__HOOK__TOKEN="right and long")

    assert (connected.returncode, receiver.count()) == (0, 1)
    assert refused.returncode == 1
    assert "sink hook: unauthorized: " in refused.stdout
    assert accepted.returncode == 0
    (event,) = receiver.events()
    assert (event["type"], event["action"], event["namespace"]) == ("container", "test", "acme")
    lines = accepted.stdout.splitlines()
    assert f"sink hook: test event {event['uuid']} acknowledged" in lines
    assert lines.index(next(line for line in lines if line.startswith("{"))) == lines.index("sink out: ok") - 1


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("streams: {acme: {urll: x}}", {}, ["bridge.yaml", "streams.acme.urll"]),
        ("streams: {acme: {}}\nsinks: {a: {type: webhok}}", {}, ["sinks.a.type", "webhook"]),
        ("streams: {acme: [}", {}, ["bridge.yaml", "line"]),
        ("streams: {acme: {}}", {"BRIDGE_LOG__LEVLE": "debug"}, ["BRIDGE_LOG__LEVLE", "level"]),
        ("streams: {acme: {url: 'http://x'}}", {}, ["streams.acme.url", "wss://"]),
        ("", {}, ["streams"]),
        (f"streams: {{acme: {{username: bob, api_key: {SECRET}, api_key_file: /nowhere}}}}", {}, ["api_key_file"]),
    ],
)
def test_a_mistake_gets_one_line_with_its_place_and_exit_status_78(
    tmp_path: Path, text: str, variables: dict[str, str], expected: list[str]
) -> None:
    (tmp_path / "bridge.yaml").write_text(text)

    done = command("run", cwd=tmp_path, seconds=30, **variables)

    assert done.returncode == 78
    assert len(done.stderr.splitlines()) == 1
    assert all(part.lower() in done.stderr.lower() for part in expected), done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stderr


def test_a_named_configuration_that_is_missing_is_a_mistake(tmp_path: Path) -> None:
    done = command("run", "--config", "nowhere.yaml", cwd=tmp_path)

    assert done.returncode == 78
    assert "nowhere.yaml" in done.stderr


def test_wrong_arguments_end_with_2_and_help_teaches(tmp_path: Path) -> None:
    assert command("rnu", cwd=tmp_path).returncode == 2
    assert command("simulate", "--listen", "nonsense", cwd=tmp_path).returncode == 78
    helped = command("--help", cwd=tmp_path)
    assert helped.returncode == 0
    assert "first steps" in helped.stdout


def test_a_port_in_use_is_said_in_one_line_and_may_be_free_the_next_time(tmp_path: Path) -> None:
    with Simulator(SimulatorSettings(port=0)) as simulator:
        done = command(
            "run",
            cwd=tmp_path,
            DOCKERCLOUD_STREAM_HOST=simulator.url,
            BRIDGE_HTTP__LISTEN=f"127.0.0.1:{simulator.port}",
        )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("event-bridge: http.listen")


def test_sigterm_drains_what_is_heard_and_ends_with_0(tmp_path: Path) -> None:
    simulated = SimulatorSettings(port=0, rate=1000, seed=1, record=True, wait_for_clients=1)
    with Simulator(simulated) as simulator, Receiver() as receiver:
        sink = {"type": "webhook", "url": receiver.url, "format": "batch"}
        with Bridge(tmp_path, {"streams": {"acme": {"url": simulator.url}}, "sinks": {"hook": sink}}) as bridge:
            until(lambda: receiver.count() > 500, "events arrive")
            assert bridge.stop() == 0
        stopped = [json.loads(line) for line in bridge.log.read_text().splitlines()][-1]

    assert stopped["attributes"]["pending_events"] == {}


def test_a_reader_that_hangs_does_not_keep_the_process_from_ending_in_its_grace(tmp_path: Path) -> None:
    with (
        Simulator(SimulatorSettings(port=0, rate=2000, wait_for_clients=1)) as simulator,
        running(
            "run",
            cwd=tmp_path,
            DOCKERCLOUD_STREAM_HOST=simulator.url,
            BRIDGE_HTTP__LISTEN=f"127.0.0.1:{free_port()}",
            BRIDGE_SHUTDOWN__GRACE="2s",
        ) as process,
    ):
        first_line(process)
        time.sleep(1)
        began = time.monotonic()
        process.terminate()

        assert process.wait(20) == 0
        assert time.monotonic() - began < 8
