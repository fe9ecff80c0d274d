"""What an Engine's events become, and from where they are read again."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.event import NAMESPACE, Event, Reception, normalize
from bridge.sources.engine.events import OVERLAP, EngineEvent, Identity, Position, resume, to_event
from tests.support.engine_samples import (
    CLUSTER,
    CLUSTER_URI,
    CONTAINER,
    CONTAINER_URI,
    DAEMON,
    NANOS,
    NODE,
    NODE_URI,
    NOW,
    SERVICE_URI,
    STACK_URI,
    SWARM_LABELS,
    engine_event,
)

PLAIN = Identity(DAEMON)
MANAGER = Identity(DAEMON, NODE, CLUSTER)
DAEMON_URI = "/api/infra/v1/acme/node/f101010c-62f8-56a3-9ca7-fbdf19fb4c91/"


def mapped(raw: dict[str, Any], identity: Identity = PLAIN, namespace: str = "acme") -> dict[str, Any] | None:
    event = to_event(msgspec.convert(raw, EngineEvent), identity, namespace)
    return None if event is None else json.loads(event)


def object_uuid(key: str) -> str:
    return str(uuid5(NAMESPACE, key))


# ------------------------------------------------------------------------------------------------ mapping


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (f"container:{CONTAINER}", "36a32dc4-ca8d-59d7-afbb-f0dc32bcac96"),
        ("service:9mnpnzenvg8p8tdbtq4wvbkcz", "0f52f3c5-fb65-59d8-8b6d-5909b5889a08"),
        (f"stack:swarm:{CLUSTER}:web", "55710a04-bfa6-5f61-a37f-541ffc4930e7"),
        (f"node:{NODE}", "4939dfea-09cf-5e20-8d3d-d73902696679"),
        (f"nodecluster:{CLUSTER}", "cc4cf519-441a-5259-bf35-bb7b6bc4f6ab"),
        (f"node:daemon:{DAEMON}", "f101010c-62f8-56a3-9ca7-fbdf19fb4c91"),
        (f"event|local|{DAEMON}|container|start|{CONTAINER}|{NANOS}", "7eafcc6e-57e7-5d82-aa2a-962c16d08d6d"),
    ],
)
def test_the_published_test_vectors_hold(key: str, expected: str) -> None:
    assert object_uuid(key) == expected


def test_a_started_container_of_a_swarm_service_is_the_documented_example() -> None:
    assert mapped(engine_event(**SWARM_LABELS), MANAGER) == {
        "type": "container",
        "action": "update",
        "parents": [SERVICE_URI, NODE_URI, STACK_URI, CLUSTER_URI],
        "resource_uri": CONTAINER_URI,
        "state": "Running",
        "uuid": "7eafcc6e-57e7-5d82-aa2a-962c16d08d6d",
        "datetime": "2016-04-29T15:18:21Z",
        "container_id": CONTAINER,
        "name": "my-container",
        "image": "alpine",
        "time_nano": NANOS,
    }


@pytest.mark.parametrize(
    ("action", "cloud_action", "state"),
    [
        ("create", "create", "Starting"),
        ("start", "update", "Running"),
        ("kill", "update", "Stopping"),
        ("die", "update", "Stopped"),
        ("destroy", "delete", "Terminated"),
    ],
)
def test_what_was_done_to_a_container_becomes_its_state(action: str, cloud_action: str, state: str) -> None:
    event = mapped(engine_event(action))

    assert event is not None
    assert (event["type"], event["action"], event["state"]) == ("container", cloud_action, state)


@pytest.mark.parametrize(
    "action",
    [
        *("pause", "unpause", "stop", "restart", "oom", "attach", "rename", "resize", "top", "update", "prune"),
        *("exec_create: sh -c true", "exec_start: sh -c start", "exec_die", "health_status: healthy", ""),
    ],
)
def test_an_action_without_a_counterpart_is_left_out(action: str) -> None:
    assert mapped(engine_event(action)) is None


@pytest.mark.parametrize("kind", ["image", "network", "volume", "daemon", "service", "node", "builder"])
def test_only_containers_are_mapped(kind: str) -> None:
    assert mapped(engine_event("create", kind=kind)) is None


@pytest.mark.parametrize("signal", ["2", "3", "9", "15", "SIGTERM", "kill"])
def test_a_signal_that_stops_is_a_stopping_container(signal: str) -> None:
    event = mapped(engine_event("kill", signal=signal))

    assert event is not None
    assert (event["state"], event["signal"]) == ("Stopping", signal)


@pytest.mark.parametrize("signal", ["1", "10", "28", "SIGHUP"])
def test_a_signal_that_does_not_stop_is_left_out(signal: str) -> None:
    assert mapped(engine_event("kill", signal=signal)) is None


def test_a_kill_without_a_signal_is_one_with_the_default_signal() -> None:
    event = mapped(engine_event("kill"))

    assert event is not None
    assert event["state"] == "Stopping"
    assert "signal" not in event


@pytest.mark.parametrize(("text", "expected"), [("137", 137), ("0", 0), ("-1", -1), ("", None), ("what", None)])
def test_a_death_tells_its_exit_code_if_it_is_a_number(text: str, expected: int | None) -> None:
    event = mapped(engine_event("die", exitCode=text))

    assert event is not None
    assert event.get("exit_code") == expected


def test_only_a_death_has_an_exit_code_since_a_label_may_have_the_same_name() -> None:
    event = mapped(engine_event("start", exitCode="3"))

    assert event is not None
    assert "exit_code" not in event


def test_a_container_of_a_plain_engine_has_the_daemon_as_its_node() -> None:
    event = mapped(engine_event())

    assert event is not None
    assert event["parents"] == [DAEMON_URI]


def test_a_compose_project_is_a_stack_with_services() -> None:
    labels: dict[str, Any] = {"com.docker.compose.project": "shop", "com.docker.compose.service": "web"}
    event = mapped(engine_event(**labels))

    assert event is not None
    assert event["parents"] == [
        f"/api/app/v1/acme/service/{object_uuid(f'service:compose:{DAEMON}:shop/web')}/",
        DAEMON_URI,
        f"/api/app/v1/acme/stack/{object_uuid(f'stack:compose:{DAEMON}:shop')}/",
    ]


def test_a_worker_does_not_know_its_cluster_so_its_stacks_are_its_own() -> None:
    event = mapped(engine_event(**SWARM_LABELS), Identity(DAEMON, NODE))

    assert event is not None
    own_stack = f"/api/app/v1/acme/stack/{object_uuid(f'stack:swarm:{DAEMON}:web')}/"
    assert event["parents"] == [SERVICE_URI, NODE_URI, own_stack]


def test_a_plain_container_on_a_swarm_node_belongs_to_the_same_node_as_the_services_do() -> None:
    event = mapped(engine_event(), MANAGER)

    assert event is not None
    assert event["parents"] == [NODE_URI, CLUSTER_URI]


def test_without_a_namespace_the_uris_have_none() -> None:
    event = mapped(engine_event(), PLAIN, "")

    assert event is not None
    assert event["resource_uri"] == "/api/app/v1/container/36a32dc4-ca8d-59d7-afbb-f0dc32bcac96/"
    assert event["parents"] == ["/api/infra/v1/node/f101010c-62f8-56a3-9ca7-fbdf19fb4c91/"]


def test_an_event_of_before_api_1_22_is_mapped_too() -> None:
    event = mapped({"status": "start", "id": CONTAINER, "from": "alpine", "time": NANOS // 10**9, "timeNano": NANOS})

    assert event is not None
    assert (event["uuid"], event["image"]) == ("7eafcc6e-57e7-5d82-aa2a-962c16d08d6d", "alpine")
    assert "name" not in event


def test_an_event_without_nanoseconds_takes_its_seconds() -> None:
    raw = engine_event()
    del raw["timeNano"]
    event = mapped(raw)

    assert event is not None
    assert (event["datetime"], event["time_nano"]) == ("2016-04-29T15:18:21Z", 1461943101 * 10**9)


def test_an_event_without_an_actor_is_left_out() -> None:
    raw = engine_event("create")
    raw["Actor"] = {"ID": "", "Attributes": None}

    assert mapped(raw) is None


def test_the_same_event_has_the_same_uuid_and_another_daemon_s_has_another() -> None:
    first, again, other = (mapped(engine_event(), Identity(daemon)) for daemon in (DAEMON, DAEMON, "other"))

    assert first == again
    assert first is not None
    assert other is not None
    assert first["uuid"] != other["uuid"]


def test_what_comes_out_is_canonical_so_that_normalize_keeps_its_bytes() -> None:
    reception = Reception.at("acme", datetime(2026, 11, 23, 17, tzinfo=UTC))
    event = to_event(msgspec.convert(engine_event(), EngineEvent), PLAIN, "acme")
    assert event is not None
    normalized = normalize(event, reception, 1_000_000)

    assert isinstance(normalized, Event)
    assert normalized.key == UUID("7eafcc6e-57e7-5d82-aa2a-962c16d08d6d").bytes
    assert normalized.json.startswith(event[:-1])
    assert normalized.dated


# ----------------------------------------------------------------------------------------------- resuming


def test_the_first_session_begins_now() -> None:
    assert resume(None, NOW) == (NOW, Position(NOW, seen=False))


def test_a_session_resumes_a_little_before_the_last_event() -> None:
    position = Position(NOW - 5 * 10**9, seen=True)

    assert resume(position, NOW) == (NOW - 5 * 10**9 - OVERLAP, position)


def test_a_session_before_which_nothing_was_seen_resumes_where_the_first_one_began() -> None:
    position = Position(NOW - 5 * 10**9, seen=False)

    assert resume(position, NOW) == (NOW - 5 * 10**9, position)


def test_a_clock_that_was_set_back_behind_the_position_means_reading_everything() -> None:
    assert resume(Position(NOW + 3600 * 10**9, seen=True), NOW) == (0, Position(0, seen=False))


def test_an_engine_time_cut_to_microseconds_is_no_clock_set_back() -> None:
    position = Position(NOW + 999, seen=True)

    assert resume(position, NOW) == (NOW + 999 - OVERLAP, position)


@given(st.integers(0, 2**63 - 1), st.booleans())
def test_a_position_is_read_as_it_was_written(nanos: int, seen: bool) -> None:
    position = Position(nanos, seen=seen)

    assert Position.parse(str(position)) == position


@pytest.mark.parametrize("text", ["", "kafka:3:42", "-1", "12x", "1" * 20, "+"])
def test_another_kind_of_stream_s_position_is_not_understood(text: str) -> None:
    assert Position.parse(text) is None
