"""A type of sink under test: a receiver under control, and a sink for it.

Our own sinks' harnesses are in `ours`. With EVENT_BRIDGE_CONTRACT=module:Class (several by commas) the suite runs for these
instead, and `docs/sinks.md` shows how the author of a sink writes and runs one.
"""

import importlib
import os
import uuid
from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal

import msgspec

from bridge.event import Event, Reception, normalize
from bridge.sink import Entry, Sink

RECEIVED: Final = datetime(2026, 11, 23, 17, 0, 0, 123456, tzinfo=UTC)

Ability = Literal[
    "withhold",  # Acknowledgements can be held back.
    "break",  # The receiver can go away and come back.
    "stop",  # It can stop acknowledging after some events.
    "reject",  # It can refuse one event for ever.
    "fail",  # It can fail for one event.
    "notice",  # The sink keeps a connection, and notices without an event that it has ended.
]


def make_entry(seq: int, resource: str = "web-1", **fields: Any) -> Entry:
    """Make an entry of a realistic event, normalized as the bridge does it."""
    frame = {
        "type": "container",
        "action": "update",
        "state": "Running",
        "resource_uri": f"/api/app/v1/acme/container/{uuid.uuid5(uuid.NAMESPACE_OID, resource)}/",
        "parents": [f"/api/app/v1/acme/service/{uuid.uuid5(uuid.NAMESPACE_OID, 'service')}/"],
        "uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, f"event {seq}")),
        "datetime": "2016-02-01T16:47:28Z",
    }
    event = normalize(msgspec.json.encode(frame | fields), Reception.at("acme", RECEIVED), 1 << 24)
    assert isinstance(event, Event)
    return Entry(seq, RECEIVED.timestamp(), event.json)


def make_entries(count: int, resources: int = 7) -> list[Entry]:
    return [make_entry(seq, f"web-{seq % resources}") for seq in range(1, count + 1)]


class Harness(ABC):
    """A receiver that does as it is told, and how to make a sink for it."""

    abilities: ClassVar[frozenset[Ability]]

    @abstractmethod
    def make_sink(self) -> Sink:
        """Make a sink that delivers to the receiver."""

    @abstractmethod
    def arrived(self) -> list[bytes]:
        """Tell the JSON of the events that were acknowledged, in order, repeated ones repeatedly."""

    @abstractmethod
    def close(self) -> None:
        """Release everything."""

    def withhold(self) -> None:
        """Acknowledge nothing until `repair`."""
        raise NotImplementedError

    def break_off(self) -> None:
        """Go away until `repair`."""
        raise NotImplementedError

    def stop_after(self, count: int) -> None:
        """Acknowledge nothing until `repair`, once so many events have arrived."""
        raise NotImplementedError

    def repair(self) -> None:
        """Work again."""
        raise NotImplementedError

    def reject(self, entry: Entry) -> None:
        """Refuse this event, for ever."""
        raise NotImplementedError

    def fail(self, entry: Entry) -> None:
        """Fail when this event comes."""
        raise NotImplementedError


def strangers() -> tuple[type[Harness], ...]:
    """The harnesses that EVENT_BRIDGE_CONTRACT names, none if it is not set.

    Raises:
        TypeError: It names something else.
    """
    names = [name.strip() for name in os.environ.get("EVENT_BRIDGE_CONTRACT", "").split(",") if name.strip()]
    return tuple(_load(name) for name in names)


def _load(name: str) -> type[Harness]:
    module, _, found = name.partition(":")
    harness = getattr(importlib.import_module(module), found, None)
    if not (isinstance(harness, type) and issubclass(harness, Harness)):
        raise TypeError(f"EVENT_BRIDGE_CONTRACT: {name} is no module:Class of a tests.contract.harness.Harness")
    return harness
