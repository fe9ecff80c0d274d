"""A made-up account of the API: events of its node cluster, stacks, services and containers, without an end.

Pure: the same namespace and seed give the same events with the same uuids. Whoever sends an event puts the time into it.

States, hierarchy and the order of fields are those of the API's documentation. The order of `parents` (service, node, stack,
nodecluster) and that of a redeployment are those of real captures. No source says with which action `Terminated` comes; here
it is `delete`.
"""

import random
from collections.abc import Iterator

import msgspec

_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


class ClusterEvent(msgspec.Struct, gc=False):
    """One event, its fields in the order of the documentation; `datetime` is empty until it is sent."""

    type: str
    action: str
    parents: tuple[str, ...]
    resource_uri: str
    state: str
    uuid: str
    datetime: str = ""


Events = Iterator[ClusterEvent]


class Resource:
    """A node cluster, node, stack, service, container or action.

    Attributes:
        type: The event type.
        uri: Its REST path.
        parents: The paths of its whole ancestry.
        owner: The resource whose child it is; None for the node cluster and stacks.
        children: Nodes of the cluster, services of a stack, containers of a service.
        state: Empty until it was created.
    """

    __slots__ = ("children", "owner", "parents", "state", "type", "uri")

    def __init__(self, kind: str, uri: str, owner: "Resource | None" = None, node: "Resource | None" = None) -> None:
        self.type = kind
        self.uri = uri
        self.owner = owner
        self.children: list[Resource] = []
        self.state = ""
        above = [parent for parent in (owner, node) if parent]
        self.parents: tuple[str, ...] = tuple(parent.uri for parent in above)
        self.parents += tuple(uri for parent in above for uri in parent.parents)


class Cluster:
    """The resources of one namespace.

    Args:
        namespace: Part of every resource's path; empty leaves it out, as before there were namespaces.
        seed: Decides all chance, together with the namespace.
    """

    def __init__(self, namespace: str, seed: int) -> None:
        self._random = random.Random(f"{seed}/{namespace}")
        self._path = f"{namespace}/" if namespace else ""
        self._nodes = self._make("nodecluster")
        self._stacks: list[Resource] = []

    def events(self) -> Events:
        """Yield events for ever, from the creation of the node cluster on."""
        yield self._change(self._nodes, "Init", "create")
        yield from self._act(self._nodes, self._deploy())
        while True:
            if len(self._stacks) < 4:
                yield from self._create_stack()
            service = self._random.choice(self._random.choice(self._stacks).children)
            yield from self._operate(service)

    def _operate(self, service: Resource) -> Events:
        """Do what may be done to a service in its state, or to what is around it."""
        if service.state != "Running":
            return self._act(service, self._start(service))
        turn = self._random.random()
        if turn < 0.2:
            return self._crash(self._random.choice(service.children))
        if turn < 0.3:
            return self._lose(self._random.choice(self._nodes.children))
        if turn < 0.35 and service.owner:
            return self._act(service.owner, self._terminate(service.owner))
        operation = self._random.choice([self._scale, self._redeploy, self._stop])
        return self._act(service, operation(service))

    def _act(self, target: Resource, events: Events) -> Events:
        """Put the events of a user's action around those that it causes."""
        action = self._make("action", target)
        yield self._change(action, "In progress", "create")
        yield from events
        yield self._change(action, "Success")

    def _deploy(self) -> Events:
        yield self._change(self._nodes, "Deploying")
        for _ in range(3):
            node = self._make("node", self._nodes)
            yield self._change(node, "Deploying", "create")
            yield self._change(node, "Deployed")
        yield self._change(self._nodes, "Deployed")

    def _create_stack(self) -> Events:
        """A call that needs no time has no more than one action event."""
        stack = self._make("stack")
        self._stacks.append(stack)
        yield self._change(stack, "Not Running", "create")
        for _ in range(self._random.randint(1, 3)):
            yield self._change(self._make("service", stack), "Not running", "create")
        yield self._change(self._make("action", stack), "Success", "create")

    def _terminate(self, stack: Resource) -> Events:
        self._stacks.remove(stack)
        yield self._change(stack, "Terminating")
        for service in stack.children:
            yield self._change(service, "Terminating")
            for container in service.children:
                yield self._change(container, "Terminating")
                yield self._change(container, "Terminated", "delete")
            yield self._change(service, "Terminated", "delete")
        yield self._change(stack, "Terminated", "delete")

    def _start(self, service: Resource) -> Events:
        yield self._change(service, "Starting")
        for container in service.children:
            yield self._change(container, "Starting")
        for _ in range(0 if service.children else self._random.randint(1, 5)):
            yield self._change(self._place(service), "Starting", "create")
        for container in service.children:
            yield self._change(container, "Running")
        yield from self._roll_up(service)

    def _stop(self, service: Resource) -> Events:
        yield self._change(service, "Stopping")
        for container in service.children:
            yield self._change(container, "Stopping")
            yield self._change(container, "Stopped")
        yield from self._roll_up(service)

    def _scale(self, service: Resource) -> Events:
        yield self._change(service, "Scaling")
        wanted = self._random.randint(1, 5)
        for container in service.children[wanted:]:
            yield self._change(container, "Terminating")
            yield self._change(container, "Terminated", "delete")
        del service.children[wanted:]
        while len(service.children) < wanted:
            container = self._place(service)
            yield self._change(container, "Starting", "create")
            yield self._change(container, "Running")
        yield from self._roll_up(service)

    def _redeploy(self, service: Resource) -> Events:
        yield self._change(service, "Redeploying")
        for container in list(service.children):
            successor = self._place(service)
            yield self._change(container, "Terminating")
            yield self._change(successor, "Starting", "create")
            yield self._change(container, "Terminated", "delete")
            yield self._change(successor, "Running")
            service.children.remove(container)
        yield from self._roll_up(service)

    def _crash(self, container: Resource) -> Events:
        for state in ("Stopped", "Starting", "Running"):
            yield self._change(container, state)
            yield from self._roll_up(container.owner)

    def _lose(self, node: Resource) -> Events:
        for state in ("Unreachable", "Deployed"):
            yield self._change(node, state)
            yield from self._roll_up(node.owner)

    def _roll_up(self, resource: Resource | None) -> Events:
        """Give a cluster, service or stack the state that follows from its children, and then its owner."""
        while resource:
            states = {child.state for child in resource.children}
            whole = "Deployed" if resource.type == "nodecluster" else "Running"
            state = whole if states == {whole} else f"Partly {whole.lower()}" if whole in states else "Stopped"
            if states & {"Partly running"}:
                state = "Partly running"
            if state != resource.state:
                yield self._change(resource, state)
            resource = resource.owner

    def _change(self, resource: Resource, state: str, action: str = "update") -> ClusterEvent:
        resource.state = state
        return ClusterEvent(resource.type, action, resource.parents, resource.uri, state, self._uuid())

    def _make(self, kind: str, owner: Resource | None = None, node: Resource | None = None) -> Resource:
        system = "infra" if kind in ("node", "nodecluster") else "app"
        resource = Resource(kind, f"/api/{system}/v1/{self._path}{kind}/{self._uuid()}/", owner, node)
        if owner and kind != "action":
            owner.children.append(resource)
        return resource

    def _place(self, service: Resource) -> Resource:
        return self._make("container", service, self._random.choice(self._nodes.children))

    def _uuid(self) -> str:
        """A random uuid (version 4); `uuid.UUID` would take three times as long."""
        digits = f"{self._random.getrandbits(128):032x}"
        return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"
