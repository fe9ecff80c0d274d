"""Events as HTTP requests: one event each, or a batch.

Acknowledged means answered with 2xx; `sinks.webhook.errors` classifies all other results. The requests of one resource are sent
one after another. A batch that is refused is sent again in halves.

A failed request may be the event's fault or the receiver's. The receiver is at fault, and the sink unavailable, if
- nothing was answered in a delivery with requests that got no answer, by a timeout or a closed connection;
- nothing was accepted in a delivery with requests that are forbidden (403);
- nothing was accepted since the sink was opened, and an event was rejected, or ten failed, whatever the receiver says.

The failed events of such a delivery go last in the next one, so that a few of them do not keep the others from being sent. If
the receiver takes those, the failures are the events' own. Events that are known to fail by their own fault are remembered.
"""

import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import ClassVar, Final, Literal

from bridge.event import NAMESPACE
from bridge.sink import Entry, Failure, Unavailable
from sinks.classification import Classification
from sinks.ordering import group
from sinks.webhook.client import Client, NoResponse, Request
from sinks.webhook.errors import classify, classify_error
from sinks.webhook.settings import WebhookSettings, read_url, secrets_of

_MAX_REFUSALS: Final = 10
"""After that many refused events, and none accepted, the rest of a delivery is not tried."""

_Group = deque[list[Entry]]
"""Requests that are sent one after another."""


class Delivery:
    """The state of one delivery.

    Args:
        groups: Groups that may be sent side by side.
        ordered: A failed event holds later ones of its resource.
        proven: The receiver has accepted something since the sink was opened.
        refused: Events that were refused since anything was accepted; it is added to.
        late: Events that failed in the deliveries before, by the receiver's fault perhaps.
        known: Events that are known to fail by their own fault.
        patience: Stop after this many consecutive requests without an answer (without those of events known to get none).
    """

    def __init__(
        self,
        groups: Iterable[_Group],
        *,
        ordered: bool,
        proven: bool,
        refused: set[int],
        late: frozenset[int],
        known: frozenset[int],
        patience: int,
    ) -> None:
        self._groups = deque(groups)
        self._ordered = ordered
        self._proven = proven
        self._late = late
        self._known = known
        self._patience = patience
        self._refused = refused
        self._silent = 0
        self._held: set[str] = set()
        self._failed: dict[int, tuple[Classification, bool]] = {}
        self.delivered: set[int] = set()
        self.answered = False
        self.unavailable: Classification | None = None

    def next_request(self) -> tuple[_Group, list[Entry]] | None:
        """Return a request, without events that wait behind a failed one, and its group; None if there is none now."""
        while self._groups and self.unavailable is None:
            group = self._groups.popleft()
            while group:
                request = group.popleft()
                if self._held:
                    request = [entry for entry in request if entry.fields.resource_uri not in self._held]
                if request:
                    return group, request
        return None

    def record(self, group: _Group, request: list[Entry], failed: Classification | None, *, answered: bool) -> None:
        """Note the end of a request."""
        self._groups.appendleft(group)
        self.answered |= answered
        self._silent *= not answered
        if failed is None:
            self.delivered.update(entry.seq for entry in request)
            return
        refused = answered and (failed.outcome == "rejected" or failed.reason == "unauthorized")
        if refused and failed.scope == "event" and len(request) > 1:
            middle = len(request) // 2
            group.extendleft((request[middle:], request[:middle]))
            return
        for entry in request:
            if entry.fields.resource_uri not in self._held:
                self._failed[entry.seq] = failed, answered
            if self._ordered and failed.outcome == "retry":
                self._held.add(entry.fields.resource_uri)
        if answered:
            if not self.delivered and (failed.reason == "unauthorized" or not self._proven):
                self._refused.update(entry.seq for entry in request if entry.seq not in self._known)
        else:
            expected = self._known | self._late if self.answered else self._known
            self._silent += any(entry.seq not in expected for entry in request)
        if failed.scope == "sink" or self._silent >= self._patience or len(self._refused) >= _MAX_REFUSALS:
            self.unavailable = self.unavailable or failed

    def _is_receivers_fault(self, failed: Classification, *, answered: bool) -> bool:
        if not answered:
            return not self.answered
        refused = failed.outcome == "rejected" and not self._proven
        return not self.delivered and (failed.reason == "unauthorized" or refused)

    def conclude(self) -> Classification | None:
        """Return the failure that makes the sink unavailable, if there is one; the module's docstring has the rules."""
        unknown = (end for seq, end in self._failed.items() if seq not in self._known)
        faults = (failed for failed, answered in unknown if self._is_receivers_fault(failed, answered=answered))
        return self.unavailable or next(faults, None)

    def failed(self, *outcomes: str) -> set[int]:
        """Return the events that failed with one of these outcomes."""
        return {seq for seq, (failed, _) in self._failed.items() if failed.outcome in outcomes}

    def failure(self, entry: Entry) -> Failure:
        """Return the failure of an event that was not delivered."""
        return self._failed[entry.seq][0].failure(entry) if entry.seq in self._failed else Failure.held(entry)


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
        self._client: Client[tuple[_Group, list[Entry]]] | None = None
        self._proven = False
        self._refused: set[int] = set()
        self._late: frozenset[int] = frozenset()
        self._known: frozenset[int] = frozenset()

    def open(self) -> None:
        """Read the certificates, and see if a connection can be opened, without a request.

        It is closed again: a receiver that serves one connection at a time would serve nobody else.

        Raises:
            Unavailable: A certificate can't be read, or the receiver can't be reached.
        """
        self.close()
        self._proven, self._refused = False, set()
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
        client, settings = self._client, self._settings
        if client is None:
            raise Unavailable("the sink is not open", "internal")
        groups = self._groups(entries)
        delivery = Delivery(
            groups,
            ordered=settings.ordering == "resource",
            proven=self._proven,
            refused=self._refused,
            late=self._late,
            known=self._known,
            patience=max(2, min(len(groups), settings.connections)),
        )
        self.delivered = delivery.delivered

        def next_request() -> Request[tuple[_Group, list[Entry]]] | None:
            if (found := delivery.next_request()) is None:
                return None
            return Request(found, _identity(found[1]), _body(found[1], settings.format))

        for (group_, request), end in client.send(next_request):
            if isinstance(end, NoResponse):
                delivery.record(group_, request, classify_error(end, self._where, settings.timeout), answered=False)
            else:
                failed = classify(end, self._where, self._secrets, datetime.now(UTC))
                delivery.record(group_, request, failed, answered=True)
        self._conclude(delivery)
        return [delivery.failure(entry) for entry in entries if entry.seq not in delivery.delivered]

    def close(self) -> None:
        """Close all connections. A delivery in another thread fails soon."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _groups(self, entries: Sequence[Entry]) -> list[_Group]:
        """Divide the entries into groups that may be sent side by side."""
        settings = self._settings
        ordered = settings.ordering == "resource"
        if settings.format == "event":
            groups = [deque([entry] for entry in entries_of_one) for entries_of_one in group(entries, ordered=ordered)]
        else:
            requests = list(_batches(entries, settings.batch.max_events, settings.batch.max_bytes))
            groups = [deque(requests)] if ordered and requests else [deque([request]) for request in requests]
        groups.sort(key=lambda requests: requests[0][0].seq in self._late)
        return groups

    def _conclude(self, delivery: Delivery) -> None:
        """Remember who is at fault for what failed; raise `Unavailable` if it is the receiver."""
        if delivery.delivered:
            self._proven, self._refused = True, set()
        if (error := delivery.conclude()) is not None:
            self._late |= delivery.failed("retry", "rejected")
            raise Unavailable(error.error, error.reason, retry_after=error.retry_after, delivered=delivery.delivered)
        known = self._known | (self._late if delivery.answered else frozenset())
        if not self._refused:
            known |= delivery.failed("retry")
        known -= delivery.delivered
        self._late, self._known = frozenset(), known if len(known) <= 10_000 else frozenset()


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


def _body(request: Sequence[Entry], form: Literal["event", "batch", "lines"]) -> bytes:
    if form == "event":
        return request[0].json
    if form == "batch":
        return b"[" + b",".join([entry.json for entry in request]) + b"]"
    return b"".join([entry.json + b"\n" for entry in request])


def _identity(request: Sequence[Entry]) -> str:
    """Return the id of a request, the same at each repetition: the event's uuid, or one made of those of the batch."""
    if len(request) == 1:
        return request[0].fields.uuid
    return str(uuid.uuid5(NAMESPACE, ",".join([entry.fields.uuid for entry in request])))
