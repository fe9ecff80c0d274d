"""The journal's bounds, as an operator sees them: a small volume, a flood, sinks that reject or are away, and commands."""

import json
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from tests.e2e.harness import Bridge, Receiver, assert_books_balance, command, repeated, value
from tests.support.waiting import until

MEBIBYTE = 1 << 20
SIZE = 20_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A volume of 120 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def flood() -> Iterator[tuple[str, Callable[[int], None]]]:
    """A server that sends large events as fast as they are taken, and one that sets up to which number."""
    most, sent, ended = [0], [0], threading.Event()

    def send(connection: ServerConnection) -> None:
        try:
            while not ended.wait(0.05):
                for number in range(sent[0], most[0]):
                    connection.send(
                        f'{{"type":"container","action":"update","state":"{"x" * SIZE}","parents":[],'
                        f'"resource_uri":"/api/app/v1/acme/container/{number % 97}/",'
                        f'"uuid":"00000000-0000-4000-8000-{number:012d}","datetime":"2026-11-23T00:00:00Z"}}'
                    )
                    sent[0] = number + 1
        except ConnectionClosed:
            return

    def set_most(number: int) -> None:
        most[0] = number

    with serve(send, "127.0.0.1", 0, compression=None) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}", set_most
        ended.set()
        server.shutdown()


def settings(url: str, journal: Path, sinks: dict[str, str], **options: Any) -> dict[str, Any]:
    backoff = {"first": "50ms", "max": "200ms"}
    hooks = {name: {"type": "webhook", "url": url, "backoff": backoff} for name, url in sinks.items()}
    return {
        "journal": {"path": str(journal), **options},
        "streams": {"acme": {"url": url, "backoff": backoff}},
        "sinks": hooks,
    }


def taken(journal: Path) -> int:
    return sum(file.stat().st_size for file in journal.parent.glob(f"{journal.name}*"))


FULL = "dead_letters_full"


def reasons(bridge: Bridge) -> dict[str, str]:
    """Why those wait that reject events."""
    sinks = bridge.status()["sinks"]
    return {name: sinks[name]["reason"] for name in ("bad", "worse")}


def refuse(events: list[dict[str, Any]]) -> tuple[int, dict[str, str]]:
    """Take every fourth event only."""
    return (200 if int(events[0]["uuid"][-12:]) % 4 == 0 else 400), {}


@pytest.mark.timeout(180)
def test_sinks_that_reject_while_another_is_away_fill_nothing_and_all_goes_on(
    disk: Path, tmp_path: Path, flood: tuple[str, Callable[[int], None]]
) -> None:
    (url, send), journal, most = flood, disk / "journal.db", 60 * MEBIBYTE
    with Receiver() as bad, Receiver() as worse, Receiver() as away:
        bad.answer = worse.answer = refuse
        away.stop()
        sinks = {"bad": bad.url, "worse": worse.url, "away": away.url}
        with Bridge(tmp_path / "run", settings(url, journal, sinks, max_bytes=most)) as bridge:
            send(6000)
            until(lambda: "full, journal.max_bytes is" in bridge.get("/readyz")[1], "it is full, and says so")
            until(lambda: reasons(bridge) == {"bad": FULL, "worse": FULL}, "they say why they wait")
            assert taken(journal) <= most
            away.start()
            until(
                lambda: bridge.status()["sinks"]["away"]["pending"] == 0, "the one that came back has taken all that is there"
            )
            assert taken(journal) <= most
            assert away.count() > 1000
            bad.answer = worse.answer = lambda _: (200, {})
            # What is dropped makes room for what waits; the rest is delivered.
            done = command("dead-letters", "drop", "--all", "--yes", cwd=tmp_path / "run", seconds=60)
            assert done.returncode == 0, done.stderr
            until(lambda: value(bridge.metrics(), "events_accepted_total") == 6000, "the stream goes on", 60)
            until(lambda: bridge.pending() == 0, "everything is delivered", 60)
            assert taken(journal) <= most
            until(lambda: bridge.get("/readyz")[0] == 200, "it is ready")
            metrics = bridge.metrics()
            assert_books_balance(metrics)
            assert bridge.stop() == 0
    assert value(metrics, "sink_events_delivered_total", sink="away") == 6000
    for sink, receiver in (("bad", bad), ("worse", worse), ("away", away)):
        assert value(metrics, "sink_events_delivered_total", sink=sink) == receiver.count()
        assert repeated(receiver.events()) == set()
    log = [json.loads(line) for line in bridge.log.read_text().splitlines()]
    assert sum(line["event"].startswith("the journal is in trouble") for line in log if "event" in line) < 20


@pytest.mark.timeout(120)
def test_a_constant_overflow_counts_exactly_what_arrives(tmp_path: Path, flood: tuple[str, Callable[[int], None]]) -> None:
    (url, send), journal = flood, tmp_path / "run" / "journal.db"
    with Receiver() as slow:
        options = {"max_bytes": 16 * MEBIBYTE, "when_full": "drop_oldest"}
        with Bridge(tmp_path / "run", settings(url, journal, {"slow": slow.url}, **options)) as bridge:
            slow.hang.set()
            send(10_000)
            until(lambda: value(bridge.metrics(), "sink_events_dropped_total", sink="slow") > 0, "the oldest are dropped")
            slow.hang.clear()
            until(lambda: value(bridge.metrics(), "events_accepted_total") == 10_000, "all are heard", 60)
            until(lambda: bridge.pending() == 0, "everything is delivered or dropped", 60)
            metrics = bridge.metrics()
            assert_books_balance(metrics)
            assert bridge.stop() == 0
        arrived = slow.events()
    assert value(metrics, "sink_events_delivered_total", sink="slow") == len(arrived)
    assert value(metrics, "sink_events_dropped_total", sink="slow") == 10_000 - len(arrived)
    assert repeated(arrived) == set()


@pytest.mark.timeout(120)
def test_a_backup_that_does_not_end_is_named_and_bounded(tmp_path: Path, flood: tuple[str, Callable[[int], None]]) -> None:
    (url, send), journal = flood, tmp_path / "run" / "journal.db"
    with (
        Receiver() as hook,
        Bridge(tmp_path / "run", settings(url, journal, {"hook": hook.url}, max_bytes=16 * MEBIBYTE)) as bridge,
    ):
        with closing(sqlite3.connect(journal, isolation_level=None)) as backup:
            backup.execute("BEGIN")
            backup.execute("SELECT * FROM meta").fetchone()
            send(2000)
            until(lambda: "a backup, a sqlite3 shell" in bridge.get("/readyz")[1], "it is named")
            assert taken(journal) <= 16 * MEBIBYTE
        until(lambda: value(bridge.metrics(), "events_accepted_total") == 2000, "it goes on when the backup has ended", 60)
        until(lambda: bridge.pending() == 0, "everything is delivered", 60)
        until(lambda: bridge.get("/readyz")[0] == 200, "it is ready")
        assert taken(journal) <= 16 * MEBIBYTE
        assert bridge.stop() == 0
    assert hook.count() == 2000
