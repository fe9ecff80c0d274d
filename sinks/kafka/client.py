"""The file that knows kafka-python: connecting, and handing over whole record batches.

What kafka-python 3.0 does wrong, and what is done about it:

- Its idempotent producer wedges for ever after a long outage, and dies of a single refused record: idempotence is off.
- Its buffer has no bound: at most one batch per partition is handed over at a time, and its outcome is awaited.
- It may never tell what became of a batch: there is a deadline of our own, after which the producer is thrown away. It is never
  waited for: `close` ends it by force, what is under way included.
- It tells causes only in its log: what its threads log is captured while something is awaited, and goes to no other handler.

A batch is put into the producer's own buffer as a whole; metadata, connections, TLS, SASL, requests and retries remain the
library's. That touches its inner parts, which are looked at first: where they do not look as expected, records are handed over
one by one by `send`, lingering so long that those of a partition become one batch, too. What asks the library about topics is
in `metadata` and `preflight`.
"""

import random
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from kafka import KafkaProducer  # type: ignore[import-untyped]
from kafka.errors import BrokerResponseError, KafkaError  # type: ignore[import-untyped]
from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]
from kafka.net.manager import KafkaConnectionManager  # type: ignore[import-untyped]
from kafka.net.sasl.oauth import AbstractTokenProvider  # type: ignore[import-untyped]
from kafka.net.selector import NetworkSelector  # type: ignore[import-untyped]

from bridge.sink import Unavailable
from sinks.kafka.errors import LOGIN_REFUSED, NOT_AT_FAULT, LogCapture, Refusal, logged_reason, without
from sinks.kafka.metadata import IDLE_SECONDS, Liveness, Metadata
from sinks.kafka.preflight import About, describe
from sinks.kafka.records import Partition, Record, looks_as_expected, whole_batch
from sinks.kafka.settings import KafkaSettings, connection_options, milliseconds, producer_options

Outcome = Sequence[Refusal | None]
"""What became of each record of a batch: None if it was acknowledged. Empty if all were."""

_MARGIN_SECONDS: Final = 1.0
"""Seconds beyond the delivery timeout after which the producer is not trusted any more."""
_CLOSE_SECONDS: Final = 5.0
"""Seconds that ending a producer by force may take."""


class _Token(AbstractTokenProvider):  # type: ignore[misc]  # The library has no types.
    def __init__(self, token: str) -> None:
        super().__init__()
        self._token = token

    def token(self) -> str:
        return self._token


class _Connections(KafkaConnectionManager):  # type: ignore[misc]  # The library has no types.
    """The library's connections with three corrections, and the time for which brokers throttle us."""

    def __init__(self, net: Any, **options: Any) -> None:
        super().__init__(net, **options)
        # The producer accepts this setting but does not pass it on: topics would always be created.
        self.cluster.config["allow_auto_create_topics"] = options["allow_auto_create_topics"]

    def throttled(self) -> float:
        """Return the seconds for which brokers throttle us because a quota is used up."""
        ends = [connection._throttle_time for connection in tuple(self._conns.values())]
        return max([end - time.monotonic() for end in ends], default=0.0)

    async def probe(self, seconds: float) -> None:
        """Connect to one of the brokers and log in, or raise the cause at once; the library would retry."""
        deadline = time.monotonic() + seconds
        brokers = self.cluster.bootstrap_brokers()
        random.shuffle(brokers)
        for left in range(len(brokers), 0, -1):
            node = brokers[left - 1].node_id
            share = (deadline - time.monotonic()) / left
            connection = self.get_connection(
                node, milliseconds(share), pop_on_close=False, refresh_metadata_on_err=False, reset_backoff_on_connect=False
            )
            try:
                await connection
            except KafkaError:
                if left == 1:
                    raise
            else:
                return
            finally:
                self._conns.pop(node, connection).close()
                self.reset_backoff(node)

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        """Connect, and keep data that came right before the end of the connection, such as a refused login."""
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


class Client:
    """A producer and its connections. Used by one thread; after an error it is closed and replaced.

    Args:
        settings: The sink's settings.
        interval: Idle seconds before the brokers are asked for an answer.

    Attributes:
        whole_batches: True if batches are handed over as a whole.
    """

    def __init__(self, settings: KafkaSettings, interval: float = IDLE_SECONDS) -> None:
        self.whole_batches = False
        self._settings = settings
        self._log = LogCapture()
        self._interval = interval
        self._net: Any = None
        self._connections: Any = None
        self._producer: Any = None
        self._metadata: Metadata
        self._liveness: Liveness

    def connect(self) -> None:
        """Connect to the first broker that answers, and log in.

        Raises:
            Unavailable: No broker accepted us.
        """
        self._log.listen([threading.current_thread()])
        try:
            self._producer = KafkaProducer(
                **self._options(),
                **producer_options(self._settings),
                kafka_client=self._make_net,
            )
        except KafkaError as error:
            self._log.lines.append(str(error))
            raise self.unavailable(f"no connection within {self._settings.connect_timeout:g} s") from error
        self._log.listen([threading.current_thread(), self._producer._sender])
        self.whole_batches = looks_as_expected(self._producer)
        self._metadata = Metadata(self._settings, self._producer, self._log, self.unavailable)
        self._liveness = Liveness(self._metadata.ask, self._settings.connect_timeout, self._interval)

    def notice(self) -> None:
        """Check that a broker still answers, without waiting.

        Raises:
            Unavailable: No broker answers.
        """
        self._alive()
        if self._connections.throttled() > 0:
            # Throttling brokers do not answer.
            self._liveness.heard()
        elif self._liveness.is_gone():
            raise self.unavailable(f"no answer within {self._settings.connect_timeout:g} s")

    def partitions(self, topics: Collection[str]) -> dict[str, int | Refusal]:
        """Return the number of partitions of each topic, or the refusal.

        Raises:
            Unavailable: The brokers do not answer.
        """
        self._alive()
        return self._metadata.partitions(topics)

    def produce(self, batches: Mapping[Partition, Sequence[Record]]) -> dict[Partition, Outcome]:
        """Hand over one batch per partition, and wait for the outcomes.

        Returns:
            The outcome of each batch.

        Raises:
            Unavailable: The brokers throttle us for too long to acknowledge in time.
        """
        self._alive()
        pause = self._connections.throttled()
        if pause > self._settings.delivery_timeout / 2:
            raise Unavailable(f"{self._settings.where}: our quota is used up", "throttled", retry_after=pause)
        self._log.lines.clear()
        outcomes = self._produce_whole(batches) if self.whole_batches else self._produce_one_by_one(batches)
        self._liveness.heard()
        return outcomes

    def unavailable(self, otherwise: str, delivered: Collection[int] = ()) -> Unavailable:
        """Make the exception, with the cause from the captured log or else with the message `otherwise`."""
        settings = self._settings
        reason, words = logged_reason(tuple(self._log.lines)) or ("timeout", otherwise)
        if reason == "unauthorized" and words == LOGIN_REFUSED:
            who = f"user {settings.username}" if settings.username else "our token"
            words = f"login refused: {who} with {settings.sasl} is not accepted"
        return Unavailable(without(settings.secrets, f"{settings.where}: {words}"), reason, delivered=delivered)

    def describe(self, topic: str | None) -> About:
        """Describe a topic, or with None the brokers' default; nothing is created."""
        return describe(self._options(), topic)

    def close(self) -> None:
        """Close by force, without waiting for requests in flight. Never raises."""
        producer, self._producer = self._producer, None
        net, self._net = self._net, None
        if producer is not None:
            with suppress(Exception):
                producer._sender.force_close()  # The public `close` waits for what is under way.
                producer._sender.join(_CLOSE_SECONDS)
            with suppress(Exception):
                producer.close(timeout=0)
            producer._closed = True  # Or its finalizer tries again.
        if net is not None:
            with suppress(Exception):
                net.close()
        self._log.stop()

    def _alive(self) -> Any:
        if self._producer is None:
            raise Unavailable("the sink is not open", "internal")
        return self._producer

    def _make_net(self, **options: Any) -> KafkaNetClient:
        """Make and probe the library's network client, which we must close if no producer is made of it."""
        selector = NetworkSelector(**options)
        manager = self._connections = _Connections(selector, **options)
        self._net = KafkaNetClient(net=selector, manager=manager, **options)
        manager.run(manager.probe, self._settings.connect_timeout)
        return self._net

    def _options(self) -> dict[str, Any]:
        """Return the options of every connection."""
        options = connection_options(self._settings)
        token = self._settings.token
        return options if token is None else options | {"sasl_oauth_token_provider": _Token(token.get_secret_value())}

    def _produce_whole(self, batches: Mapping[Partition, Sequence[Record]]) -> dict[Partition, Outcome]:
        producer = self._producer
        buffer = producer._accumulator
        waiting = {partition: whole_batch(producer, partition, records) for partition, records in batches.items()}
        for batch in waiting.values():
            with buffer._tp_lock(batch.topic_partition):
                buffer._batches[batch.topic_partition].append(batch)
                buffer._incomplete.add(batch)
        producer._sender.wakeup()
        deadline = time.monotonic() + self._settings.delivery_timeout + _MARGIN_SECONDS
        found: dict[Partition, Outcome] = {}
        for partition, batch in waiting.items():
            future = batch.produce_future
            if future.wait(max(0.0, deadline - time.monotonic())) and future.is_done:
                _, _, refusals = future.value
                found[partition] = _outcome(refusals, len(batches[partition])) if refusals else ()
            else:
                found[partition] = [self._silence()] * len(batches[partition])
        return found

    def _produce_one_by_one(self, batches: Mapping[Partition, Sequence[Record]]) -> dict[Partition, Outcome]:
        futures: dict[Partition, list[Any]] = {partition: [] for partition in batches}
        for partition, records in batches.items():
            for record in records:
                try:
                    futures[partition].append(
                        self._producer.send(
                            *(partition[0], record.entry.json, record.key, record.headers, partition[1], record.timestamp)
                        )
                    )
                except KafkaError as error:
                    futures[partition].append(error)
        with suppress(KafkaError):
            self._producer.flush(self._settings.delivery_timeout + _MARGIN_SECONDS)
        return {partition: [self._result(future) for future in each] for partition, each in futures.items()}

    def _result(self, future: Any) -> Refusal | None:
        if isinstance(future, Exception):
            return _refusal(future)
        if not future.is_done:
            return self._silence()
        return _refusal(future.exception) if future.failed() else None

    def _silence(self) -> Refusal:
        return Refusal(None, f"no acknowledgement within {self._settings.delivery_timeout:g} s")


def _outcome(refusals: Any, count: int) -> Outcome:
    errors = [refusals(index) for index in range(count)]
    return [_refusal(error) for error in errors]


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, BrokerResponseError):
        words = str(error.args[0]) if error.args and isinstance(error.args[0], str) else ""
        return Refusal(error.errno, words)
    if type(error) is KafkaError:
        return NOT_AT_FAULT
    return Refusal(None)
