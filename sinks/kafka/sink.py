"""Events as Kafka records, acknowledged by the brokers.

A delivery goes in rounds. In each round every partition gets at most one record batch, and the next round begins when the
outcome of all batches is known. This keeps the order: a batch is stored as a whole or not at all, so no event can overtake one
that failed. Events of one resource that go to different partitions go in different rounds. Usually one round is enough.

If a batch is rejected because of one record, it is split and resent until that record stands alone. Batches with several bad
records are split too, because kafka-python then reports only that each is invalid. If the brokers are the cause, the client is
closed (`sinks.kafka.client` tells why) and `open` makes a new one.
"""

from collections.abc import Mapping, Sequence
from itertools import count
from typing import ClassVar, Final

from bridge.sink import Entry, Failure, Reason, Unavailable
from sinks.classification import Classification
from sinks.kafka.client import Client
from sinks.kafka.errors import INVALID, NOT_AT_FAULT, UNAUTHORIZED, Refusal, classify
from sinks.kafka.metadata import IDLE_SECONDS
from sinks.kafka.names import Keys, Topics, problem_of
from sinks.kafka.preflight import About, preflight
from sinks.kafka.records import Partition, Record, record_of, spread
from sinks.kafka.settings import KafkaSettings

_UNLIMITED: Final = 1 << 30
_UNPLACED: Final = -1


class _Batch:
    """The records that go to a partition in one round.

    Args:
        room: Maximum bytes, unless one record alone is larger.
        most: Maximum number of records.

    Attributes:
        records: The records.
    """

    def __init__(self, room: int, most: int) -> None:
        self.records: list[Record] = []
        self._room = room
        self._most = most

    def takes(self, record: Record) -> bool:
        """Take a record, if there is room for it."""
        room, records = self._room - record.size, self.records
        if records and (room < 0 or len(records) >= self._most):
            return False
        self._room = room
        records.append(record)
        return True


class Delivery:
    """The state of one delivery.

    Args:
        limit: Maximum bytes of a record batch.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sizes: dict[Partition, int] = {}
        self._rejected: list[Failure] = []
        self._failed: list[tuple[Record, Reason, str]] = []
        # For each ordering key with a record to retry: the position of the first such record.
        self._waiting: dict[str, int] = {}
        self.todo: list[Record] = []
        self.delivered: set[int] = set()

    def next_round(self) -> dict[Partition, list[Record]]:
        """Take the next round: one batch per partition, and each ordering key in one partition only."""
        batches: dict[Partition, _Batch] = {}
        place: dict[str, Partition | None] = {}
        left: list[Record] = []
        for record in self.todo:
            partition = record.partition
            if place.setdefault(record.ordering_key, partition) == partition:
                batch = batches.get(partition)
                if batch is None:
                    batch = batches[partition] = _Batch(self._limit, self._sizes.get(partition, _UNLIMITED))
                if batch.takes(record):
                    continue
            # Later records of this ordering key must wait, too.
            place[record.ordering_key] = None
            left.append(record)
        self.todo = left
        return {partition: batch.records for partition, batch in batches.items()}

    def acknowledge(self, partition: Partition, records: Sequence[Record]) -> None:
        """Note acknowledged records, and let the next batch be larger again."""
        self.delivered.update([record.entry.seq for record in records])
        if partition in self._sizes:
            self._sizes[partition] *= 2

    def divide(self, partition: Partition, records: Sequence[Record], parts: int = 2) -> None:
        """Send records again, split into `parts` batches."""
        self._sizes[partition] = max(1, len(records) // parts)
        self.again(records)

    def again(self, records: Sequence[Record]) -> None:
        """Send records again, at their old position."""
        self.todo = sorted([*records, *self.todo], key=lambda record: record.place)

    def reject(self, record: Record, reason: Reason, words: str) -> None:
        """Note a record that will never succeed."""
        self._rejected.append(Failure.rejected(record.entry, reason, words))

    def retry(self, record: Record, reason: Reason, words: str) -> None:
        """Note a record to retry. Later records with its ordering key wait for it."""
        self._failed.append((record, reason, words))
        self._waiting[record.ordering_key] = min(record.place, self._waiting.get(record.ordering_key, record.place))

    def hold(self) -> None:
        """Hold the records that wait for an earlier one with their ordering key."""
        if self._waiting:
            held = {record.place for record in self.todo if self._waiting.get(record.ordering_key, record.place) < record.place}
            self._failed += [(record, "held", "") for record in self.todo if record.place in held]
            self.todo = [record for record in self.todo if record.place not in held]

    def failures(self) -> list[Failure]:
        """Return the failures."""
        return self._rejected + [
            Failure.held(record.entry)
            if self._waiting[record.ordering_key] < record.place
            else Failure.retry(record.entry, reason, words)
            for record, reason, words in self._failed
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
        self._topics = Topics(settings.topic)
        self._keys = Keys(settings.key)
        self._turns = count()
        self._client: Client | None = None
        self._may_write = False

    def open(self) -> None:
        """Connect, and look up the topic if it is fixed.

        Raises:
            Unavailable: One of these failed.
        """
        self.close()
        client = self._client = Client(self._settings, self._interval)
        try:
            client.connect()
            if self._topics.fixed is not None:
                self._look_for(client, self._topics.fixed)
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
        try:
            self._place(client, delivery, [self._record(place, entry) for place, entry in enumerate(entries)])
            while delivery.todo:
                self._send(client, delivery, delivery.next_round())
        except Unavailable as error:
            # Acknowledgements of earlier rounds are known only here.
            error.delivered = delivery.delivered
            raise
        return delivery.failures()

    def check_connection(self) -> None:
        """Ask now and then whether a broker is still there.

        Raises:
            Unavailable: None has answered.
        """
        self._opened().notice()

    def close(self) -> None:
        """Drop all connections without waiting for requests in flight."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def remarks(self, max_event_bytes: int) -> Sequence[str]:
        """Report the state of the topic, and limits that are too small for our events. Writes nothing."""
        about = About() if self._client is None else self._client.describe(self._topics.fixed)
        return list(preflight(self._settings, about, max_event_bytes))

    def _opened(self) -> Client:
        if self._client is None:
            raise Unavailable("the sink is not open", "internal")
        return self._client

    def _record(self, place: int, entry: Entry) -> Record:
        event = entry.fields
        ordering_key = event.resource_uri if self._settings.ordering == "resource" else event.uuid
        return record_of(entry, place, ordering_key, (self._topics.name(event), _UNPLACED), self._keys.key(event))

    def _place(self, client: Client, delivery: Delivery, records: Sequence[Record]) -> None:
        """Give each record its partition; fail those whose topic takes none."""
        names = {record.partition[0] for record in records}
        wrong = {name: Refusal(INVALID, problem) for name in names if (problem := problem_of(name))}
        found = wrong | client.partitions(names - wrong.keys())
        places = {
            topic: [(topic, number) for number in range(known)] for topic, known in found.items() if isinstance(known, int)
        }
        turn = next(self._turns)
        for record in records:
            topic = record.partition[0]
            known = found[topic]
            if isinstance(known, Refusal):
                self._refuse(delivery, topic, [record], classify(known))
            else:
                record.partition = places[topic][(turn if record.key is None else spread(record.key)) % known]
                delivery.todo.append(record)
        delivery.hold()

    def _send(self, client: Client, delivery: Delivery, batches: Mapping[Partition, Sequence[Record]]) -> None:
        """Send a round of batches, and classify what was refused.

        Raises:
            Unavailable: It is the brokers' fault.
        """
        outcomes = client.produce(batches)
        for partition, outcome in outcomes.items():
            refused = {index for index, refusal in enumerate(outcome) if refusal is not None}
            stored = [record for index, record in enumerate(batches[partition]) if index not in refused]
            if stored:
                delivery.acknowledge(partition, stored)
        for partition, outcome in outcomes.items():
            refused_records = [(batches[partition][index], refusal) for index, refusal in enumerate(outcome) if refusal]
            if refused_records:
                self._classify(client, delivery, partition, refused_records)
        delivery.hold()

    def _classify(
        self, client: Client, delivery: Delivery, partition: Partition, refused: Sequence[tuple[Record, Refusal]]
    ) -> None:
        blamed = [(record, classify(refusal)) for record, refusal in refused if refusal is not NOT_AT_FAULT]
        if not blamed:
            delivery.divide(partition, [record for record, _ in refused])
            return
        topic = partition[0]
        refused_for = blamed[0][1]
        if refused_for.scope == "sink":
            silent = all(refusal.code is None for _, refusal in refused)
            raise client.unavailable(refused_for.error) if silent else self._unavailable(refused_for, topic)
        if refused_for.scope == "topic":
            self._refuse(delivery, topic, [record for record, _ in refused], refused_for)
        elif len(blamed) > 1:
            # The exact error is reported for single records only. If some are not at fault, smaller parts isolate the others.
            parts = 2 if len(blamed) == len(refused) else 2 * len(blamed)
            delivery.divide(partition, [record for record, _ in refused], parts)
        else:
            delivery.again([record for record, refusal in refused if refusal is NOT_AT_FAULT])
            self._fail(delivery, topic, blamed[0][0], refused_for)

    def _refuse(self, delivery: Delivery, topic: str, records: Sequence[Record], refused_for: Classification) -> None:
        """A topic takes nothing: if there is but one, that is the sink's trouble, else that of the events for it."""
        if self._topics.fixed is not None:
            raise self._unavailable(refused_for, topic)
        for record in records:
            self._fail(delivery, topic, record, refused_for)

    def _fail(self, delivery: Delivery, topic: str, record: Record, refused_for: Classification) -> None:
        fail = delivery.reject if refused_for.outcome == "rejected" else delivery.retry
        fail(record, refused_for.reason, f"topic {topic}: {refused_for.error}")

    def _unavailable(self, refused_for: Classification, topic: str) -> Unavailable:
        return Unavailable(f"{self._settings.where}, topic {topic}: {refused_for.error}", refused_for.reason)

    def _look_for(self, client: Client, topic: str) -> None:
        """See whether the only topic is there, unless its first event is to create it, and once whether we may write to it."""
        if not self._settings.allow_auto_create_topics:
            found = client.partitions([topic])[topic]
            if isinstance(found, Refusal):
                raise self._unavailable(classify(found), topic)
        if not self._may_write:
            if client.describe(topic).may_write is False:
                raise self._unavailable(classify(Refusal(UNAUTHORIZED)), topic)
            self._may_write = True
