"""Length of two ways through the code: files entered, moves between files, and calls of our functions.

The fewer there are, the less a reader goes back and forth. `docs/design.md` has the figures.
"""

import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Final

from kafka.net import connection as kafka_connection  # type: ignore[import-untyped]

from benchmarks.figures import Figure, Sizes
from bridge import app, logs
from bridge.cli.main import main
from bridge.journal import DeadLetter, Settlement
from bridge.simulator.server import Simulator, SimulatorSettings
from config.load import load
from config.rotation import ConfigReader
from tests.sinks.kafka.mock_kafka import MockKafka
from tests.support.journal_samples import append, event
from tests.support.journal_work import read
from tests.support.ports import free_port
from tests.support.waiting import until

_ROOT: Final = Path(__file__).parent.parent
_OURS: Final = tuple(str(_ROOT / folder) + "/" for folder in ("bridge", "config", "sinks"))
_SIMULATOR: Final = str(_ROOT / "bridge" / "simulator")


def ways(_: Sizes) -> list[Figure]:
    """Follow an event from the websocket to Kafka's acknowledgement, and the replay of one dead letter over HTTP."""
    logs.configure("auto", "error")
    with tempfile.TemporaryDirectory() as directory:
        return [
            Figure("An event, websocket to Kafka's acknowledgement: files, moves, calls", _event(Path(directory))),
            Figure("Replay of one dead letter over HTTP: files, moves, calls", _replay(Path(directory))),
        ]


@contextmanager
def _traced(calls: list[str]) -> Iterator[None]:
    """Note the file of every call of our functions, in this thread and in those that are started meanwhile."""

    def note(frame: FrameType, kind: str, _: object) -> None:
        file = frame.f_code.co_filename
        if kind == "call" and file.startswith(_OURS) and not file.startswith(_SIMULATOR):
            calls.append(file)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def _figure(calls: list[str]) -> str:
    moves = len(list(itertools.groupby(calls))) - 1
    return f"{len(set(calls))}, {moves}, {len(calls)}"


def _build(directory: Path, name: str, text: str) -> app.App:
    config = directory / f"{name}.yaml"
    config.write_text(f"{text}\njournal: {{path: {directory}/{name}.db}}\n")
    settings = load(config)
    return app.build(settings, ConfigReader(settings, lambda: settings))


def _event(directory: Path) -> str:
    calls: list[str] = []
    kafka_connection.ApiVersionsRequest.max_version = 2  # The mock cluster knows no later one.
    replay = [event(1).json.decode()]
    with MockKafka() as kafka, Simulator(SimulatorSettings(port=0, replay=replay, wait_for_clients=1)) as simulator:
        kafka.create_topic("events")
        sink = f'{{type: kafka, bootstrap_servers: "{kafka.address}", topic: events, start_at: earliest}}'
        built = _build(
            directory, "event", f'streams: {{acme: {{url: "{simulator.url}"}}}}\nsinks: {{out: {sink}}}\nhttp: {{listen: off}}'
        )
        (forwarder,), (stream,) = built.supervisor.running().forwarders, built.supervisor.running().streams
        with closing(built.journal):
            forwarder.step()
            with _traced(calls):
                thread = threading.Thread(target=stream.step)
                thread.start()
            until(lambda: built.journal.counters().sinks["out"].pending == 1)
            time.sleep(0.1)  # The append returns to the stream.
            with _traced(calls):
                forwarder.step()
            assert built.journal.counters().sinks["out"].delivered == 1
            stream.stop()
            thread.join()
            forwarder.close()
    return _figure(calls)


def _replay(directory: Path) -> str:
    calls: list[str] = []
    port = free_port()
    streams, sinks = "{acme: {url: 'ws://127.0.0.1:1'}}", "{alerts: {type: stdout}}"
    text = f"streams: {streams}\nsinks: {sinks}\nhttp: {{listen: '127.0.0.1:{port}'}}"
    built = _build(directory, "replay", text)
    server = app.serve(load(directory / "replay.yaml"), built)
    assert server
    with closing(built.journal), closing(server):
        append(built.journal, [event(1)])
        (entry,) = read(built.journal, "alerts", 1, 1 << 20, 0.0)
        now = time.time()
        dead = DeadLetter(entry.seq, entry.received, entry.json, "x", 1, now, now, "rejected", "no")
        built.journal.settle("alerts", Settlement(entry.seq, entry.seq + 1, dead=[dead]))
        arguments = ["dead-letters", "replay", "--sink", "alerts", "--config", str(directory / "replay.yaml")]
        with redirect_stdout(StringIO()), _traced(calls):
            assert main(arguments) == 0
    return _figure(calls)
