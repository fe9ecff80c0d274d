"""A small world of clusters, stacks and containers in which something is always going on; what the simulator talks about.

Pure: no I/O, no clock, and chance comes from the seed alone, so that the same seed tells the same story with the same uuids.
Who sends an event puts the time into it. States, hierarchy and the order of fields are those of the API's documentation; the
order of `parents` (service, node, stack, nodecluster) and an action's whole ancestry are those of real captures. Unknown
from any source, and chosen here: a `Terminated` comes with the action `delete`.

A world is a set of resources and of operations on them. An operation is a generator of events, and several run at a time,
so that their events mix. What keeps the story legal is that an operation holds the resources that it changes:

- one on a stack holds the stack and its services, one on a service or on one of its containers holds the service;
- one on a node holds the node, its cluster, and every service that has a container there, so that nothing happens to
  containers which nobody can reach;
- a container is placed only on a node that is deployed and not held, and of those one always remains.
"""

import random
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec

_MAX_CLUSTERS: Final = 3
_MAX_NODES: Final = 4
_MAX_STACKS: Final = 8
_MAX_SERVICES: Final = 3
_MAX_CONTAINERS: Final = 5
_AT_ONCE: Final = 6
"""Operations that run at the same time."""

_FOUNDING: Final = 0.15
"""Chance that something new is founded, instead of something done to what is there."""
_PENDING: Final = 0.5
"""Chance that an action has to wait before it begins."""
_CANCELED: Final = 0.05
"""Chance that an action which waits is canceled."""
_MISHAP: Final = 0.03
"""Chance that a container does not come up when its service is started."""

_ACTIVE: Final = frozenset({"Running", "Partly running", "Scaling", "Redeploying"})
_WHOLE: Final = frozenset({"Running", "Scaling", "Redeploying"})
_INFRASTRUCTURE: Final = frozenset({"nodecluster", "node"})
_DEPTH: Final = {"nodecluster": 1, "node": 2, "stack": 1, "service": 2, "container": 3}
_VARIANT: Final = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


class WorldEvent(msgspec.Struct, gc=False):
    """One event, its fields in the order of the documentation; `datetime` is empty until somebody sends it."""

    type: str
    action: str
    parents: tuple[str, ...]
    resource_uri: str
    state: str
    uuid: str
    datetime: str = ""


class Resource:
    """Something that has a state: a cluster, a node, a stack, a service, a container or an action.

    Attributes:
        type: The event type.
        uri: Its REST path.
        parents: The paths of its whole ancestry.
        owner: What it is a child of; None for clusters and stacks.
        node: Where a container runs; else None.
        children: Nodes of a cluster, services of a stack, containers of a service or on a node.
        state: Empty until it was created.
        busy: Whether an operation holds it.
    """

    __slots__ = ("busy", "children", "node", "owner", "parents", "state", "type", "uri")

    def __init__(self, kind: str, uri: str, owner: "Resource | None" = None, node: "Resource | None" = None) -> None:
        self.type = kind
        self.uri = uri
        self.owner = owner
        self.node = node
        self.children: list[Resource] = []
        self.state = ""
        self.busy = False
        above = [parent for parent in (owner, node) if parent]
        self.parents: tuple[str, ...] = tuple(parent.uri for parent in above)
        self.parents += tuple(uri for parent in above for uri in parent.parents)


Events = Iterator[WorldEvent]
Story = Generator[WorldEvent, None, bool]
"""The events of an operation; it returns whether all went well."""


class _Plan(NamedTuple):
    """Something that may be done, how often, to what, in which states, and whether a user asks for it (by an action)."""

    weight: int
    of: str
    states: frozenset[str]
    story: Callable[[Resource], Story]
    by_user: bool = True
    room: int = 1 << 30
    """Only where there are fewer children than this."""


class World:
    """The resources of one namespace and what happens to them.

    Args:
        namespace: Stands in every resource's path; empty leaves it out, as before there were namespaces.
        seed: Decides everything, together with the namespace.
    """

    def __init__(self, namespace: str, seed: int) -> None:
        self._random = random.Random(f"{seed}/{namespace}")
        self._path = f"{namespace}/" if namespace else ""
        self._clusters: list[Resource] = []
        self._stacks: list[Resource] = []
        self._running: list[Events] = []
        self._plans = self._make_plans()
        self._weights = list(accumulate(plan.weight for plan in self._plans))

    def events(self) -> Events:
        """Tell what happens next, for ever, from the founding of the first cluster on."""
        running = self._running
        while True:
            if len(running) < _AT_ONCE:
                self._begin()
            if running:
                turn = int(self._random.random() * len(running))
                event = next(running[turn], None)
                if event is None:
                    del running[turn]
                else:
                    yield event

    def _make_plans(self) -> list[_Plan]:
        up, down = (
            frozenset({"Running", "Partly running"}),
            frozenset({"Partly running", "Stopped", "Not running", "Not Running"}),
        )
        deployed, empty = frozenset({"Deployed", "Partly deployed"}), frozenset({"Empty cluster"})
        healthy, running, stopped = frozenset({"Deployed"}), frozenset({"Running"}), frozenset({"Stopped"})
        return [
            _Plan(8, "nodecluster", frozenset({"Init"}), self._deploy_cluster),
            _Plan(1, "nodecluster", deployed | empty, self._grow_cluster, room=_MAX_NODES),
            _Plan(4, "nodecluster", empty, self._terminate_cluster),
            _Plan(2, "node", healthy, partial(self._pass, ("Unreachable", "Deployed")), by_user=False),
            _Plan(1, "node", healthy, partial(self._pass, ("Upgrading", "Deployed"))),
            _Plan(3, "node", healthy, self._terminate_node),
            _Plan(8, "stack", down, partial(self._each, "Starting", self._start, down)),
            _Plan(2, "stack", up, partial(self._each, "Redeploying", self._redeploy, up)),
            _Plan(1, "stack", up, partial(self._each, "Stopping", self._stop, up)),
            _Plan(1, "stack", up | down, self._terminate_stack),
            _Plan(4, "service", down, self._start),
            _Plan(6, "service", up, self._scale),
            _Plan(4, "service", up, self._redeploy),
            _Plan(2, "service", up, self._stop),
            _Plan(4, "container", running, partial(self._pass, ("Stopped", "Starting", "Running")), by_user=False),
            _Plan(2, "container", running, partial(self._pass, ("Stopping", "Stopped"))),
            _Plan(4, "container", stopped, partial(self._pass, ("Starting", "Running"))),
        ]

    def _begin(self) -> None:
        """Try to begin an operation; what can't be done at the moment is not done."""
        if self._chance(_FOUNDING):
            self._found()
            return
        plan = self._random.choices(self._plans, cum_weights=self._weights)[0]
        target = self._pick(plan.of)
        if target is None or target.state not in plan.states or len(target.children) >= plan.room:
            return
        claims = _claims(target)
        nodes_needed = {"nodecluster": 0, "node": 2}.get(plan.of, 1)
        if not any(claim.busy for claim in claims) and len(self._usable_nodes()) >= nodes_needed:
            story = plan.story(target)
            self._hold(claims, self._act(target, story) if plan.by_user else story)

    def _found(self) -> None:
        if len(self._clusters) < min(_MAX_CLUSTERS, len(self._stacks) + 1):
            cluster = self._make("nodecluster")
            self._clusters.append(cluster)
            self._hold([cluster], self._create(cluster, "Init"))
        elif len(self._stacks) < _MAX_STACKS:
            stack = self._make("stack")
            self._stacks.append(stack)
            self._hold([stack], self._create(stack, "Not Running"))

    def _hold(self, claims: Sequence[Resource], story: Events) -> None:
        for claim in claims:
            claim.busy = True
        self._running.append(_release_after(claims, story))

    def _create(self, resource: Resource, state: str) -> Events:
        """Create a cluster or a stack. A call that needs no time has no more than one action event."""
        yield self._change(resource, state, "create")
        if resource.type == "stack":
            for _ in range(self._random.randint(1, _MAX_SERVICES)):
                yield self._change(self._make("service", resource), "Not running", "create")
        yield self._change(self._make("action", resource), "Success", "create")

    def _act(self, target: Resource, story: Story) -> Events:
        """Wrap what a user asked for into the events of its action."""
        action = self._make("action", target)
        if self._chance(_PENDING):
            yield self._change(action, "Pending", "create")
            if self._chance(_CANCELED):
                yield self._change(action, "Canceling")
                yield self._change(action, "Canceled")
                return
            yield self._change(action, "In progress")
        else:
            yield self._change(action, "In progress", "create")
        went_well = yield from story
        yield self._change(action, "Success" if went_well else "Failed")

    def _deploy_cluster(self, cluster: Resource) -> Story:
        yield self._change(cluster, "Deploying")
        nodes = [self._make("node", cluster) for _ in range(self._random.randint(1, _MAX_NODES - 1))]
        for node in nodes:
            yield self._change(node, "Deploying", "create")
        for node in nodes:
            yield self._change(node, "Deployed")
        yield from self._roll_up(cluster)
        return True

    def _grow_cluster(self, cluster: Resource) -> Story:
        yield self._change(cluster, "Scaling")
        node = self._make("node", cluster)
        yield self._change(node, "Deploying", "create")
        yield self._change(node, "Deployed")
        yield from self._roll_up(cluster)
        return True

    def _terminate_cluster(self, cluster: Resource) -> Story:
        yield self._change(cluster, "Terminating")
        yield self._end(cluster, self._clusters)
        return True

    def _terminate_node(self, node: Resource) -> Story:
        """Take a node away, its running containers being replaced by others elsewhere."""
        yield self._change(node, "Terminating")
        for container in list(node.children):
            yield from self._replace(container) if container.state == "Running" else self._retire(container)
            yield from self._roll_up(container.owner)
        yield self._end(node)
        yield from self._roll_up(node.owner)
        return True

    def _each(self, state: str, story: Callable[[Resource], Story], affected: frozenset[str], stack: Resource) -> Story:
        """Do the same to every service of a stack that is in one of the affected states."""
        yield self._change(stack, state)
        all_well = True
        for service in [service for service in stack.children if service.state in affected]:
            all_well = (yield from story(service)) and all_well
        yield from self._roll_up(stack)
        return all_well

    def _terminate_stack(self, stack: Resource) -> Story:
        yield self._change(stack, "Terminating")
        for service in list(stack.children):
            yield self._change(service, "Terminating")
            for container in list(service.children):
                yield from self._retire(container)
            yield self._end(service)
        yield self._end(stack, self._stacks)
        return True

    def _start(self, service: Resource) -> Story:
        yield self._change(service, "Starting")
        starting = [container for container in service.children if container.state == "Stopped"]
        for container in starting:
            yield self._change(container, "Starting")
        if not service.children:
            for _ in range(self._random.randint(1, _MAX_CONTAINERS)):
                starting.append(self._place(service))
                yield self._change(starting[-1], "Starting", "create")
        all_well = True
        for container in starting:
            well = not self._chance(_MISHAP)
            yield self._change(container, "Running" if well else "Stopped")
            all_well = all_well and well
        yield from self._roll_up(service)
        return all_well

    def _stop(self, service: Resource) -> Story:
        yield self._change(service, "Stopping")
        for container in service.children:
            if container.state == "Running":
                yield self._change(container, "Stopping")
                yield self._change(container, "Stopped")
        yield from self._roll_up(service)
        return True

    def _redeploy(self, service: Resource) -> Story:
        yield self._change(service, "Redeploying")
        for container in list(service.children):
            yield from self._replace(container)
        yield from self._roll_up(service)
        return True

    def _scale(self, service: Resource) -> Story:
        yield self._change(service, "Scaling")
        wanted = self._random.randint(1, _MAX_CONTAINERS)
        while len(service.children) > wanted:
            yield from self._retire(service.children[-1])
        while len(service.children) < wanted:
            container = self._place(service)
            yield self._change(container, "Starting", "create")
            yield self._change(container, "Running")
        yield from self._roll_up(service)
        return True

    def _pass(self, states: Sequence[str], resource: Resource) -> Story:
        """Let a node or a container pass through states, and what it belongs to follow."""
        for state in states:
            yield self._change(resource, state)
            yield from self._roll_up(resource.owner)
        return True

    def _replace(self, container: Resource) -> Events:
        """A new container takes an old one's place; the order is that of a redeployment seen in a log."""
        successor = self._place(container.owner)
        yield self._change(container, "Terminating")
        yield self._change(successor, "Starting", "create")
        yield self._end(container)
        yield self._change(successor, "Running")

    def _retire(self, container: Resource) -> Events:
        yield self._change(container, "Terminating")
        yield self._end(container)

    def _end(self, resource: Resource, among: list[Resource] | None = None) -> WorldEvent:
        """Terminate a resource, and forget it."""
        for siblings in (among, resource.owner and resource.owner.children, resource.node and resource.node.children):
            if siblings:
                siblings.remove(resource)
        return self._change(resource, "Terminated", "delete")

    def _roll_up(self, resource: Resource | None) -> Events:
        """Let a cluster, service or stack follow its children, and then what it belongs to, unless that is held."""
        while resource:
            state = _sum(resource)
            if state != resource.state:
                yield self._change(resource, state)
            resource = resource.owner if resource.owner and not resource.owner.busy else None

    def _change(self, resource: Resource, state: str, action: str = "update") -> WorldEvent:
        resource.state = state
        return WorldEvent(resource.type, action, resource.parents, resource.uri, state, self._uuid())

    def _make(self, kind: str, owner: Resource | None = None, node: Resource | None = None) -> Resource:
        system = "infra" if kind in _INFRASTRUCTURE else "app"
        resource = Resource(kind, f"/api/{system}/v1/{self._path}{kind}/{self._uuid()}/", owner, node)
        if kind != "action":
            for parent in (owner, node):
                if parent:
                    parent.children.append(resource)
        return resource

    def _place(self, service: Resource | None) -> Resource:
        return self._make("container", service, self._random.choice(self._usable_nodes()))

    def _usable_nodes(self) -> list[Resource]:
        return [node for cluster in self._clusters for node in cluster.children if node.state == "Deployed" and not node.busy]

    def _pick(self, kind: str) -> Resource | None:
        among = self._clusters if kind in _INFRASTRUCTURE else self._stacks
        chosen = None
        for _ in range(_DEPTH[kind]):
            if not among:
                return None
            chosen = self._random.choice(among)
            among = chosen.children
        return chosen

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def _uuid(self) -> str:
        """A random uuid (version 4); `uuid.UUID` would take three times as long."""
        digits = f"{self._random.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


def _claims(target: Resource) -> list[Resource]:
    """What an operation on a resource must hold."""
    if target.type == "container":
        return [target.owner] if target.owner else []
    if target.type == "stack":
        return [target, *target.children]
    if target.type == "node":
        services = {container.owner: None for container in target.children}
        return [claim for claim in (target, target.owner, *services) if claim]
    return [target]


def _release_after(claims: Sequence[Resource], story: Events) -> Events:
    yield from story
    for claim in claims:
        claim.busy = False


def _sum(parent: Resource) -> str:
    """The state that follows from the children's states."""
    states = {child.state for child in parent.children}
    if parent.type == "nodecluster":
        if not states:
            return "Empty cluster"
        return "Deployed" if states == {"Deployed"} else "Partly deployed"
    if not states & _ACTIVE:
        return "Not Running" if states == {"Not running"} else "Stopped"
    return "Running" if states <= _WHOLE else "Partly running"
