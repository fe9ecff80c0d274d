"""kafka-python's connections, corrected.

- The library gives all the time to the first address of a name, and any time to a TLS handshake.
- It accepts settings for the producer that it does not pass on.
- It drops data that came right before the end of a connection, such as a refused login.
"""

import random
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, ClassVar

from kafka.errors import KafkaError, KafkaTimeoutError, NodeNotReadyError, RequestTimedOutError  # type: ignore[import-untyped]
from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]
from kafka.net.inet import KafkaNetSocket  # type: ignore[import-untyped]
from kafka.net.manager import KafkaConnectionManager  # type: ignore[import-untyped]
from kafka.net.selector import NetworkSelector  # type: ignore[import-untyped]

from sinks.kafka.settings import milliseconds


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

    async def bootstrap_from_any(self, seconds: float) -> None:
        """Bootstrap from a broker of the settings that accepts us, or raise the cause; the library would retry one of them."""
        deadline = time.monotonic() + seconds
        nodes = {broker.node_id: broker for broker in self.cluster.bootstrap_brokers()}
        options = {"pop_on_close": False, "refresh_metadata_on_err": False, "reset_backoff_on_connect": False}
        node = await self._first(nodes, seconds, partial(self._log_in, **options))
        self.cluster._bootstrap_brokers = {node: nodes[node]}
        await self.bootstrap_async(milliseconds(deadline - time.monotonic()))

    async def ask(self, topics: Collection[str], seconds: float) -> None:
        """Ask a broker about these topics and those in use, and connect to a leader, at the addresses that they advertise."""
        deadline = time.monotonic() + seconds
        self.cluster._topics = self.cluster._topics | set(topics)
        brokers = {broker.node_id for broker in self.cluster.brokers()}
        await self._first(brokers, seconds, self._refresh)
        partitions = [partition for topic in self.cluster._partitions.values() for partition in topic.values()]
        leaders = {partition.leader_id for partition in partitions} & brokers
        if leaders:
            await self._first(leaders, deadline - time.monotonic(), self._log_in)

    async def _first(self, nodes: Collection[Any], seconds: float, call: Callable[[Any, int], Awaitable[None]]) -> Any:
        """Return a node for which the call succeeds, or raise the last error; each gets a fair share of the time."""
        deadline = time.monotonic() + seconds
        order = random.sample(list(nodes), len(nodes))
        order.sort(key=lambda node: node in self._conns)
        for left in range(len(order), 0, -1):
            node, share = order[left - 1], (deadline - time.monotonic()) / left
            throttled = self._conns[node]._throttle_time - time.monotonic() if node in self._conns else 0.0
            await self._net.sleep(min(share, max(throttled, self.connection_delay(node))))
            try:
                await self.wait_for(self.call_soon(call, node, milliseconds(share)), milliseconds(share))
            except KafkaError:
                if left == 1:
                    raise
            else:
                return node
        raise NodeNotReadyError

    async def _refresh(self, node: Any, share: int) -> None:
        deadline = time.monotonic() + share / 1000
        await self._log_in(node, share)
        try:
            await self.cluster.refresh_metadata(node)
        except RequestTimedOutError:
            # The time limit of all requests may be shorter than that of this one.
            if time.monotonic() > deadline:
                raise
            await self._refresh(node, milliseconds(deadline - time.monotonic()))

    async def _log_in(self, node: Any, share: int, **options: bool) -> None:
        """Connect and log in, or raise the cause; the library would retry, and wait for a TLS handshake for ever."""
        connection = self.get_connection(node, share, **options)
        try:
            await self.wait_for(connection.init_future, share)
        except KafkaError as error:
            self._conns.pop(node, connection).close(error)
            if isinstance(error, KafkaTimeoutError):
                self.update_backoff(node)
            raise

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
