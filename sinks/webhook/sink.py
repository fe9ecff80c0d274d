"""Events as HTTP requests: one event each, or a batch.

Acknowledged means answered with 2xx; `sinks.webhook.errors` classifies all other results. The requests of one resource are sent
one after another. A batch that is refused is sent again in halves.
"""

import uuid
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import ClassVar

from bridge.event import NAMESPACE
from bridge.sink import Entry, Failure, Unavailable
from sinks.classification import Classification
from sinks.ordering import group
from sinks.webhook.client import Client, NoResponse, Response
from sinks.webhook.errors import classify, classify_error
from sinks.webhook.settings import WebhookSettings, read_url, secrets_of


class Faults:
    """Finds out who is at fault for failed requests: their events, or the receiver.

    The receiver is at fault if a delivery with events that fail for an unknown reason shows that
    - it answers nothing: they got no answer, by a timeout or a closed connection;
    - it accepts nothing: they are forbidden (403);
    - it has accepted nothing since the sink was opened: they are rejected, or ten have failed.

    They go last in the next delivery, so that a few of them do not keep the others from being sent. If the receiver takes
    those, the events are at fault, and are remembered.

    Attributes:
        late: Events that go last in the next delivery.
        delivered: The events of this delivery that were accepted.
        unavailable: The failure that ended the delivery.
    """

    def __init__(self) -> None:
        self.late: frozenset[int] = frozenset()
        self._known: frozenset[int] = frozenset()
        self.opened()
        self.begin(0)

    def opened(self) -> None:
        """Note that the sink was opened."""
        self._proven = False
        self._refused = 0

    def begin(self, patience: int) -> None:
        """Begin a delivery; `patience` is the number of requests in a row without an answer that ends it."""
        self._patience = patience
        self._answered = False
        self._silent = 0
        self._unanswered: set[int] = set()
        self.delivered: set[int] = set()
        self._failed: dict[int, Classification] = {}
        self.unavailable: Classification | None = None

    def note(self, seqs: Sequence[int], failed: Classification | None, *, answered: bool) -> None:
        """Note how the request with these events ended."""
        if answered:
            self._answered, self._silent = True, 0
        if failed is None:
            self._refused = 0
            self.delivered.update(seqs)
            return
        self._failed.update(dict.fromkeys(seqs, failed))
        if answered:
            doubtful = not self.delivered and (not self._proven or failed.reason == "unauthorized")
            self._refused += doubtful and not self._known.issuperset(seqs)
        else:
            self._unanswered.update(seqs)
            expected = self._known | self.late if self._answered else self._known
            self._silent += not expected.issuperset(seqs)
        if failed.scope == "sink" or self._silent >= self._patience or self._refused >= 10:
            self.unavailable = self.unavailable or failed

    def failure(self, entry: Entry) -> Failure:
        """Return the failure of an event that was not accepted."""
        failed = self._failed.get(entry.seq)
        return failed.failure(entry) if failed else Failure.held(entry)

    def conclude(self) -> None:
        """End the delivery.

        Raises:
            Unavailable: The receiver is at fault.
        """
        self._proven |= bool(self.delivered)
        doubts = (failed for seq, failed in self._failed.items() if seq not in self._known and self._is_doubtful(seq, failed))
        if (error := self.unavailable or next(doubts, None)) is not None:
            self.late |= self._failed.keys()
            raise Unavailable(error.error, error.reason, retry_after=error.retry_after, delivered=self.delivered)
        retried = {seq for seq, failed in self._failed.items() if failed.outcome == "retry" and self._proven}
        known = (self._known | retried | self._unanswered | (self.late if self._answered else frozenset())) - self.delivered
        self.late, self._known = frozenset(), known if len(known) <= 10_000 else frozenset()

    def _is_doubtful(self, seq: int, failed: Classification) -> bool:
        if seq in self._unanswered:
            return not self._answered
        rejected = failed.outcome == "rejected" and not self._proven
        return not self.delivered and (rejected or failed.reason == "unauthorized")


class WebhookSink:
    """Sends events as HTTP requests.

    Args:
        name: The sink's name in the configuration.
        settings: Its settings.
    """

    Settings: ClassVar = WebhookSettings

    def __init__(self, name: str, settings: WebhookSettings) -> None:
        self.name = name
        self._settings = settings
        self._where = read_url(settings.url).netloc or ""
        self._secrets = secrets_of(settings)
        self._client: Client | None = None
        self._faults = Faults()

    @property
    def delivered(self) -> set[int]:
        """The events that were accepted so far in this call of `deliver`."""
        return self._faults.delivered

    def open(self) -> None:
        """Read the certificates, and see if a connection can be opened, without a request.

        It is closed again: a receiver that serves one connection at a time would serve nobody else.

        Raises:
            Unavailable: A certificate can't be read, or the receiver can't be reached.
        """
        self.close()
        self._faults.opened()
        self._client = Client(self._settings)
        if (error := self._client.connect()) is not None:
            self.close()
            failed = classify_error(error, self._where, self._settings.timeout)
            raise Unavailable(failed.error, failed.reason)

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        """Send all entries.

        Raises:
            Unavailable: The receiver is not available; with the events that it has acknowledged.
        """
        if self._client is None:
            raise Unavailable("the sink is not open", "internal")
        faults, groups = self._faults, self._groups(entries)
        faults.begin(max(2, min(len(groups), self._settings.connections)))
        held: set[Hashable] = set()

        def next_request() -> tuple[tuple[deque[list[Entry]], list[Entry]], str, bytes] | None:
            while groups and faults.unavailable is None:
                requests = groups.popleft()
                while requests:
                    if request := [entry for entry in requests.popleft() if self._key(entry) not in held]:
                        return (requests, request), _identity(request), self._body(request)
            return None

        with closing(self._client.send(next_request)) as ends:
            for (requests, request), end in ends:
                groups.appendleft(requests)
                failed = self._classify(end)
                seqs = [entry.seq for entry in request]
                if failed is not None and len(request) > 1 and _is_refusal(failed):
                    middle = len(request) // 2
                    requests.extendleft((request[middle:], request[:middle]))
                    seqs = []
                elif failed is not None:
                    first = {self._key(entry): entry.seq for entry in reversed(request)}
                    held.update(first if failed.outcome == "retry" else ())
                    seqs = [*first.values()]
                faults.note(seqs, failed, answered=isinstance(end, Response))
        faults.conclude()
        return [faults.failure(entry) for entry in entries if entry.seq not in faults.delivered]

    def close(self) -> None:
        """Close all connections. A delivery in another thread fails soon."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _classify(self, end: Response | NoResponse) -> Classification | None:
        if isinstance(end, NoResponse):
            return classify_error(end, self._where, self._settings.timeout)
        return classify(end, self._where, self._secrets, datetime.now(UTC)) if end.status // 100 != 2 else None

    def _key(self, entry: Entry) -> Hashable:
        """Return the ordering key of an entry."""
        return entry.fields.resource_uri if self._settings.ordering == "resource" else entry.seq

    def _groups(self, entries: Sequence[Entry]) -> deque[deque[list[Entry]]]:
        """Divide the entries into groups that may be sent side by side, of requests that are sent one after another."""
        batch, ordered = self._settings.batch, self._settings.ordering == "resource"
        if self._settings.format == "event":
            groups = [deque([entry] for entry in entries_of_one) for entries_of_one in group(entries, ordered=ordered)]
        else:
            requests = list(_batches(entries, batch.max_events, batch.max_bytes))
            groups = [deque(requests)] if ordered and requests else [deque([request]) for request in requests]
        return deque(sorted(groups, key=lambda requests: requests[0][0].seq in self._faults.late))

    def _body(self, request: Sequence[Entry]) -> bytes:
        match self._settings.format:
            case "event":
                return request[0].json
            case "batch":
                return b"[" + b",".join([entry.json for entry in request]) + b"]"
            case "lines":
                return b"".join([entry.json + b"\n" for entry in request])


def _is_refusal(failed: Classification) -> bool:
    """Tell whether a part of a batch may be accepted."""
    return failed.scope == "event" and (failed.outcome == "rejected" or failed.reason == "unauthorized")


def _batches(entries: Sequence[Entry], max_events: int, max_bytes: int) -> Iterator[list[Entry]]:
    """Cut entries into batches of at most `max_events` and `max_bytes`, but at least one event."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        size += len(entry.json)
        if batch and (len(batch) >= max_events or size > max_bytes):
            yield batch
            batch, size = [], len(entry.json)
        batch.append(entry)
    if batch:
        yield batch


def _identity(request: Sequence[Entry]) -> str:
    """Return the id of a request, the same at each repetition: the event's uuid, or one made of those of the batch."""
    if len(request) == 1:
        return request[0].fields.uuid
    return str(uuid.uuid5(NAMESPACE, ",".join([entry.fields.uuid for entry in request])))
