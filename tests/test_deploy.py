"""The brokers of `deploy/compose.test.yaml` are where the tests look for them; the parts of `compose.yaml` find each other."""

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
import yaml

from tests.support.ports import free_port
from tests.support.servers import kafka_broker, mosquitto

ROOT: Final = Path(__file__).parent.parent
FILE: Final = ROOT / "deploy" / "compose.test.yaml"
KNOWN: Final = {"image", "ports", "environment", "configs", "healthcheck"}
"""Keys that a service may have, all of them part of the Compose specification."""


@pytest.fixture
def compose() -> Any:
    return yaml.safe_load(FILE.read_text())


@pytest.fixture
def shown() -> Any:
    """Return what `docker compose up` runs for somebody who wants to see it."""
    return yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())


def ports_of(service: dict[str, Any]) -> list[str]:
    """Return the ports of a service on the host."""
    return [port.rpartition(":")[0] for port in service["ports"]]


def test_the_brokers_are_where_the_documents_say(compose: Any) -> None:
    for text in (FILE.read_text(), (ROOT / "README.md").read_text()):
        named = dict(re.findall(r"EVENT_BRIDGE_TEST_(\w+)=([\w.:]+)", text))
        assert {name.lower(): [address] for name, address in named.items()} == {
            name: ports_of(service) for name, service in compose["services"].items()
        }


def test_they_are_open_on_loopback_only_and_say_when_they_are_ready(compose: Any) -> None:
    for service in compose["services"].values():
        assert service.keys() <= KNOWN
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["healthcheck"]["test"][0] == "CMD"
        assert all(isinstance(word, str) for word in service["healthcheck"]["test"])


def test_kafka_is_the_version_that_the_tests_start_and_tells_clients_its_address_outside(compose: Any) -> None:
    kafka = compose["services"]["kafka"]

    assert kafka["image"] == f"apache/kafka:{kafka_broker.VERSION}"
    assert [kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"]] == [f"TESTS://{address}" for address in ports_of(kafka)]


@pytest.mark.skipif(mosquitto.available() is not None, reason=str(mosquitto.available()))
def test_mosquitto_takes_its_configuration(tmp_path: Path, compose: Any) -> None:
    mqtt = compose["services"]["mqtt"]
    (config,) = [compose["configs"][one["source"]]["content"] for one in mqtt["configs"]]
    inside = mqtt["ports"][0].rpartition(":")[2]
    assert f"listener {inside}\n" in config
    broker = mosquitto.Broker("127.0.0.1", free_port())
    path = tmp_path / "mosquitto.conf"
    path.write_text(config.replace(f"listener {inside}", f"listener {broker.plain} 127.0.0.1"))
    with psutil.Popen([str(mosquitto.program("mosquitto")), "-c", str(path)], stderr=subprocess.PIPE) as process:
        try:
            deadline = time.monotonic() + 10
            while not broker.listens():
                assert process.poll() is None, process.stderr.read().decode()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with broker.listening("some/#") as subscriber:
                broker.publish("some/topic", "hello")
                assert subscriber.payloads() == [b"hello"]
        finally:
            process.kill()


@pytest.mark.skipif(shutil.which("amtool") is None, reason="not installed: prometheus-alertmanager")
def test_alertmanager_takes_its_configuration_and_is_told_by_prometheus(tmp_path: Path, shown: Any) -> None:
    path = tmp_path / "alertmanager.yml"
    path.write_text(shown["configs"]["alertmanager"]["content"])
    done = subprocess.run(["amtool", "check-config", str(path)], check=False, capture_output=True, text=True)
    prometheus = yaml.safe_load((ROOT / "deploy" / "prometheus.yaml").read_text())
    (managers,) = prometheus["alerting"]["alertmanagers"]

    assert done.returncode == 0, done.stdout + done.stderr
    assert managers["static_configs"] == [{"targets": [f"alertmanager:{ports_of(shown['services']['alertmanager'])[0][-4:]}"]}]


def test_grafana_finds_its_dashboard_and_prometheus(shown: Any) -> None:
    grafana = shown["services"]["grafana"]
    (dashboard,) = [volume.split(":")[:2] for volume in grafana["volumes"]]
    provided = {one["source"]: yaml.safe_load(shown["configs"][one["source"]]["content"]) for one in grafana["configs"]}

    assert (ROOT / "deploy" / dashboard[0]).is_file()
    assert dashboard[1] == grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert provided["dashboards"]["providers"][0]["options"] == {"path": str(Path(dashboard[1]).parent)}
    assert provided["datasources"]["datasources"][0]["url"] == "http://prometheus:9090"


def test_what_is_shown_is_open_on_loopback_only_and_has_its_files(shown: Any) -> None:
    for service in shown["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        mounted = [volume.split(":")[0] for volume in service.get("volumes", ())]
        assert all((ROOT / "deploy" / path).is_file() for path in mounted if path.startswith("."))


def has_compose() -> bool:
    docker = shutil.which("docker")
    return (
        docker is not None and subprocess.run([docker, "compose", "version"], check=False, capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not has_compose(), reason="not installed: docker compose")
@pytest.mark.parametrize("name", ["compose.yaml", "compose.test.yaml"])
def test_compose_takes_the_files(name: str) -> None:
    command = ["docker", "compose", "-f", str(ROOT / "deploy" / name), "config", "--quiet"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)

    assert done.returncode == 0, done.stderr
