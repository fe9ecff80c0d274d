"""Order per resource within a delivery; pure."""

from collections import defaultdict, deque
from collections.abc import Iterable

from bridge.sink import Entry


def group(entries: Iterable[Entry], *, ordered: bool) -> list[deque[Entry]]:
    """Divide entries into groups that may be sent side by side: all of one resource, or with no order each by itself."""
    if not ordered:
        return [deque((entry,)) for entry in entries]
    groups: defaultdict[str, deque[Entry]] = defaultdict(deque)
    for entry in entries:
        groups[entry.fields.resource_uri].append(entry)
    return list(groups.values())
