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
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final

from kafka import KafkaProducer  # type: ignore[import-untyped]
from kafka.errors import BrokerResponseError, KafkaError  # type: ignore[import-untyped]
from kafka.future import Future  # type: ignore[import-untyped]
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

Refused = Sequence[tuple[Record, Refusal]]
"""Records of one batch that were not acknowledged."""
_MARGIN_SECONDS: Final = 1.0
"""Seconds beyond the delivery timeout after which the producer is not trusted any more."""


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
        """Return the seconds for which brokers throttle us because a quota is used up; not positive if none does."""
        return max([connection._throttle_time for connection in tuple(self._conns.values())], default=0.0) - time.monotonic()

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
        self._answered = False
        self._metadata: Metadata
        self._liveness: Liveness

    def connect(self) -> None:
        """Connect to the first broker that answers, and log in.

        Raises:
            Unavailable: No broker accepted us.
        """
        self._log.listen([threading.current_thread()])
        try:
            self._producer = KafkaProducer(**self._options(), **producer_options(self._settings), kafka_client=self._make_net)
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
        if self._answered or self._connections.throttled() > 0:
            # Throttling brokers do not answer.
            self._liveness.heard()
            self._answered = False
        elif self._liveness.is_gone():
            raise self.unavailable(f"no answer within {self._settings.connect_timeout:g} s")

    def partitions(self, topics: Iterable[str]) -> dict[str, int | Refusal]:
        """Return the number of partitions of each topic, or the refusal.

        Raises:
            Unavailable: The brokers do not answer.
        """
        cluster, wanted = self._alive()._metadata, set(topics)
        result: dict[str, int | Refusal] = {it: len(known) for it in wanted if (known := cluster.partitions_for_topic(it))}
        return result if len(result) == len(wanted) else result | self._metadata.partitions(wanted - result.keys())

    def produce(self, batches: Mapping[Partition, Sequence[Record]]) -> dict[Partition, Refused]:
        """Hand over one batch per partition, and wait for the outcomes.

        Returns:
            For each partition whose records were not all acknowledged: the others, with the refusals.

        Raises:
            Unavailable: The brokers throttle us for too long to acknowledge in time.
        """
        self._alive()
        pause = self._connections.throttled()
        if pause > self._settings.delivery_timeout / 2:
            raise Unavailable(f"{self._settings.where}: our quota is used up", "throttled", retry_after=pause)
        self._log.lines.clear()
        refused = self._produce_whole(batches) if self.whole_batches else self._produce_one_by_one(batches)
        self._answered = True
        return refused

    def unavailable(self, otherwise: str) -> Unavailable:
        """Make the exception, with the cause from the captured log or else with the message `otherwise`."""
        settings = self._settings
        reason, words = logged_reason(tuple(self._log.lines)) or ("timeout", otherwise)
        if reason == "unauthorized" and words == LOGIN_REFUSED:
            who = f"user {settings.username}" if settings.username else "our token"
            words = f"login refused: {who} with {settings.sasl} is not accepted"
        return Unavailable(without(settings.secrets, f"{settings.where}: {words}"), reason)

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
                producer._sender.join(5.0)
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

    def _produce_whole(self, batches: Mapping[Partition, Sequence[Record]]) -> dict[Partition, Refused]:
        producer = self._producer
        buffer = producer._accumulator
        waiting = {partition: whole_batch(producer, partition, records) for partition, records in batches.items()}
        for batch in waiting.values():
            with buffer._tp_lock(batch.topic_partition):
                buffer._batches[batch.topic_partition].append(batch)
                buffer._incomplete.add(batch)
        producer._sender.wakeup()
        deadline = time.monotonic() + self._settings.delivery_timeout + _MARGIN_SECONDS
        refused: dict[Partition, Refused] = {}
        for partition, batch in waiting.items():
            future = batch.produce_future
            if not future.wait(max(0.0, deadline - time.monotonic())) or not future.is_done:
                refused[partition] = [(record, self._silence()) for record in batches[partition]]
            elif error_of := future.value[2]:
                refused[partition] = [(record, _refusal(error_of(at))) for at, record in enumerate(batches[partition])]
        return refused

    def _produce_one_by_one(self, batches: Mapping[Partition, Sequence[Record]]) -> dict[Partition, Refused]:
        futures: list[tuple[Record, Any]] = []
        for record in chain.from_iterable(batches.values()):
            arguments = (record.topic, record.entry.json, record.key, record.headers, record.partition[1], record.timestamp)
            try:
                futures.append((record, self._producer.send(*arguments)))
            except KafkaError as error:
                futures.append((record, Future().failure(error)))
        with suppress(KafkaError):
            self._producer.flush(self._settings.delivery_timeout + _MARGIN_SECONDS)
        refused: defaultdict[Partition, list[tuple[Record, Refusal]]] = defaultdict(list)
        for record, future in futures:
            if not future.succeeded():
                refusal = _refusal(future.exception) if future.failed() else self._silence()
                refused[record.partition].append((record, refusal))
        return dict(refused)

    def _silence(self) -> Refusal:
        return Refusal(None, f"no acknowledgement within {self._settings.delivery_timeout:g} s")


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, BrokerResponseError):
        return Refusal(error.errno, error.args[0] if error.args and isinstance(error.args[0], str) else "")
    return NOT_AT_FAULT if type(error) is KafkaError else Refusal(None)
