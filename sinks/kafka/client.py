"""kafka-python's producer: connecting, and handing over whole record batches.

Faults of kafka-python 3.0, and the remedies:

- Its idempotent producer wedges for ever after a long outage, and dies of a single refused record: idempotence is off.
- Its buffer has no bound: at most one batch per partition is handed over at a time, and its outcome is awaited.
- It may never report the outcome of a batch: after a deadline of ours the producer is closed by force and replaced.
- It reports causes only in its log: the log of its threads is captured, and goes to no other handler.

A batch is put into the producer's own buffer as a whole; metadata, connections, TLS, SASL, requests and retries remain the
library's. If its internals do not look as expected, records are handed over one by one by `send`, lingering so long that those
of a partition become one batch, too.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final, cast

from kafka import KafkaProducer  # type: ignore[import-untyped]
from kafka.errors import BrokerResponseError, KafkaError  # type: ignore[import-untyped]
from kafka.future import Future  # type: ignore[import-untyped]

from bridge.sink import Unavailable
from bridge.text import MAX_CHARS, without
from sinks.kafka.connections import connect
from sinks.kafka.errors import LOGIN_REFUSED, NO_ANSWER, NOT_AT_FAULT, LogCapture, Refusal, logged_reason
from sinks.kafka.metadata import Metadata
from sinks.kafka.records import Partition, Record, looks_as_expected, whole_batch
from sinks.kafka.settings import KafkaSettings, connection_options, producer_options

Refused = Sequence[tuple[Record, Refusal]]
"""Records of one batch that were not acknowledged."""
IDLE_SECONDS: Final = 10.0
"""An idle client asks the brokers after this long."""
_MARGIN_SECONDS: Final = 1.0
"""Seconds beyond the delivery timeout after which the producer is not trusted any more."""


class Client:
    """A producer and its connections. Used by one thread; after an error it is closed and replaced.

    Args:
        settings: The sink's settings.
        interval: Idle seconds before the brokers are asked for an answer.
        clock: Monotonic clock for that.
    """

    def __init__(
        self, settings: KafkaSettings, interval: float = IDLE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._log = LogCapture()
        self._interval = interval
        self._net: Any = None
        self._manager: Any = None
        self._producer: Any = None
        self._clock = clock
        # Since when nothing was heard, unless a delivery was `answered` after that; and the request that is to end it.
        self._silent_since, self._answered = clock(), False
        self._question: Any = None
        self._silence = Refusal(None, f"no acknowledgement within {settings.delivery_timeout:g} s")

    def connect(self) -> None:
        """Connect to the first broker that answers, and log in; raise Unavailable if none accepts us."""
        self._log.listen([threading.current_thread()])
        try:
            self._producer = KafkaProducer(
                **connection_options(self._settings), **producer_options(self._settings), kafka_client=self._connect
            )
        except KafkaError as error:
            self._log.lines.append(str(error))
            raise self.unavailable(f"no connection within {self._settings.connect_timeout:g} s") from error
        self._log.listen([threading.current_thread(), self._producer._sender])
        self._whole_batches = looks_as_expected(self._producer)
        self._metadata = Metadata(self._settings, self._producer._metadata, self.ask)

    def ask(self, topics: Collection[str] = ()) -> None:
        """Ask a broker about these topics and those in use, and connect to a leader; raise Unavailable if none answers."""
        if not self._wait(self._send_question(topics)):
            raise self.unavailable(f"no answer within {self._settings.connect_timeout:g} s")

    def unreachable_leaders(self) -> list[str]:
        """Try all leaders of the topics in use, and return the advertised addresses of those that can't be reached."""
        self._wait(self._call(self._manager.try_leaders))
        return cast("list[str]", self._manager.unreachable())

    def notice(self) -> None:
        """Check that a leader still answers, without waiting; raise Unavailable if none does."""
        now, question = self._clock(), self._question
        if self._answered or self._throttled() > 0 or (question and question.succeeded()):
            # Throttling brokers do not answer.
            self._silent_since, self._question, self._answered = now, None, False
        elif question and (question.is_done or now - self._silent_since >= self._settings.connect_timeout):
            raise self.unavailable(f"no answer within {self._settings.connect_timeout:g} s")
        elif not question and now - self._silent_since >= self._interval:
            self._silent_since, self._question = now, self._send_question()

    def partitions(self, topics: Iterable[str]) -> dict[str, int | Refusal]:
        """Return the number of partitions of each topic, or the refusal; raise Unavailable if the brokers do not answer."""
        cluster, wanted = self._producer._metadata, set(topics)
        result: dict[str, int | Refusal] = {it: len(known) for it in wanted if (known := cluster.partitions_for_topic(it))}
        return result if len(result) == len(wanted) else result | self._metadata.partitions(wanted - result.keys())

    def produce(self, batches: Mapping[Partition, Sequence[Record]]) -> dict[Partition, Refused]:
        """Hand over one batch per partition, and wait for the outcomes.

        Returns:
            For each partition whose records were not all acknowledged: the others, with the refusals.

        Raises:
            Unavailable: The brokers throttle us for too long to acknowledge in time.
        """
        pause = self._throttled()
        if pause > self._settings.delivery_timeout / 2:
            raise Unavailable(f"{self._settings.where}: our quota is used up", "throttled", retry_after=pause)
        self._log.lines.clear()
        refused = self._produce_whole(batches) if self._whole_batches else self._produce_one_by_one(batches)
        self._answered = True
        return refused

    def unavailable(self, otherwise: str) -> Unavailable:
        """Make the exception, with the cause from the captured log or else with the message `otherwise`."""
        settings = self._settings
        reason, words = logged_reason(tuple(self._log.lines)) or ("timeout", otherwise)
        if words == NO_ANSWER:
            words = otherwise
        if words == LOGIN_REFUSED:
            who = f"user {settings.username}" if settings.username else "our token"
            words = f"login refused: {who} with {settings.sasl} is not accepted"
        where = settings.where
        for advertised in self._manager.unreachable()[:1] if self._manager else ():
            named = f"{where}: {advertised}, the address that the broker's `advertised.listeners` names"
            where = advertised if advertised in settings.bootstrap_servers else named
        return Unavailable(without(settings.secrets, f"{where}: {words}"), reason)

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

    def _connect(self, **options: Any) -> Any:
        """Make and connect the library's network client, which we must close if no producer is made of it."""
        self._net = connect(**options)
        self._manager = self._net._manager
        return self._net

    def _send_question(self, topics: Collection[str] = ()) -> Any:
        # Older lines, about other topics, must not be taken for the cause.
        self._log.lines.clear()
        return self._call(self._manager.ask, topics)

    def _call(self, coroutine: Any, *arguments: Any) -> Any:
        future = self._manager.call_soon(coroutine, *arguments, self._settings.connect_timeout)
        self._producer._sender.wakeup()
        return future

    def _wait(self, future: Any) -> bool:
        done = threading.Event()
        future.add_both(lambda _: done.set())
        done.wait(self._settings.connect_timeout + _MARGIN_SECONDS)
        return bool(future.succeeded())

    def _throttled(self) -> float:
        """Return the seconds for which brokers throttle us because a quota is used up; not positive if none does."""
        ends = [connection._throttle_time for connection in tuple(self._manager._conns.values())]
        return max(ends, default=0.0) - time.monotonic()

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
                refused[partition] = [(record, self._silence) for record in batches[partition]]
            elif error_of := future.value[2]:
                refused[partition] = [(record, self._refusal(error_of(at))) for at, record in enumerate(batches[partition])]
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
                refusal = self._refusal(future.exception) if future.failed() else self._silence
                refused[record.partition].append((record, refusal))
        return dict(refused)

    def _refusal(self, error: Exception) -> Refusal:
        if isinstance(error, BrokerResponseError):
            said = error.args[0] if error.args and isinstance(error.args[0], str) else ""
            return Refusal(error.errno, without(self._settings.secrets, said[:MAX_CHARS]))
        return NOT_AT_FAULT if type(error) is KafkaError else Refusal(None)
