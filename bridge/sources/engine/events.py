"""Mapping of a Docker Engine's events to ours, and the position from which reading them resumes; no sockets.

An Engine's event has an action on a container, a Docker Cloud event has its state. `to_event` maps them as Docker Cloud's own
agent did: `create`, `start`, `die`, `destroy` and a `kill` that stops determine the state; other actions have no counterpart
(docs/events.md has the table). Only containers are mapped.

**Resuming.** A position is the greatest `timeNano` seen. The Engine is asked for everything `since` a little earlier, because
its events are not strictly in order of time; the journal drops duplicates. The replay is small: 256 events of all types, in
memory, gone when the daemon restarts (moby, daemon/events/events.go). Every event that was seen must come again in the replay
of the next session; if the last one does not, events may be missing.

**Clocks.** Positions are times of the Engine's clock and are compared with nothing else. If that clock was set back behind the
position, everything that the Engine still has is read again, and positions start anew from it.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple
from uuid import uuid5

import msgspec

from bridge.event import NAMESPACE

OVERLAP: Final = 30 * 10**9
"""Nanoseconds between the position and the earlier time from which a session resumes."""

UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Exceptions of decoding something that is no JSON, or another JSON than expected."""

_SECOND: Final = 10**9

_STATES: Final = {
    "create": ("create", "Starting"),
    "start": ("update", "Running"),
    "kill": ("update", "Stopping"),
    "die": ("update", "Stopped"),
    "destroy": ("delete", "Terminated"),
}
"""Action of a container at the Engine: action and state at Docker Cloud. `stop`, `restart` and `oom` come with `die` and
`start`; there was no paused state."""

_STOPPING: Final = frozenset({"", "2", "3", "9", "15", "INT", "QUIT", "KILL", "TERM"})
"""Signals that stop a container; an empty one is KILL, the API's default. `HUP`, `USR1` and the like are messages to it."""


_MAX_CACHED_CHARS: Final = 512


class Actor(msgspec.Struct, frozen=True):
    """Subject of an Engine's event: its id, and its labels mixed with the Engine's own (`image`, `name`, …)."""

    id: str = msgspec.field(default="", name="ID")
    attributes: dict[str, str] | None = msgspec.field(default=None, name="Attributes")


class EngineEvent(msgspec.Struct, frozen=True):
    """One event of the Engine (moby, api/types/events/events.go); `status`, `id` and `from` before API 1.22."""

    type: str = msgspec.field(default="", name="Type")
    action: str = msgspec.field(default="", name="Action")
    actor: Actor = msgspec.field(default_factory=Actor, name="Actor")
    time: Annotated[int, msgspec.Meta(ge=0, le=2**33)] = 0
    time_nano: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = msgspec.field(default=0, name="timeNano")
    status: str = ""
    id: str = ""
    image: str = msgspec.field(default="", name="from")

    def __post_init__(self) -> None:
        if not (self.type or self.status):
            raise ValueError("neither `Type` nor `status`: not an event of an Engine")

    @property
    def nanos(self) -> int:
        """Time of the event, in nanoseconds since the epoch by the Engine's clock."""
        return self.time_nano or self.time * _SECOND


decode_event: Final = msgspec.json.Decoder(EngineEvent).decode
"""Decode the JSON of one event; raises one of `UNREADABLE`."""


class Identity(NamedTuple):
    """Identity of an Engine, from `GET /info`: its own ID; its node's and cluster's if it is in a swarm and knows them."""

    daemon: str
    node: str = ""
    cluster: str = ""


class _Swarm(msgspec.Struct, frozen=True):
    class Cluster(msgspec.Struct, frozen=True):
        id: str = msgspec.field(default="", name="ID")

    node: str = msgspec.field(default="", name="NodeID")
    cluster: Cluster | None = msgspec.field(default=None, name="Cluster")


class Info(msgspec.Struct, frozen=True):
    """The used fields of `GET /info`."""

    id: str = msgspec.field(name="ID")
    time: Annotated[datetime, msgspec.Meta(tz=True)] = msgspec.field(name="SystemTime")
    swarm: _Swarm | None = msgspec.field(default=None, name="Swarm")

    @property
    def identity(self) -> Identity:
        """Identity of the Engine."""
        swarm = self.swarm or _Swarm()
        return Identity(self.id, swarm.node, swarm.cluster.id if swarm.cluster else "")

    @property
    def nanos(self) -> int:
        """Time of its clock, in nanoseconds since the epoch, cut to microseconds."""
        return (self.time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000


def to_event(event: EngineEvent, identity: Identity, namespace: str) -> bytes | None:
    """Map one Engine event to the JSON of a Docker Cloud event; None if it has no counterpart.

    The uuid is made of what the event is, so that a replay gives the same one. Beside the original's seven fields
    stand `container_id`, `name`, `image`, `signal`, `exit_code` where known, and `time_nano`, which keeps the order within
    a second.
    """
    kind, action, actor = event.type, event.action, event.actor
    if not kind:
        kind, action, actor = "container", event.status, Actor(event.id, {"image": event.image})
    if kind != "container" or action not in _STATES or not actor.id:
        return None
    attributes = actor.attributes or {}
    if action == "kill" and attributes.get("signal", "").upper().removeprefix("SIG") not in _STOPPING:
        return None
    cloud_action, state = _STATES[action]
    identifier = f"event|local|{identity.daemon}|{kind}|{action}|{actor.id}|{event.nanos}"
    return msgspec.json.encode(
        {
            "type": kind,
            "action": cloud_action,
            "parents": _parents(attributes, identity, namespace),
            "resource_uri": _uri_of("app", "container", f"container:{actor.id}", namespace),
            "state": state,
            "uuid": str(uuid5(NAMESPACE, identifier)),
            "datetime": datetime.fromtimestamp(event.nanos // _SECOND, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "container_id": actor.id,
            **_details(action, attributes),
            "time_nano": event.nanos,
        }
    )


def _details(action: str, attributes: Mapping[str, str]) -> dict[str, Any]:
    details: dict[str, Any] = {name: attributes[name] for name in ("name", "image") if attributes.get(name)}
    if action == "kill" and "signal" in attributes:
        details["signal"] = attributes["signal"]
    if action == "die" and re.fullmatch(r"-?\d{1,10}", attributes.get("exitCode", ""), re.ASCII):
        details["exit_code"] = int(attributes["exitCode"])
    return details


def _parents(labels: Mapping[str, str], identity: Identity, namespace: str) -> list[str]:
    """List service, node, stack and node cluster in the original's order, each if labels or identity have it."""
    service, stack = labels.get("com.docker.swarm.service.id"), labels.get("com.docker.stack.namespace")
    project, compose = labels.get("com.docker.compose.project"), labels.get("com.docker.compose.service")
    node = labels.get("com.docker.swarm.node.id") or identity.node
    keys: list[tuple[str, str, str]] = []
    if service:
        keys.append(("app", "service", f"service:{service}"))
    elif project and compose:
        keys.append(("app", "service", f"service:compose:{identity.daemon}:{project}/{compose}"))
    keys.append(("infra", "node", f"node:{node}" if node else f"node:daemon:{identity.daemon}"))
    if stack:
        # A worker does not know its cluster's ID.
        keys.append(("app", "stack", f"stack:swarm:{identity.cluster or identity.daemon}:{stack}"))
    elif project:
        keys.append(("app", "stack", f"stack:compose:{identity.daemon}:{project}"))
    if identity.cluster:
        keys.append(("infra", "nodecluster", f"nodecluster:{identity.cluster}"))
    return [_uri_of(area, kind, key, namespace) for area, kind, key in keys]


def _uri_of(area: str, kind: str, key: str, namespace: str) -> str:
    # Long keys, as labels may hold them, would fill the memory: a cache counts its entries, not their bytes.
    return (_uri if len(key) <= _MAX_CACHED_CHARS else _uri.__wrapped__)(area, kind, key, namespace)


@lru_cache(maxsize=4096)
def _uri(area: str, kind: str, key: str, namespace: str) -> str:
    return f"/api/{area}/v1/{namespace + '/' if namespace else ''}{kind}/{uuid5(NAMESPACE, key)}/"


class Position(NamedTuple):
    """Position in an Engine's events: a time of its clock, and whether an event with exactly this time was seen."""

    nanos: int
    seen: bool

    def __str__(self) -> str:
        return f"{self.nanos}{'' if self.seen else '+'}"

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """Read what `str` wrote; None if it is something else."""
        match = re.fullmatch(r"(\d{1,19})(\+?)", text, re.ASCII)
        return cls(int(match[1]), not match[2]) if match else None


def resume(position: Position | None, engine_time: int) -> tuple[int, Position]:
    """Return the time from which to ask the Engine, in nanoseconds, and the position of the new session.

    Args:
        position: Position of the session before; None at the very first, which begins now.
        engine_time: The Engine's clock now, in nanoseconds, cut to microseconds.
    """
    if position is None:
        return engine_time, Position(engine_time, seen=False)
    if position.nanos >= engine_time + 1000:  # The clock was set back: the position means nothing to it.
        return 0, Position(0, seen=False)
    return max(0, position.nanos - (OVERLAP if position.seen else 0)), position


class Progress:
    """Progress of a session.

    Args:
        start: Its first position.
    """

    def __init__(self, start: Position) -> None:
        self.position = start
        self._awaited: float = start.nanos if start.seen else math.inf

    def advance(self, nanos: int) -> bool:
        """Note the time of an event; return False if the last event seen before did not come again: events may be missing."""
        complete = nanos <= self._awaited
        if nanos >= self._awaited:
            self._awaited = math.inf
        if nanos > self.position.nanos:
            self.position = Position(nanos, seen=True)
        return complete
