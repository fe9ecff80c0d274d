"""Events with a number instead of JSON, for a journal that does not read them."""

from collections.abc import Sequence

from bridge.event import Event
from bridge.journal import Batch
from bridge.sink import Entry


def event(number: int, size: int = 0) -> Event:
    return Event(number.to_bytes(16, "big"), f"event {number}".encode().ljust(size, b"."))


def batch(*numbers: int, stream: str = "s", received: float = 100.0, size: int = 0) -> Batch:
    return Batch(stream, received, [event(number, size) for number in numbers], [])


def numbers(entries: Sequence[Entry]) -> list[int]:
    return [int(entry.json.decode().strip(".").removeprefix("event ")) for entry in entries]
