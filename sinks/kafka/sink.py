"""Events as Kafka records, acknowledged by the brokers.

A delivery goes in rounds. In each round every partition gets at most one record batch, and the next round begins when the
outcome of all batches is known. This keeps the order: a batch is stored as a whole or not at all, so no event can overtake one
that failed. Events of one resource that go to different partitions go in different rounds. Usually one round is enough.

If a batch is rejected because of one record, it is split and resent until that record stands alone. Batches with several bad
records are split too, because kafka-python then reports only that each is invalid. If the brokers are the cause, the client is
closed (`sinks.kafka.client` tells why) and `open` makes a new one.
"""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import ClassVar

from bridge.sink import Entry, Failure, Unavailable
from sinks.classification import Classification
from sinks.kafka.client import IDLE_SECONDS, Client, Refused
from sinks.kafka.errors import NOT_AT_FAULT, UNAUTHORIZED, Refusal, classify, is_of_the_record
from sinks.kafka.preflight import describe, preflight
from sinks.kafka.records import Partition, Record, RecordMaker
from sinks.kafka.settings import KafkaSettings, connection_options


class Delivery:
    """The state of one delivery: records to send, in order, acknowledged sequence numbers, and failures.

    Args:
        batch_bytes: Maximum bytes of a record batch, unless one record alone is larger.
    """

    def __init__(self, batch_bytes: int) -> None:
        self.todo: list[Record] = []
        self.delivered: set[int] = set()
        self._batch_bytes = batch_bytes
        # For a partition whose batches were split: the maximum number of records.
        self._max_records: dict[Partition, int] = {}
        self._failures: list[tuple[Record, Failure]] = []
        # For each ordering key with a record to retry: the position of the first such record.
        self._waiting: dict[str, int] = {}

    def next_round(self) -> dict[Partition, list[Record]]:
        """Take the next round: one batch per partition, and each ordering key in one partition only."""
        batches: dict[Partition, list[Record]] = {}
        room: dict[Partition, int] = {}
        partition_of: dict[str, Partition | None] = {}
        left: list[Record] = []
        for record in self.todo:
            partition = record.partition
            if partition_of.setdefault(record.ordering_key, partition) == partition:
                batch = batches.get(partition)
                if batch is None:
                    batches[partition] = [record]
                    room[partition] = self._batch_bytes - record.size
                    continue
                rest = room[partition] - record.size
                if rest >= 0 and (not self._max_records or len(batch) < self._max_records.get(partition, len(batch) + 1)):
                    room[partition] = rest
                    batch.append(record)
                    continue
            # Later records of this ordering key must wait, too.
            partition_of[record.ordering_key] = None
            left.append(record)
        self.todo = left
        return batches

    def acknowledge(self, partition: Partition, records: Sequence[Record], refused: Refused) -> None:
        """Note acknowledged records, all but those refused, and let the next batch be larger again."""
        stored = {record.entry.seq for record in records}.difference([record.entry.seq for record, _ in refused])
        self.delivered |= stored
        if stored and partition in self._max_records:
            self._max_records[partition] *= 2

    def send_again(self, records: Sequence[Record], parts: int = 1) -> None:
        """Send records of one partition again, at their old position, split into `parts` batches."""
        if parts > 1:
            self._max_records[records[0].partition] = max(1, len(records) // parts)
        self.todo = sorted([*records, *self.todo], key=lambda record: record.place)

    def fail(self, record: Record, refused_for: Classification) -> None:
        """Note a failed record. If it is to be retried, later records with its ordering key wait for it."""
        self._failures.append((record, refused_for.failure(record.entry)))
        if refused_for.outcome == "retry":
            self._waiting[record.ordering_key] = min(record.place, self._waiting.get(record.ordering_key, record.place))

    def hold(self) -> None:
        """Take out the records that wait for an earlier one with their ordering key."""
        if self._waiting:
            held = [it for it in self.todo if self._waiting.get(it.ordering_key, it.place) < it.place]
            self._failures += [(record, Failure.held(record.entry)) for record in held]
            places = {record.place for record in held}
            self.todo = [record for record in self.todo if record.place not in places]

    def failures(self) -> list[Failure]:
        """Return the failures."""
        return [
            Failure.held(record.entry)
            if failure.outcome == "retry" and self._waiting[record.ordering_key] < record.place
            else failure
            for record, failure in self._failures
        ]


class KafkaSink:
    """Sends events to Kafka.

    Args:
        name: The sink's name in the configuration.
        settings: Its settings.
        interval: Idle seconds before the brokers are asked for an answer.
    """

    Settings: ClassVar = KafkaSettings

    def __init__(self, name: str, settings: KafkaSettings, interval: float = IDLE_SECONDS) -> None:
        self.name = name
        self._settings = settings
        self._interval = interval
        self._records = RecordMaker(settings.topic, settings.key, settings.ordering, settings.timestamp)
        self._client: Client | None = None
        self._may_write = False

    def open(self) -> None:
        """Connect, and look up the topic if it is fixed; raise Unavailable if one of these failed."""
        self.close()
        client = self._client = Client(self._settings, self._interval)
        try:
            client.connect()
            self._look_up(client, self._records.topic)
        except BaseException:
            self.close()
            raise

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        """Send all entries.

        Raises:
            Unavailable: The brokers are not available; `delivered` holds what they acknowledged.
        """
        client = self._opened()
        delivery = Delivery(self._settings.record_batch_bytes)
        self.delivered = delivery.delivered
        try:
            records = self._records.make(entries)
            self._choose_partitions(delivery, records, client.partitions(map(attrgetter("topic"), records)))
            while delivery.todo:
                self._send(client, delivery)
        except Unavailable as error:
            # Acknowledgements of earlier rounds are known only here.
            error.delivered = delivery.delivered
            raise
        return delivery.failures()

    def check_connection(self) -> None:
        """Ask now and then whether a broker is still there; raise Unavailable if none has answered."""
        self._opened().notice()

    def close(self) -> None:
        """Drop all connections without waiting for requests in flight."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def remarks(self, max_event_bytes: int) -> Sequence[str]:
        """Report the state of the topic, and limits that are too small for our events. Writes nothing."""
        about = describe(connection_options(self._settings), self._records.topic)
        unreachable = self._client.unreachable_leaders() if self._client else ()
        return [
            *preflight(self._settings, about, max_event_bytes),
            *[f"{it}, the address that a broker's `advertised.listeners` names, can't be reached" for it in unreachable],
        ]

    def _opened(self) -> Client:
        if self._client is None:
            raise Unavailable("the sink is not open", "internal")
        return self._client

    def _choose_partitions(self, delivery: Delivery, records: Sequence[Record], known: Mapping[str, int | Refusal]) -> None:
        """Give each record its partition; fail those whose topic takes none."""
        partitions = {
            topic: [(topic, number) for number in range(count)] for topic, count in known.items() if isinstance(count, int)
        }
        refused = {topic: classify(refusal) for topic, refusal in known.items() if isinstance(refusal, Refusal)}
        for record in records:
            if record.topic in refused:
                self._refuse(delivery, [record], refused[record.topic])
            else:
                choice = partitions[record.topic]
                record.partition = choice[record.spread % len(choice)]
                delivery.todo.append(record)
        delivery.hold()

    def _send(self, client: Client, delivery: Delivery) -> None:
        """Send a round of batches, and classify what was refused; raise Unavailable if it is the brokers' fault."""
        batches = delivery.next_round()
        refused = client.produce(batches)
        for partition, records in batches.items():
            delivery.acknowledge(partition, records, refused.get(partition, ()))
        for records_and_refusals in refused.values():
            self._classify(client, delivery, records_and_refusals)
        delivery.hold()

    def _classify(self, client: Client, delivery: Delivery, refused: Refused) -> None:
        """Fail or resend the refused records of one batch."""
        records = [record for record, _ in refused]
        blamed = [(record, classify(refusal)) for record, refusal in refused if refusal is not NOT_AT_FAULT]
        exact = all(is_of_the_record(refusal) for _, refusal in refused if refusal is not NOT_AT_FAULT)
        if not blamed:
            delivery.send_again(records, 2)
            return
        record, refused_for = blamed[0]
        if refused_for.scope == "sink":
            silent = all(refusal.code is None for _, refusal in refused)
            raise client.unavailable(refused_for.error) if silent else self._unavailable(record.topic, refused_for)
        if refused_for.scope == "topic":
            self._refuse(delivery, records, refused_for)
        elif len(blamed) > 1 and not exact:
            # The exact error is reported for single records only. If some are not at fault, smaller parts isolate the others.
            delivery.send_again(records, 2 if len(blamed) == len(refused) else 2 * len(blamed))
        else:
            delivery.send_again([record for record, refusal in refused if refusal is NOT_AT_FAULT])
            for record, classification in blamed:
                delivery.fail(record, _naming(record.topic, classification))

    def _refuse(self, delivery: Delivery, records: Sequence[Record], refused_for: Classification) -> None:
        """Fail all records of a topic that takes none; if it is the only topic, the sink is unavailable."""
        if self._records.topic is not None:
            raise self._unavailable(self._records.topic, refused_for)
        for record in records:
            delivery.fail(record, _naming(record.topic, refused_for))

    def _unavailable(self, topic: str, refused_for: Classification) -> Unavailable:
        return Unavailable(f"{self._settings.where}, {_naming(topic, refused_for).error}", refused_for.reason)

    def _look_up(self, client: Client, topic: str | None) -> None:
        """Look the only topic up, unless its first event is to create it; reach a leader; see once if we may write."""
        if topic is not None and not self._settings.allow_auto_create_topics:
            known = client.partitions({topic})[topic]
            if isinstance(known, Refusal):
                raise self._unavailable(topic, classify(known))
        client.ask()
        if topic is not None and not self._may_write:
            if describe(connection_options(self._settings), topic).may_write is False:
                raise self._unavailable(topic, classify(Refusal(UNAUTHORIZED)))
            self._may_write = True


def _naming(topic: str, refused_for: Classification) -> Classification:
    return refused_for._replace(error=f"topic {topic}: {refused_for.error}")
