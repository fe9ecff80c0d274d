"""The summary of a test run, read off runs of pytest in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARALLEL = ["-n", "2", "--dist", "loadfile"]
TESTS = """
import pytest
{imports}

@pytest.mark.skipif(True, reason="not installed: a broker")
@pytest.mark.parametrize("number", range(3))
def test_with_a_broker(number): ...

def test_with_a_network():
    pytest.skip("no IPv6 here")

def test_of_itself(): ...
"""


def summary(folder: Path, *options: str, imports: str = "", **variables: str) -> list[str]:
    """Return the lines after the tests of a run with some skipped tests."""
    (folder / "test_some.py").write_text(TESTS.format(imports=imports))
    (folder / "test_other.py").write_text('import pytest\npytest.skip("not installed: a broker", allow_module_level=True)\n')
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-W", "ignore", "-c", os.devnull, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | variables
    done = subprocess.run(
        [*command, "--rootdir", str(folder), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.strip("= ") for line in done.stdout.partition("[100%]")[2].splitlines()][1:]


@pytest.mark.parametrize("options", [[], PARALLEL], ids=["one process", "workers"])
def test_what_did_not_run_is_listed_by_reason_with_counts(tmp_path: Path, options: list[str]) -> None:
    assert summary(tmp_path, *options)[:-1] == [
        "5 tests did not run",
        "4 not installed: a broker: test_other.py (1), test_some.py (3)",
        "1 no IPv6 here: test_some.py (1)",
    ]


@pytest.mark.parametrize("options", [[], PARALLEL], ids=["one process", "workers"])
def test_it_says_on_what_the_tests_of_brokers_ran(tmp_path: Path, options: list[str]) -> None:
    def lines_of(**variables: str) -> list[str]:
        return summary(
            tmp_path,
            *options,
            imports="import tests.support.servers.kafka_broker, tests.support.servers.mosquitto",
            **variables,
        )

    given = lines_of(EVENT_BRIDGE_TEST_KAFKA="kafka:9092", EVENT_BRIDGE_TEST_MQTT="broker:1883")
    own = lines_of(EVENT_BRIDGE_TEST_KAFKA="", EVENT_BRIDGE_TEST_MQTT="")
    nowhere = lines_of(EVENT_BRIDGE_TEST_KAFKA="", EVENT_BRIDGE_TEST_MQTT="", PATH=str(tmp_path))

    assert given[0].startswith("Kafka tests run on: the broker of EVENT_BRIDGE_TEST_KAFKA at kafka:9092")
    assert given[1].startswith("MQTT tests run on: the broker of EVENT_BRIDGE_TEST_MQTT at broker:1883")
    for lines in (own, nowhere):
        assert lines[0].startswith("Kafka tests run on: ")
        assert "EVENT_BRIDGE_TEST" not in lines[0] + lines[1]
    assert "mock cluster" in nowhere[0]
    assert nowhere[1].startswith("MQTT tests run on: no broker of our own, not installed: ")
