"""Settings of the simulator. Pure."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

NAMESPACE: Final = re.compile(r"[A-Za-z0-9._~-]*")
"""Pattern of a namespace that needs no quoting in a path or in JSON."""

_ANY: Final = math.inf
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "port": (0, 65_535),
    "rate": (0, _ANY),
    "count": (0, _ANY),
    "wait_for_clients": (0, _ANY),
    "send_timeout": (0.01, _ANY),
    "duplicates": (0, 1),
    "malformed": (0, 1),
    "fragmented": (0, 1),
    "disconnect_every": (0.01, _ANY),
    "silence_after": (0, _ANY),
    "refuse": (300, 599),
    "retry_after": (0, _ANY),
    "error_after": (0, _ANY),
    "credentials_expire": (0, _ANY),
}


@dataclass(frozen=True, kw_only=True)
class SimulatorSettings:
    """Options of the simulator. Times are in seconds; None switches an option off.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        username: The account; also the namespace of the path without one.
        api_key: Credentials asked for; None asks for none.
        namespaces: Served namespaces, `""` being the account's own; if empty, every namespace that a client asks for.
        rate: Events per second over all namespaces; 0 means as fast as the clients take them.
        count: Stop making events after so many; connections stay open.
        seed: The same seed gives the same events; None draws one at each start.
        replay: Events to send, once and byte by byte, instead of generated ones: the lines themselves or a file of lines. A
            line goes to the namespace in its resource URI, to all if there is none, and to the account's own if that has no
            name.
        wait_for_clients: Begin when so many connections are open.
        record: Keep the uuids sent and the requests made, for tests.
        send_timeout: Time after which a client is disconnected that takes none of its waiting bytes.
        duplicates: Share of events that are sent a second time, 50 events later.
        malformed: Share of events after which a malformed message follows.
        fragmented: Share of events that are sent in three frames with a ping between them.
        disconnect_every: Age at which a connection is ended; every second one without a close frame.
        silence_after: Age at which a connection falls silent, not even answering pings; 0 is at once.
        refuse: HTTP status with which every handshake is refused.
        retry_after: `Retry-After` of such a refusal.
        error_after: Age at which a connection gets the `UNAUTHORIZED` error message and is ended.
        credentials_expire: Time since the start at which credentials expire: 401 from then on, `UNAUTHORIZED` for open
            connections.

    Raises:
        ValueError: A value is out of range; the option is named.
    """

    host: str = "127.0.0.1"
    port: int = 8750
    username: str = ""
    api_key: str | None = field(default=None, repr=False)
    namespaces: Sequence[str] = ()
    rate: float = 10.0
    count: int | None = None
    seed: int | None = None
    replay: Path | Sequence[str] | None = None
    wait_for_clients: int = 0
    record: bool = False
    send_timeout: float = 30.0
    duplicates: float = 0.0
    malformed: float = 0.0
    fragmented: float = 0.0
    disconnect_every: float | None = None
    silence_after: float | None = None
    refuse: int | None = None
    retry_after: int | None = None
    error_after: float | None = None
    credentials_expire: float | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                bounds = f"at least {low}" if high == _ANY else f"between {low} and {high}"
                raise ValueError(f"{name}: must be {bounds}, not {value}")
        for name, namespaces in (("username", [self.username]), ("namespaces", self.namespaces)):
            for namespace in namespaces:
                if not NAMESPACE.fullmatch(namespace):
                    raise ValueError(f"{name}: must be letters, digits and ._~- only, not {namespace!r}")
