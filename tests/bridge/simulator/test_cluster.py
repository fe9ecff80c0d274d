import itertools
import uuid
from collections import Counter
from itertools import islice

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.simulator.cluster import Cluster, ClusterEvent

DOCUMENTED_STATES = {
    "stack": {
        "Not Running",
        "Starting",
        "Running",
        "Partly running",
        "Stopping",
        "Stopped",
        "Redeploying",
        "Terminating",
        "Terminated",
    },
    "service": {
        "Not running",
        "Starting",
        "Running",
        "Partly running",
        "Scaling",
        "Redeploying",
        "Stopping",
        "Stopped",
        "Terminating",
        "Terminated",
    },
    "container": {"Starting", "Running", "Stopping", "Stopped", "Terminating", "Terminated"},
    "nodecluster": {
        "Init",
        "Deploying",
        "Deployed",
        "Partly deployed",
        "Scaling",
        "Terminating",
        "Terminated",
        "Empty cluster",
    },
    "node": {"Deploying", "Deployed", "Unreachable", "Upgrading", "Terminating", "Terminated"},
    "action": {"Pending", "In progress", "Canceling", "Canceled", "Success", "Failed"},
}
FIRST_STATES = {
    "stack": {"Not Running"},
    "service": {"Not running"},
    "container": {"Starting"},
    "nodecluster": {"Init"},
    "node": {"Deploying"},
    "action": {"Pending", "In progress", "Success"},
}
PARENT_TYPES = {
    "stack": [],
    "service": ["stack"],
    "container": ["service", "node", "stack", "nodecluster"],
    "nodecluster": [],
    "node": ["nodecluster"],
}
SETTLED = {
    "stack": {"Running", "Partly running", "Stopped"},
    "service": {"Running", "Partly running", "Stopped"},
    "nodecluster": {"Deployed", "Partly deployed", "Empty cluster"},
}
NEXT_STATES = {
    "stack": {
        "Not Running": {"Starting", "Terminating"} | SETTLED["stack"],
        "Starting": SETTLED["stack"],
        "Redeploying": SETTLED["stack"],
        "Stopping": SETTLED["stack"],
        "Running": {"Redeploying", "Stopping", "Terminating", "Partly running", "Stopped"},
        "Partly running": {"Starting", "Redeploying", "Stopping", "Terminating", "Running", "Stopped"},
        "Stopped": {"Starting", "Terminating", "Running", "Partly running"},
        "Terminating": {"Terminated"},
    },
    "service": {
        "Not running": {"Starting", "Terminating"},
        "Starting": SETTLED["service"],
        "Scaling": SETTLED["service"],
        "Redeploying": SETTLED["service"],
        "Stopping": {"Stopped"},
        "Running": {"Scaling", "Redeploying", "Stopping", "Terminating", "Partly running", "Stopped"},
        "Partly running": {"Starting", "Scaling", "Redeploying", "Stopping", "Terminating", "Running", "Stopped"},
        "Stopped": {"Starting", "Terminating", "Running", "Partly running"},
        "Terminating": {"Terminated"},
    },
    "container": {
        "Starting": {"Running", "Stopped"},
        "Running": {"Stopping", "Stopped", "Terminating"},
        "Stopping": {"Stopped"},
        "Stopped": {"Starting", "Terminating"},
        "Terminating": {"Terminated"},
    },
    "nodecluster": {
        "Init": {"Deploying"},
        "Deploying": {"Deployed"},
        "Deployed": {"Scaling", "Partly deployed", "Empty cluster"},
        "Partly deployed": {"Scaling", "Deployed", "Empty cluster"},
        "Empty cluster": {"Scaling", "Terminating"},
        "Scaling": {"Deployed", "Partly deployed"},
        "Terminating": {"Terminated"},
    },
    "node": {
        "Deploying": {"Deployed"},
        "Deployed": {"Unreachable", "Upgrading", "Terminating"},
        "Unreachable": {"Deployed"},
        "Upgrading": {"Deployed"},
        "Terminating": {"Terminated"},
    },
    "action": {
        "Pending": {"In progress", "Canceling"},
        "In progress": {"Success", "Failed"},
        "Canceling": {"Canceled"},
    },
}
LAST_STATES = {"Terminated", "Success", "Failed", "Canceled"}

stories = st.builds(
    lambda seed, namespace: list(islice(Cluster(namespace, seed).events(), 1500)),
    st.integers(min_value=0, max_value=2**32),
    st.sampled_from(["acme", ""]),
)


def long_story(count: int = 60_000, seed: int = 1) -> list[ClusterEvent]:
    return list(islice(Cluster("acme", seed).events(), count))


def type_of(uri: str) -> str:
    return uri.split("/")[-3]


@given(st.integers(min_value=0, max_value=2**32))
@settings(max_examples=20, deadline=None)
def test_the_same_seed_tells_the_same_story(seed: int) -> None:
    first, second = (list(islice(Cluster("acme", seed).events(), 300)) for _ in range(2))

    assert first == second


def test_another_seed_and_another_namespace_tell_other_stories() -> None:
    uuids = [{event.uuid for event in islice(Cluster(*cluster).events(), 500)} for cluster in (("a", 1), ("a", 2), ("b", 1))]

    assert all(first.isdisjoint(second) for first, second in itertools.combinations(uuids, 2))


def test_the_beginning_does_not_depend_on_how_much_is_taken() -> None:
    assert long_story(500) == long_story(2000)[:500]


def test_fields_have_the_names_and_the_order_of_the_documentation() -> None:
    event = next(Cluster("acme", 1).events())

    assert list(msgspec.to_builtins(event)) == ["type", "action", "parents", "resource_uri", "state", "uuid", "datetime"]


@given(stories)
@settings(max_examples=25, deadline=None)
def test_every_uuid_is_a_fresh_version_4(story: list[ClusterEvent]) -> None:
    uuids = [event.uuid for event in story] + list({event.resource_uri.split("/")[-2] for event in story})

    assert len(set(uuids)) == len(uuids)
    assert all(str(uuid.UUID(text)) == text and uuid.UUID(text).version == 4 for text in uuids)


@given(stories)
@settings(max_examples=25, deadline=None)
def test_every_resource_lives_a_legal_life(story: list[ClusterEvent]) -> None:
    states: dict[str, str] = {}
    for event in story:
        before = states.get(event.resource_uri)
        states[event.resource_uri] = event.state
        if before is None:
            assert event.action == "create", event
            assert event.state in FIRST_STATES[event.type], event
        else:
            assert event.action == ("delete" if event.state == "Terminated" else "update"), event
            assert before not in LAST_STATES, event
            assert event.state in NEXT_STATES[event.type][before], (before, event)


@given(stories)
@settings(max_examples=25, deadline=None)
def test_parents_are_the_whole_living_ancestry_in_the_order_of_the_captures(story: list[ClusterEvent]) -> None:
    latest: dict[str, ClusterEvent] = {}
    for event in story:
        if event.type == "action":
            subject, *ancestors = event.parents
            assert tuple(ancestors) == latest[subject].parents, event
            living = ancestors if event.state in LAST_STATES else event.parents
        else:
            assert [type_of(parent) for parent in event.parents] == PARENT_TYPES[event.type], event
            living = event.parents
        for parent in living:
            assert latest[parent].state != "Terminated", event
            assert set(latest[parent].parents) <= set(event.parents), event
        if event.resource_uri in latest:
            assert event.parents == latest[event.resource_uri].parents, event
        latest[event.resource_uri] = event


@given(stories)
@settings(max_examples=25, deadline=None)
def test_nothing_outlives_what_it_belongs_to(story: list[ClusterEvent]) -> None:
    living: dict[str, ClusterEvent] = {}
    for event in story:
        if event.type == "action":
            continue
        living[event.resource_uri] = event
        if event.state == "Terminated":
            del living[event.resource_uri]
            assert not any(event.resource_uri in other.parents for other in living.values()), event


@given(stories)
@settings(max_examples=25, deadline=None)
def test_nothing_happens_to_containers_on_a_node_that_is_unreachable(story: list[ClusterEvent]) -> None:
    unreachable: set[str] = set()
    for event in story:
        if event.type == "node":
            (unreachable.add if event.state == "Unreachable" else unreachable.discard)(event.resource_uri)
        if event.type == "container":
            assert unreachable.isdisjoint(event.parents), event


@given(stories)
@settings(max_examples=25, deadline=None)
def test_what_a_user_asked_for_happens_while_its_action_is_in_progress(story: list[ClusterEvent]) -> None:
    asked_for = {"Deploying", "Scaling", "Redeploying", "Terminating", "Upgrading"}
    in_progress: dict[str, set[str]] = {}
    for event in story:
        if event.type == "action" and event.state == "In progress":
            in_progress[event.resource_uri] = set(event.parents[:1])
        elif event.type == "action":
            in_progress.pop(event.resource_uri, None)
        elif event.type in ("stack", "nodecluster", "service", "node") and event.state in asked_for:
            subjects = set().union(*in_progress.values())
            assert subjects & {event.resource_uri, *event.parents}, event


@given(stories)
@settings(max_examples=25, deadline=None)
def test_an_action_takes_its_subject_to_one_new_state_over_one_other_at_most(story: list[ClusterEvent]) -> None:
    changes: dict[str, int] = {}
    for event in story:
        if event.type != "action":
            changes[event.resource_uri] = changes.get(event.resource_uri, 0) + 1
        elif event.state == "In progress":
            changes[event.parents[0]] = 0
        elif event.state in ("Success", "Failed") and event.action == "update":
            assert changes[event.parents[0]] <= 2, event


def test_every_state_is_documented_and_every_type_occurs() -> None:
    seen: dict[str, set[str]] = {}
    for event in long_story():
        seen.setdefault(event.type, set()).add(event.state)

    assert seen.keys() == DOCUMENTED_STATES.keys()
    assert all(states <= DOCUMENTED_STATES[kind] for kind, states in seen.items())


def test_the_cluster_does_not_grow() -> None:
    living: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for event in long_story():
        living[event.type] += (event.action == "create") - (event.action == "delete")
        most |= living
    del most["action"]

    limits = {"nodecluster": 1, "node": 3, "stack": 4, "service": 4 * 3, "container": 4 * 3 * 6}
    assert all(most[kind] <= limit for kind, limit in limits.items()), most


def test_paths_carry_the_namespace_and_none_if_there_is_none() -> None:
    for namespace, path in (("acme", "acme/"), ("", "")):
        for event in islice(Cluster(namespace, 1).events(), 200):
            system = "infra" if event.type in ("node", "nodecluster") else "app"
            assert event.resource_uri.startswith(f"/api/{system}/v1/{path}{event.type}/")
            assert event.resource_uri.endswith("/")
