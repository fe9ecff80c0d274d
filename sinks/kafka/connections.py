"""kafka-python's connections, corrected.

- The library gives all the time to the first address of a name, and any time to a TLS handshake.
- It accepts settings for the producer that it does not pass on.
- It drops data that came right before the end of a connection, such as a refused login.
"""

import random
import time
from collections.abc import Collection
from typing import Any, ClassVar

from kafka.errors import KafkaError, KafkaTimeoutError  # type: ignore[import-untyped]
from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]
from kafka.net.inet import KafkaNetSocket  # type: ignore[import-untyped]
from kafka.net.manager import KafkaConnectionManager  # type: ignore[import-untyped]
from kafka.net.sasl.oauth import AbstractTokenProvider  # type: ignore[import-untyped]
from kafka.net.selector import NetworkSelector  # type: ignore[import-untyped]

from sinks.kafka.settings import milliseconds


class Token(AbstractTokenProvider):  # type: ignore[misc]  # The library has no types.
    """A bearer token that does not change."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def token(self) -> str:
        """Return it."""
        return self._token


class _EveryAddress(KafkaNetSocket):  # type: ignore[misc]  # The library has no types.
    """Tries every address of a name, each for a fair share of the time. The library chooses it by a proxy's scheme."""

    SCHEMES: ClassVar = ("every-address",)

    def dns_lookup(self, host: str, port: int, *more: Any) -> Any:
        addresses = super().dns_lookup(host, port, *more)
        self._left = len(addresses)
        return addresses

    async def connect(self, net: Any, addrinfo: Any, socket_options: Any = (), timeout_at: float | None = None) -> Any:
        now = time.monotonic()
        if timeout_at is not None:
            timeout_at = now + (timeout_at - now) / self._left
        self._left -= 1
        try:
            return await super().connect(net, addrinfo, socket_options, timeout_at)
        except KafkaTimeoutError as error:
            raise TimeoutError("Connection timed out") from error  # After the library's own it would try no other address.


class Connections(KafkaConnectionManager):  # type: ignore[misc]  # The library has no types.
    """Connections to brokers."""

    def __init__(self, net: Any, **options: Any) -> None:
        super().__init__(net, **options | {"proxy_url": "every-address:"})
        self.config["socket_connection_setup_timeout_ms"] = options["bootstrap_timeout_ms"]
        self.cluster.config["allow_auto_create_topics"] = options.get("allow_auto_create_topics", False)

    def unreachable(self) -> str | None:
        """Return the address of a broker, as the brokers advertise it, to which the last connection attempt failed."""
        return next((f"{it.host}:{it.port}" for it in self.cluster.brokers() if it.node_id in self._backoff), None)

    def leaders(self) -> set[Any]:
        """Return the leaders of the topics in use, or if none is known, all brokers."""
        topics = tuple(self.cluster._partitions.values())
        brokers = {broker.node_id for broker in self.cluster.brokers()}
        return {partition.leader_id for partitions in topics for partition in tuple(partitions.values())} & brokers or brokers

    async def bootstrap_from_any(self, seconds: float) -> None:
        """Bootstrap from a broker of the settings that accepts us, or raise the cause; the library would retry one of them."""
        deadline = time.monotonic() + seconds
        nodes = {broker.node_id: broker for broker in self.cluster.bootstrap_brokers()}
        options = {"pop_on_close": False, "refresh_metadata_on_err": False, "reset_backoff_on_connect": False}
        node = await self.connect_to_any(nodes, seconds, **options)
        self.cluster._bootstrap_brokers = {node: nodes[node]}
        await self.bootstrap_async(milliseconds(deadline - time.monotonic()))

    async def connect_to_any(self, nodes: Collection[Any], seconds: float, **options: bool) -> Any:
        """Connect to one of the nodes and log in; return it, or raise the cause at once. The library would retry."""
        deadline = time.monotonic() + seconds
        order = random.sample(list(nodes), len(nodes))
        for left in range(len(order), 0, -1):
            node, share = order[left - 1], milliseconds((deadline - time.monotonic()) / left)
            await self._net.sleep(min(share / 1000, self.connection_delay(node)))
            try:
                connection = self.get_connection(node, share, **options)
                await self.wait_for(connection.init_future, share)
            except KafkaError as error:
                if failed := self._conns.pop(node, None):
                    failed.close(error)
                if isinstance(error, KafkaTimeoutError):
                    self.update_backoff(node)
                if left == 1:
                    raise
            else:
                return node
        return None

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        transport = await super()._build_transport(node, timeout_at)
        receive = transport._sock_recv
        ended: list[Exception] = []

        def receive_last_words() -> tuple[bytes, Exception | None]:
            data, error = (b"", ended.pop()) if ended else receive()
            if data and error is not None:
                ended.append(error)
                return data, None
            return data, error

        transport._sock_recv = receive_last_words
        return transport


def connect(**options: Any) -> KafkaNetClient:
    """Make the library's network client and connect it to a broker of the settings, or close it and raise the cause."""
    selector = NetworkSelector(**options)
    manager = Connections(selector, **options)
    client = KafkaNetClient(net=selector, manager=manager, **options)
    try:
        manager.run(manager.bootstrap_from_any, options["bootstrap_timeout_ms"] / 1000)
    except BaseException:
        client.close()
        raise
    return client
