"""kafka-python's connections, corrected.

- The library gives all the time to the first address of a name, and any time to a look-up and to a TLS handshake.
- It accepts settings for the producer that it does not pass on.
- It drops data that came right before the end of a connection, such as a refused login.
"""

import random
import threading
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar

from kafka.errors import KafkaError, KafkaTimeoutError, NodeNotReadyError, RequestTimedOutError  # type: ignore[import-untyped]
from kafka.future import Future  # type: ignore[import-untyped]
from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]
from kafka.net.inet import KafkaNetSocket  # type: ignore[import-untyped]
from kafka.net.manager import KafkaConnectionManager  # type: ignore[import-untyped]
from kafka.net.selector import NetworkSelector  # type: ignore[import-untyped]

from bridge import deadline
from sinks.kafka.settings import milliseconds


class _EveryAddress(KafkaNetSocket):  # type: ignore[misc]  # The library has no types.
    """Connects to whichever address of a name answers first, in a thread. The library chooses it by a proxy's scheme."""

    SCHEMES: ClassVar = ("every-address",)

    def dns_lookup(self, host: str, port: int, *_: Any) -> Any:
        return [(host, port)]

    async def connect(self, net: Any, addrinfo: Any, socket_options: Any = (), timeout_at: float = 0.0) -> Any:
        host, port = addrinfo
        outcome = Future()

        def run() -> None:
            settle: Any = outcome.success
            result: Any
            try:
                result = deadline.connect(host, port, timeout_at, socket_options)
                result.settimeout(0)
            except OSError as error:
                settle, result = outcome.failure, error if str(error) else TimeoutError("the look-up timed out")
            with suppress(RuntimeError):  # The loop has ended.
                net.call_soon_threadsafe(lambda: settle(result))

        thread = threading.Thread(target=run, name="connect", daemon=True)
        thread.start()
        try:
            return await outcome
        finally:
            if outcome.is_done:
                thread.join()


class Connections(KafkaConnectionManager):  # type: ignore[misc]  # The library has no types.
    """Connections to brokers."""

    def __init__(self, net: Any, **options: Any) -> None:
        super().__init__(net, **options | {"proxy_url": "every-address:"})
        self.config["socket_connection_setup_timeout_ms"] = options["bootstrap_timeout_ms"]
        self.cluster.config["allow_auto_create_topics"] = options.get("allow_auto_create_topics", False)

    def unreachable(self) -> list[str]:
        """Return the addresses, as the brokers advertise them, to which the last connection attempt failed."""
        failed = [broker for broker in self.cluster.brokers() if broker.node_id in self._backoff]
        return [f"[{it.host}]:{it.port}" if ":" in it.host else f"{it.host}:{it.port}" for it in failed]

    async def bootstrap_from_any(self, seconds: float) -> None:
        """Bootstrap from a broker of the settings that accepts us, or raise the cause; the library would retry one of them."""
        until = time.monotonic() + seconds
        nodes = {broker.node_id: broker for broker in self.cluster.bootstrap_brokers()}
        options = {"pop_on_close": False, "refresh_metadata_on_err": False, "reset_backoff_on_connect": False}
        node = await self._first(nodes, seconds, partial(self._log_in, **options))
        self.cluster._bootstrap_brokers = {node: nodes[node]}
        await self.bootstrap_async(milliseconds(until - time.monotonic()))

    async def ask(self, topics: Collection[str], seconds: float) -> None:
        """Ask a broker about these topics and those in use, and connect to a leader, at the addresses that they advertise."""
        until = time.monotonic() + seconds
        self.cluster._topics = self.cluster._topics | set(topics)
        await self._first({broker.node_id for broker in self.cluster.brokers()}, seconds, self._refresh)
        if leaders := self._leaders():
            await self._first(leaders, until - time.monotonic(), self._log_in)

    async def try_leaders(self, seconds: float) -> None:
        """Try to connect to all leaders of the topics in use, so that `unreachable` is complete."""
        for attempt in [self.call_soon(self._log_in, node, milliseconds(seconds)) for node in self._leaders()]:
            with suppress(KafkaError):
                await attempt

    def _leaders(self) -> set[Any]:
        partitions = [partition for topic in self.cluster._partitions.values() for partition in topic.values()]
        return {partition.leader_id for partition in partitions} & {broker.node_id for broker in self.cluster.brokers()}

    async def _first(self, nodes: Collection[Any], seconds: float, call: Callable[[Any, int], Awaitable[None]]) -> Any:
        """Return a node for which the call succeeds, or raise the last error; each gets a fair share of the time."""
        until = time.monotonic() + seconds
        order = random.sample(list(nodes), len(nodes))
        order.sort(key=lambda node: node in self._conns)
        for left in range(len(order), 0, -1):
            node, share = order[left - 1], (until - time.monotonic()) / left
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
        until = time.monotonic() + share / 1000
        await self._log_in(node, share)
        try:
            await self.cluster.refresh_metadata(node)
        except RequestTimedOutError:
            # The time limit of all requests may be shorter than that of this one.
            if time.monotonic() > until:
                raise
            await self._refresh(node, milliseconds(until - time.monotonic()))

    async def _log_in(self, node: Any, share: int, **options: bool) -> None:
        """Connect and log in, or raise the cause; the library would retry, and wait for a TLS handshake for ever."""
        connection = self.get_connection(node, 0.9 * share, **options)  # So that a failed connection is told from the rest.
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
