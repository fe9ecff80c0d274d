import contextlib
import itertools
import json
import select
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import websocket
import websockets.sync.client

from bridge.frames import FrameReader
from bridge.simulator.server import Simulator
from bridge.simulator.traffic import generate
from tests.support.simulation import BASIC, PATH, client, everything, read_events, read_to_the_end, settings, simulator
from tests.support.waiting import until


class OriginalEvents:
    """What `dockercloud.Events` of python-dockercloud 1.0.12 does, in its own words, except that it can be stopped."""

    def __init__(self, host: str, namespace: str, authorization: str) -> None:
        self.url = f"{host}/api/audit/v1/{namespace}/events" if namespace else f"{host}/api/audit/v1/events"
        self.header = [f"Authorization: {authorization}", "User-Agent: python-dockercloud/1.0.12"]
        self.received: list[str] = []
        self.errors: list[Exception] = []
        self.opened = threading.Event()
        self.pongs = 0
        self.auth_error = False
        self.ws: websocket.WebSocketApp | None = None

    def _on_message(self, _: websocket.WebSocketApp, text: str) -> None:
        try:
            event = json.loads(text)
        except ValueError:
            return
        if event.get("type") == "auth":
            return
        self.received.append(text)

    def _on_error(self, _: websocket.WebSocketApp, error: Exception) -> None:
        if isinstance(error, websocket.WebSocketBadStatusException) and error.status_code == 401:
            self.auth_error = True
        self.errors.append(error)

    def _on_pong(self, *_: object) -> None:
        self.pongs += 1

    def run_once(self, ping_interval: float = 10, ping_timeout: float = 5) -> None:
        self.ws = websocket.WebSocketApp(
            self.url,
            header=self.header,
            on_open=lambda _: self.opened.set(),
            on_message=self._on_message,
            on_error=self._on_error,
            on_pong=self._on_pong,
        )
        self.ws.run_forever(ping_interval=ping_interval, ping_timeout=ping_timeout)


@pytest.mark.parametrize("namespace", ["", "acme"])
@pytest.mark.parametrize("authorization", [BASIC, "TutumAccessKey secret", "ApiKey bob:secret"])
def test_the_original_python_client_works_unchanged(namespace: str, authorization: str) -> None:
    with simulator(username="bob", api_key="secret", count=100, wait_for_clients=1) as running:
        events = OriginalEvents(running.url, namespace, authorization)
        thread = threading.Thread(target=events.run_once)
        thread.start()
        until(lambda: len(events.received) == 100)
        running.stop()
        thread.join(10)

        assert not thread.is_alive()
        assert [json.loads(text)["uuid"] for text in events.received] == running.sent_uuids()
        assert running.requests[0][0] == (f"/api/audit/v1/{namespace}/events" if namespace else PATH)


def test_the_original_python_client_recognises_wrong_credentials() -> None:
    with simulator(username="bob", api_key="secret") as running:
        events = OriginalEvents(running.url, "", "Basic Ym9iOndyb25n")
        events.run_once()

        assert events.auth_error
        assert not events.opened.is_set()


def test_the_original_python_clients_keepalive_is_satisfied() -> None:
    with simulator(count=0) as running:
        events = OriginalEvents(running.url, "", BASIC)
        thread = threading.Thread(target=events.run_once, args=(0.2, 0.15))
        thread.start()
        until(lambda: events.pongs >= 3)
        running.stop()
        thread.join(10)

        assert not [error for error in events.errors if isinstance(error, websocket.WebSocketTimeoutException)]


def test_the_original_python_client_gives_a_silent_service_up() -> None:
    with simulator(silence_after=0) as running:
        events = OriginalEvents(running.url, "", BASIC)
        events.run_once(0.2, 0.1)

        assert events.opened.is_set()
        assert [str(error) for error in events.errors] == ["ping/pong timed out"]


def test_an_independent_client_gets_every_event_and_an_answer_to_its_ping() -> None:
    with simulator(count=1000, wait_for_clients=1) as running, websockets.sync.client.connect(running.url + PATH) as connection:
        uuids = [json.loads(connection.recv(timeout=10))["uuid"] for _ in range(1000)]

        assert connection.ping().wait(10)
        assert uuids == running.sent_uuids()


def test_an_event_looks_like_that_of_the_documentation() -> None:
    with simulator(username="user_namespace") as running, client(running) as connection:
        before = datetime.now(UTC).replace(microsecond=0)
        text = connection.recv()
        event = json.loads(text)

    assert list(event) == ["type", "action", "parents", "resource_uri", "state", "uuid", "datetime"]
    assert before <= datetime.strptime(event["datetime"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC) <= datetime.now(UTC)
    assert "/user_namespace/" in event["resource_uri"]
    assert isinstance(text, str)
    assert " " not in text.replace("Not running", "").replace("Not Running", "")


def matching(events: list[dict[str, Any]], condition: Callable[[dict[str, Any]], object]) -> list[str]:
    return [event["uuid"] for event in events if condition(event)]


def story(count: int = 1000) -> list[dict[str, Any]]:
    """The events that a simulator with the settings of these tests tells at full speed."""
    return [json.loads(line) for _, line in itertools.islice(generate("acme", 1, lambda: b""), count)]


STORY = story()
STACK = next(event["parents"][0] for event in STORY if event["type"] == "service")
NODE = next(event["parents"][1] for event in STORY if event["type"] == "container")
CONTAINER = next(event["resource_uri"] for event in STORY if event["type"] == "container")


@pytest.mark.parametrize(
    ("query", "condition"),
    [
        ("type=container", lambda e: e["type"] == "container"),
        ("type=container,node", lambda e: e["type"] in ("container", "node")),
        ("type=container&type=node", lambda e: e["type"] in ("container", "node")),
        (urlencode({"object": CONTAINER}), lambda e: e["resource_uri"] == CONTAINER),
        (urlencode({"object": f"{CONTAINER},{STACK}"}), lambda e: e["resource_uri"] in (CONTAINER, STACK)),
        (urlencode({"parent": STACK}), lambda e: STACK in e["parents"]),
        (urlencode({"parents": STACK}), lambda e: STACK in e["parents"]),
        (urlencode({"parent": STACK, "parents": NODE}), lambda e: STACK in e["parents"] or NODE in e["parents"]),
        (urlencode({"parents": f"{STACK},{NODE}"}), lambda e: STACK in e["parents"] or NODE in e["parents"]),
        (urlencode({"type": "action", "parent": CONTAINER}), lambda e: e["type"] == "action" and CONTAINER in e["parents"]),
        (
            urlencode({"object": CONTAINER, "parents": f"{NODE},{STACK}", "type": "container,action"}),
            lambda e: e["resource_uri"] == CONTAINER and {STACK, NODE} & set(e["parents"]),
        ),
        ("type=container&object=/api/app/v1/acme/stack/none/", lambda _: False),
        ("object=&parents=&type=node", lambda e: e["type"] == "node"),
        ("unknown=1", lambda _: True),
    ],
)
def test_filters_are_or_within_one_parameter_and_and_between_them(
    query: str, condition: Callable[[dict[str, Any]], object]
) -> None:
    with (
        simulator(count=len(STORY), wait_for_clients=2) as running,
        client(running, "/api/audit/v1/acme/events") as unfiltered,
        client(running, f"/api/audit/v1/acme/events?{query}") as filtered,
    ):
        everybody, some = everything(running, unfiltered, filtered)

    assert [event["uuid"] for event in everybody] == [event["uuid"] for event in STORY]
    assert [event["uuid"] for event in some] == matching(everybody, condition)


def test_only_what_somebody_heard_counts_as_sent() -> None:
    with (
        simulator(count=len(STORY), wait_for_clients=1) as running,
        client(running, "/api/audit/v1/acme/events?type=node") as connection,
    ):
        [received] = everything(running, connection)

        assert (running.generated, running.sent) == (len(STORY), len(received))
        assert running.sent_uuids() == [event["uuid"] for event in received]


def test_with_nobody_listening_events_are_gone() -> None:
    with simulator(rate=2000) as running:
        until(lambda: running.generated >= 20)
        with client(running) as connection:
            first = read_events(connection, 1)[0]["uuid"]

            # What is received is counted a moment later.
            until(lambda: running.generated > running.sent > 0)
            assert running.sent_uuids()[0] == first


def test_at_full_speed_nothing_is_made_while_nobody_listens() -> None:
    with simulator(count=1000, silence_after=0) as running, contextlib.ExitStack() as silent_clients:
        opened: list[websocket.WebSocket] = []
        for _ in range(3):
            opened.append(silent_clients.enter_context(client(running)))
            until(lambda: running.connections == len(opened))
            # Whom it does not talk to does not listen; each new client shows that the loop went on meanwhile.
            assert running.generated == 0
        running.change(silence_after=None)
        with client(running) as connection:
            assert len(read_events(connection, 1000)) == 1000
        assert running.finished.wait(10)

        assert running.generated == running.sent == 1000


def test_events_begin_when_enough_clients_wait() -> None:
    with simulator(wait_for_clients=2) as running, client(running) as first:
        first.ping()
        opcode, _ = first.recv_data_frame(control_frame=True)

        assert (opcode, running.generated) == (websocket.ABNF.OPCODE_PONG, 0)
        with client(running) as second:
            assert read_events(first, 5) == read_events(second, 5)


def test_after_the_last_event_connections_stay_open() -> None:
    with simulator(count=10) as running, client(running) as connection:
        assert len(read_events(connection, 10)) == 10
        assert running.finished.wait(10)
        connection.ping("still")
        opcode, frame = connection.recv_data_frame(control_frame=True)

        assert (opcode, frame.data) == (websocket.ABNF.OPCODE_PONG, b"still")


def test_the_rate_is_kept() -> None:
    with simulator(rate=500, count=100, wait_for_clients=1) as running:
        before = time.monotonic()
        with client(running) as connection:
            read_events(connection, 100)

        assert time.monotonic() - before >= 0.19


def test_all_clients_hear_the_same() -> None:
    with simulator(count=1000, wait_for_clients=3) as running, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(client(running)) for _ in range(3)]
        first, *others = everything(running, *connections)

        assert len(first) == 1000
        assert others == [first, first]
        assert running.sent == 1000


REPLAY = [
    '{"type": "container", "resource_uri": "/api/app/v1/acme/container/1/", "uuid": "1"}',
    "",
    '{"state":"Starting","parents":["/api/v1/service/2/"],"resource_uri":"/api/v1/container/2/","type":"container"}',
    ' {"type":"node","resource_uri":"/api/infra/v1/other/node/3/","uuid":7,"new":"\u00e4"} ',
]


@pytest.mark.parametrize(("namespace", "expected"), [("", [0, 2, 3]), ("acme", [0, 2]), ("other", [2, 3]), ("else", [2])])
def test_a_replay_is_sent_once_and_byte_by_byte_to_whom_it_concerns(
    tmp_path: Path, namespace: str, expected: list[int]
) -> None:
    path = tmp_path / "captured.jsonl"
    path.write_text("\n".join(REPLAY) + "\n", encoding="utf-8")
    for replay in (REPLAY, path):
        with (
            simulator(replay=replay, wait_for_clients=1) as running,
            client(running, f"/api/audit/v1/{namespace}/events" if namespace else PATH) as connection,
        ):
            assert running.finished.wait(10)
            running.disconnect_all()

            assert read_to_the_end(connection)[0] == [REPLAY[line].strip() for line in expected]


def test_a_replay_is_filtered_whatever_its_events_look_like() -> None:
    replay = ['{"type":["x"],"parents":7}', '{"type":"node","parents":["/p/"]}', '{"type":"node","parents":[{}]}', "{}"]
    with simulator(replay=replay, wait_for_clients=1) as running, client(running, PATH + "?type=node&parent=/p/") as connection:
        assert everything(running, connection) == [[{"type": "node", "parents": ["/p/"]}]]


def test_a_replay_ends_at_the_count_if_that_comes_first() -> None:
    with (
        simulator(replay=['{"type":"a"}', '{"type":"b"}'], count=1, wait_for_clients=1) as running,
        client(running) as connection,
    ):
        assert everything(running, connection) == [[{"type": "a"}]]


def test_a_file_to_replay_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
        Simulator(settings(replay=tmp_path / "missing.jsonl"))


class BulkReader:
    """Reads faster than a client library, and can tell that there is nothing to read."""

    def __init__(self, connection: websocket.WebSocket) -> None:
        assert connection.sock
        self._socket = connection.sock
        self._reader = FrameReader(1 << 20)
        self.uuids: list[str] = []

    def read(self, seconds: float) -> bool:
        """Wait so long for more, and tell whether something came."""
        readable, _, _ = select.select([self._socket], [], [], seconds)
        if readable:
            taken = self._reader.feed(self._socket.recv(1 << 18))
            self.uuids += [json.loads(text)["uuid"] for text in taken.messages]
        return bool(readable)


def test_with_a_rate_a_slow_client_is_disconnected_and_the_others_miss_nothing() -> None:
    with simulator(rate=50_000, wait_for_clients=2) as running, client(running) as quick, client(running):
        until(lambda: running.connections == 2)
        reader = BulkReader(quick)
        while running.connections == 2:
            reader.read(0.1)
        running.change(count=0)
        while not running.finished.is_set() or len(reader.uuids) < running.sent:
            reader.read(0.1)

        assert running.connections == 1
        assert reader.uuids == running.sent_uuids()


def test_at_full_speed_the_slowest_sets_the_pace_until_it_is_given_up() -> None:
    with simulator(send_timeout=2, wait_for_clients=2) as running, client(running) as quick, client(running):
        until(lambda: running.connections == 2)
        reader = BulkReader(quick)
        while reader.read(0.3):
            assert running.connections == 2

        assert running.connections == 2
        assert len(reader.uuids) == running.generated
        until(lambda: running.connections == 1)
        assert reader.read(10)


def test_stopping_ends_connections_in_order_and_starting_goes_on_with_the_story() -> None:
    running = Simulator(settings(rate=2000))
    uuids: list[str] = []
    ports = set()
    for _ in range(2):
        running.start()
        ports.add(running.port)
        with client(running) as connection:
            uuids += [event["uuid"] for event in read_events(connection, 10)]
            stopping = threading.Thread(target=running.stop)
            stopping.start()
            rest, code = read_to_the_end(connection)
            stopping.join(10)
        uuids += [json.loads(text)["uuid"] for text in rest]

        assert code == 1001
        assert running.connections == 0
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", running.port))
        running.stop()

    assert len(ports) == 1
    assert uuids == running.sent_uuids()
    assert len(set(uuids)) == len(uuids)


def test_a_client_that_never_reads_does_not_keep_it_from_stopping() -> None:
    with simulator(wait_for_clients=1) as running, client(running):
        until(lambda: running.sent > 10_000)
        running.stop()

        assert running.connections == 0


def test_a_stranger_who_says_nothing_does_not_keep_it_from_stopping() -> None:
    with simulator() as running, socket.create_connection(("127.0.0.1", running.port)):
        with client(running):  # The stranger was accepted before.
            until(lambda: running.connections == 1)
        before = time.monotonic()
        running.stop()

        assert time.monotonic() - before < 5


def test_something_that_is_no_request_harms_nobody() -> None:
    with simulator() as running, socket.create_connection(("127.0.0.1", running.port)) as stranger:
        stranger.sendall(b"\x16\x03\x01\x02\x00\r\n\r\n")
        while stranger.recv(1000):
            pass
        with client(running) as connection:
            assert read_events(connection, 1)


def test_a_client_that_leaves_without_a_word_is_noticed() -> None:
    with simulator(rate=1000) as running:
        with client(running):
            until(lambda: running.connections == 1)
        until(lambda: running.connections == 0)


def test_a_port_in_use_is_named() -> None:
    with (
        simulator() as running,
        pytest.raises(OSError, match=rf"can't listen on 127\.0\.0\.1:{running.port}: Address already in use"),
    ):
        Simulator(settings(port=running.port)).start()


def test_it_listens_on_ipv6_too() -> None:
    if not socket.has_ipv6:
        pytest.skip("there is no IPv6 here")
    try:
        running = Simulator(settings(host="::1"))
        running.start()
    except OSError as error:
        pytest.skip(f"there is no IPv6 here: {error}")
    try:
        with client(running) as connection:
            assert running.url == f"ws://[::1]:{running.port}"
            assert read_events(connection, 1)
    finally:
        running.stop()
