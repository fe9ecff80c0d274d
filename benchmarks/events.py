"""Events as Docker Cloud sent them: canonical, 358 bytes, each with its own uuid."""

import os
import time
import uuid
from collections.abc import Iterator
from itertools import cycle
from typing import Final

from bridge.frames import TEXT, encode

NAMESPACE: Final = "acme"
_CHUNK_EVENTS: Final = 730  # 256 KiB.


def canonical_events(count: int) -> list[bytes]:
    """Return events with random uuids and the current time, of a thousand containers in turn."""
    return _events(count, _resources())


def frames_in_chunks(count: int) -> Iterator[bytes]:
    """Yield such events as websocket frames, many in one piece."""
    resources = _resources()
    for start in range(0, count, _CHUNK_EVENTS):
        yield b"".join(encode(TEXT, event) for event in _events(min(_CHUNK_EVENTS, count - start), resources))


def stamped_event() -> bytes:
    """Return an event whose uuid ends with the monotonic time in nanoseconds, in 64 bits."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    resource = _uuid(uuid.uuid4().hex)
    return _body(resource, now) % _uuid(os.urandom(8).hex() + f"{time.monotonic_ns():016x}")


def stamp_of(identity: bytes) -> int:
    """Return the monotonic time in nanoseconds at which `stamped_event` made the event with this uuid."""
    return int(identity.replace(b"-", b"")[-16:], 16)


def _resources() -> Iterator[bytes]:
    """Yield events without uuids, of a thousand containers in turn, for ever."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return cycle([_body(_uuid(os.urandom(16).hex()), now) for _ in range(1000)])


def _events(count: int, resources: Iterator[bytes]) -> list[bytes]:
    digits = os.urandom(16 * count).hex()
    return [body % _uuid(digits[32 * i : 32 * i + 32]) for i, body in zip(range(count), resources, strict=False)]


def _uuid(digits: str) -> bytes:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}".encode()


def _body(resource: bytes, now: str) -> bytes:
    """Return an event with the field order of a real capture, and a placeholder for its uuid."""
    return (
        b'{"type":"container","action":"update","parents":["/api/app/v1/acme/service/7eaf7fff-882c-4f3d-9a8f-a22317ac00ce/",'
        b'"/api/app/v1/acme/stack/55710a04-bfa6-5f61-a37f-541ffc4930e7/"],"resource_uri":"/api/app/v1/acme/container/%b/",'
        b'"state":"Running","uuid":"%%b","datetime":"%b"}'
    ) % (resource, now.encode())
