"""Messages as Docker Cloud sends them."""

from typing import Any

import msgspec


def message(number: int, time: str | None = "2026-11-23T16:59:58Z", **changes: Any) -> bytes:
    """Return an event of a container of its own; without a time if that is None."""
    fields = {
        "type": "container",
        "action": "update",
        "state": "Running",
        "resource_uri": f"/api/app/v1/acme/container/{number}/",
        "parents": [],
        "uuid": f"00000000-0000-4000-8000-{number:012d}",
    }
    return msgspec.json.encode(fields | ({"datetime": time} if time else {}) | changes)
