import contextlib
import json
import select
from collections import Counter

import pytest
import websocket
import websockets.sync.client

from bridge import frames
from bridge.event import Malformed, Reception, normalize
from tests.support.simulation import (
    BASIC,
    ERROR_FRAME,
    NOW,
    PATH,
    UPGRADE,
    client,
    everything,
    read_events,
    read_to_the_end,
    simulator,
    status_of,
)
from tests.support.waiting import until


def test_pings_are_answered_with_their_payload() -> None:
    with simulator(count=0) as running, client(running) as connection:
        connection.ping("are you there")
        opcode, frame = connection.recv_data_frame(control_frame=True)

    assert (opcode, frame.data) == (websocket.ABNF.OPCODE_PONG, b"are you there")


def test_a_close_frame_is_answered_with_its_code() -> None:
    with simulator(count=0) as running, client(running) as connection:
        connection.send_close(4001)

        assert read_to_the_end(connection) == ([], 4001)
        until(lambda: running.connections == 0)


def test_a_frame_that_is_not_masked_ends_the_connection() -> None:
    with simulator(count=0) as running, client(running) as connection:
        assert connection.sock
        connection.sock.sendall(frames.encode(frames.TEXT, b"hello"))

        assert read_to_the_end(connection) == ([], 1002)


def test_duplicates_come_later_and_every_event_comes() -> None:
    with simulator(duplicates=1, count=300, wait_for_clients=1) as running, client(running) as connection:
        [received] = everything(running, connection)
        uuids = [event["uuid"] for event in received]

        assert Counter(uuids) == dict.fromkeys(running.sent_uuids(), 2)
        assert running.sent == 300
        assert min(uuids.index(uuid, uuids.index(uuid) + 1) - uuids.index(uuid) for uuid in uuids) >= 50


def test_a_share_of_duplicates_is_about_that_share() -> None:
    with simulator(duplicates=0.1, count=5000, wait_for_clients=1) as running, client(running) as connection:
        [received] = everything(running, connection)

    assert len({event["uuid"] for event in received}) == 5000
    assert 5400 < len(received) < 5600


def test_malformed_messages_are_recognised_as_such_and_lose_no_event() -> None:
    with (
        simulator(malformed=0.5, count=500, wait_for_clients=1) as running,
        client(running, PATH + "?type=node,service") as connection,
    ):
        assert running.finished.wait(10)
        running.disconnect_all()
        received, _ = read_to_the_end(connection)
        normalized = [normalize(text.encode(), Reception.at("", NOW), 100_000) for text in received]

        assert {found.reason for found in normalized if isinstance(found, Malformed)} == {"not_json", "not_object", "bad_field"}
        assert sum(not isinstance(found, Malformed) for found in normalized) == running.sent > 0


def test_fragmented_events_arrive_whole_in_both_clients() -> None:
    with (
        simulator(fragmented=1, count=200, wait_for_clients=2) as running,
        client(running) as first,
        websockets.sync.client.connect(running.url + PATH) as second,
    ):
        uuids = [event["uuid"] for event in read_events(first, 200)]

        assert uuids == [json.loads(second.recv(timeout=10))["uuid"] for _ in range(200)]
        assert uuids == running.sent_uuids()


def test_connections_are_ended_at_their_age_by_turns_with_and_without_a_close_frame() -> None:
    with simulator(rate=1000, disconnect_every=0.1) as running:
        received: list[str] = []
        codes = []
        for _ in range(4):
            with client(running) as connection:
                events, code = read_to_the_end(connection)
            received += [json.loads(text)["uuid"] for text in events]
            codes.append(code)

        assert codes == [1001, None, 1001, None]
        assert received == running.sent_uuids()
        assert running.handshakes == 4


@pytest.mark.parametrize("code", [1001, 1011, None])
def test_all_clients_are_disconnected_at_once_and_lose_nothing(code: int | None) -> None:
    with simulator(rate=20_000, wait_for_clients=2) as running, client(running) as first, client(running) as second:
        until(lambda: running.sent > 1000)
        running.disconnect_all(code)
        ends = [read_to_the_end(connection) for connection in (first, second)]
        until(lambda: running.connections == 0)

        assert [end for _, end in ends] == [code, code]
        assert all([json.loads(text)["uuid"] for text in received] == running.sent_uuids() for received, _ in ends)


def test_a_silent_simulator_accepts_and_answers_nothing() -> None:
    with simulator(silence_after=0) as running, client(running) as silent:
        until(lambda: running.connections == 1)
        silent.ping("anybody there")
        running.change(silence_after=None, count=0)
        with client(running) as other:
            # One loop serves both: once it answers here, it has read what was sent there before.
            other.ping()
            assert other.recv_data_frame(control_frame=True)[0] == websocket.ABNF.OPCODE_PONG

        assert running.sent == 0
        assert silent.sock
        assert select.select([silent.sock], [], [], 0) == ([], [], [])


def test_a_connection_falls_silent_at_its_age() -> None:
    with simulator(rate=1000, silence_after=0.2) as running, client(running) as connection:
        connection.settimeout(1)
        received = []
        with contextlib.suppress(websocket.WebSocketTimeoutException):
            while True:
                received.append(json.loads(connection.recv())["uuid"])
        connection.ping()
        with pytest.raises(websocket.WebSocketTimeoutException):
            connection.recv_data_frame(control_frame=True)

        assert received == running.sent_uuids()
        assert running.connections == 1


@pytest.mark.parametrize(("status", "retry_after"), [(503, 7), (429, 0), (500, None)])
def test_every_handshake_is_refused_on_purpose(status: int, retry_after: int | None) -> None:
    with simulator(refuse=status, retry_after=retry_after) as running:
        answered, headers, body = status_of(running)

        assert answered == status
        assert headers["Retry-After"] == (None if retry_after is None else str(retry_after))
        assert body["error"]
        with pytest.raises(websocket.WebSocketBadStatusException) as refused, client(running):
            pass
        assert refused.value.status_code == status
        assert running.handshakes == 2


def test_settings_change_while_it_runs() -> None:
    with simulator(refuse=503) as running:
        assert status_of(running)[0] == 503
        running.change(refuse=None, api_key="secret")
        assert status_of(running)[0] == 401
        running.change(api_key=None)
        with client(running) as connection:
            assert len(read_events(connection, 3)) == 3
        with pytest.raises(ValueError, match="rate: must be at least 0, not -1"):
            running.change(rate=-1)


def test_the_old_way_to_refuse_is_an_error_frame_after_the_upgrade() -> None:
    with simulator(error_after=0) as running, client(running) as connection:
        assert read_to_the_end(connection) == ([ERROR_FRAME], 1008)
        assert running.sent == 0


def test_the_error_frame_comes_after_what_was_sent_before() -> None:
    with simulator(rate=1000, error_after=0.1) as running, client(running) as connection:
        received, code = read_to_the_end(connection)

        assert (received.pop(), code) == (ERROR_FRAME, 1008)
        assert [json.loads(text)["uuid"] for text in received] == running.sent_uuids()


def test_credentials_expire_for_who_is_in_and_for_who_comes() -> None:
    with simulator(rate=100, username="bob", api_key="secret", credentials_expire=3600) as running:
        with client(running, header=[f"Authorization: {BASIC}"]) as connection:
            read_events(connection, 1)
            running.change(credentials_expire=0)
            received, code = read_to_the_end(connection)

        assert (received[-1], code) == (ERROR_FRAME, 1008)
        assert status_of(running, headers=UPGRADE | {"Authorization": BASIC})[0] == 401
