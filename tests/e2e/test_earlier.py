"""A journal and a configuration written before the modules were moved and renamed (commit d2f5256) still work."""

import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.e2e.harness import Bridge, assert_books_balance, command, uuids, value
from tests.support.waiting import until

EARLIER = Path(__file__).parent.parent / "fixtures" / "earlier"
"""`journal.sql` holds six events. The sink `alerts` has one of them, two wait for a retry, one is a dead letter, two
are new. The sink `log` has three. `bridge.yaml` is the example configuration with its `state_topic` set.
"""


def uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal.db"
    db = sqlite3.connect(path)
    db.executescript((EARLIER / "journal.sql").read_text())
    db.execute("PRAGMA user_version=2")
    db.close()
    return path


def succeed(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    done = command(*arguments, cwd=cwd, seconds=60, **variables)
    assert done.returncode == 0, done.stderr
    return done


def test_an_earlier_journal_is_read_by_every_succeed(journal: Path) -> None:
    def lines(*arguments: str) -> list[dict[str, object]]:
        done = succeed(*arguments, "--journal", str(journal), cwd=journal.parent)
        return [json.loads(line) for line in done.stdout.splitlines()]

    assert "6 events" in succeed("journal", "verify", "--journal", str(journal), cwd=journal.parent).stdout
    assert uuids(lines("journal", "export")) == [uuid(number) for number in range(1, 7)]
    (letter,) = lines("dead-letters", "list", "--json")
    assert (letter["id"], letter["sink"], letter["reason"], letter["error"]) == (2, "alerts", "rejected", "400: no")
    (message,) = lines("quarantine", "list", "--json")
    assert (message["stream"], message["reason"]) == ("acme", "not_json")


def test_a_bridge_goes_on_with_an_earlier_journal(journal: Path) -> None:
    settings = {
        "streams": {"acme": {"url": "ws://127.0.0.1:1"}},
        "sinks": {"alerts": {"type": "stdout"}, "log": {"type": "stdout", "match": {"resource_uri": "*/nothing/*"}}},
    }
    with Bridge(journal.parent, settings) as bridge:
        until(lambda: bridge.pending() == 0, "everything is delivered")
        metrics = bridge.metrics()
        assert bridge.stop() == 0

    assert sorted(uuids(bridge.lines())) == [uuid(number) for number in (1, 2, 5, 6)]
    assert_books_balance(metrics)
    assert value(metrics, "events_received_total", stream="acme") == 7
    assert value(metrics, "sink_events_delivered_total", sink="alerts") == 5
    assert value(metrics, "sink_dead_letters", sink="alerts") == 1
    assert value(metrics, "sink_events_filtered_total", sink="log") == 4


def test_an_earlier_configuration_is_accepted_and_a_renamed_field_is_named(tmp_path: Path) -> None:
    done = succeed(
        "check",
        "--config",
        str(EARLIER / "bridge.yaml"),
        cwd=tmp_path,
        BRIDGE_STREAMS__ACME__USERNAME="me",
        BRIDGE_STREAMS__ACME__API_KEY="key",
    )

    assert "{resource_uuid}" in done.stdout + done.stderr
