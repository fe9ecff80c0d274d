"""Events as HTTP requests: one event each, or a batch.

Acknowledged means answered with 2xx; `sinks.webhook.errors` classifies all other results. Requests are sent by workers, each
with a connection and a thread. The events of one resource are sent by one worker, in order.

A request without an answer, by a timeout or a closed connection, may be caused by the event or by the receiver. If the receiver
answered other requests of the same delivery, the event is retried. If it answered none, the sink is unavailable. Those events
then go last in the next delivery, so that a few that never get an answer do not keep the others from being sent. If the
receiver answers the next delivery, those events are retried. Events that are known to get no answer by their own fault are
remembered.
"""

import threading
import uuid
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from typing import ClassVar, Literal

from bridge.event import NAMESPACE
from bridge.sink import Entry, Failure, Unavailable
from bridge.tls import tls_context
from sinks.classification import Classification
from sinks.ordering import group
from sinks.webhook.client import TimedClient
from sinks.webhook.errors import classify, classify_exception
from sinks.webhook.settings import WebhookSettings, request_headers
from sinks.webhook.url import NoConnection, read_url


class Delivery:
    """The state of one delivery, shared by its workers.

    Args:
        groups: Groups that may be sent side by side, of requests that are sent one after another.
        late: Events that got no answer in the deliveries before.
        slow: Events that are known to get no answer.
        patience: Stop after this many consecutive requests without an answer (without those of events known to get none).
    """

    def __init__(
        self, groups: Sequence[Sequence[list[Entry]]], late: frozenset[int], slow: frozenset[int], patience: int
    ) -> None:
        self._lock = threading.Lock()
        self._groups = deque(groups)
        self._late = late
        self._slow = slow
        self._patience = patience
        self._unanswered = 0
        self.delivered: set[int] = set()
        self.timed_out: set[int] = set()
        self.failures: list[Failure] = []
        self.answered = False
        self.stopped = False
        self.silent: Classification | None = None
        self.unavailable: Classification | Exception | None = None

    def next_group(self) -> Sequence[list[Entry]] | None:
        """Take the next group; None if there is none, or after a stop."""
        with self._lock:
            return self._groups.popleft() if self._groups and not self.stopped else None

    def record(self, request: Sequence[Entry], failed: Classification | None, *, answered: bool) -> None:
        """Note the result of a request, except for the failures of its events."""
        seqs = {entry.seq for entry in request}
        with self._lock:
            if answered:
                self.answered, self._unanswered = True, 0
            if failed is None:
                self.delivered |= seqs
            elif failed.scope == "sink":
                self._stop(failed)
            elif not answered:
                self.timed_out |= seqs
                self.silent = failed
                expected = self._slow | self._late if self.answered else self._slow
                self._unanswered += not seqs <= expected
                self.stopped |= self._unanswered >= self._patience

    def fail(self, bug: Exception) -> None:
        """End the delivery because of a bug."""
        with self._lock:
            self._stop(bug)

    def _stop(self, error: Classification | Exception) -> None:
        self.stopped = True
        self.unavailable = self.unavailable or error


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
        self._url = read_url(settings.url)
        self._where = self._url.netloc or ""
        self._headers = request_headers(settings)
        self._clients: list[TimedClient] = []
        self._late: frozenset[int] = frozenset()
        self._slow: frozenset[int] = frozenset()

    def open(self) -> None:
        """Read the certificates and connect, without a request.

        Raises:
            Unavailable: A certificate can't be read, or the receiver can't be reached.
        """
        self.close()
        settings = self._settings
        context = tls_context(settings) if self._url.scheme == "https" else None
        try:
            clients = [TimedClient(self._url, settings.timeout, context) for _ in range(settings.connections)]
            clients[0].connect()
        except NoConnection as error:
            failed = classify_exception(error, self._where, settings.timeout)
            raise Unavailable(failed.error, failed.reason) from error
        self._clients = clients

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        """Send all entries.

        Raises:
            Unavailable: The receiver is not available; with the events that it has acknowledged.
        """
        clients = self._clients
        if not clients:
            raise Unavailable("the sink is not open", "internal")
        groups = self._groups(entries)
        delivery = Delivery(groups, self._late, self._slow, patience=max(2, min(len(groups), len(clients))))
        self.delivered = delivery.delivered
        # This thread is the first worker. The others are daemons, so that the end of the process does not wait for a request.
        workers = [
            threading.Thread(target=self._work, args=(delivery, client), daemon=True, name=f"{self.name} worker")
            for client in clients[1 : len(groups)]
        ]
        try:
            for worker in workers:
                worker.start()
        except RuntimeError as error:  # The system is out of threads.
            delivery.fail(error)
        self._work(delivery, clients[0])
        for worker in workers:
            if worker.ident is not None:
                worker.join()
        return self._conclude(delivery, len(entries))

    def close(self) -> None:
        """Close all connections. Requests in other threads fail soon."""
        clients, self._clients = self._clients, []
        for client in clients:
            client.close()

    def _groups(self, entries: Sequence[Entry]) -> list[list[list[Entry]]]:
        """Divide the entries into groups that may be sent side by side, each a list of requests."""
        settings = self._settings
        if settings.format == "event":
            ordered = settings.ordering == "resource"
            groups = [[[entry] for entry in entries_of_one] for entries_of_one in group(entries, ordered=ordered)]
        else:
            requests = list(_batches(entries, settings.batch.max_events, settings.batch.max_bytes))
            groups = [requests] if settings.ordering == "resource" else [[request] for request in requests]
        groups.sort(key=lambda requests: bool(requests) and requests[0][0].seq in self._late)
        return groups

    def _key(self, entry: Entry) -> Hashable:
        """Return the ordering key of an entry."""
        return entry.fields.resource_uri if self._settings.ordering == "resource" else entry.seq

    def _work(self, delivery: Delivery, client: TimedClient) -> None:
        try:
            while (requests := delivery.next_group()) is not None:
                self._send_group(delivery, client, requests)
        except Exception as bug:  # noqa: BLE001 - `deliver` raises it in the forwarder's thread
            delivery.fail(bug)

    def _send_group(self, delivery: Delivery, client: TimedClient, requests: Sequence[list[Entry]]) -> None:
        """Send requests one after another. Hold events behind a failed one; send a rejected batch again in halves."""
        todo = deque(requests)
        waiting: set[Hashable] = set()
        while todo and not delivery.stopped:
            request = todo.popleft()
            if waiting:
                delivery.failures.extend([Failure.held(entry) for entry in request if self._key(entry) in waiting])
                request = [entry for entry in request if self._key(entry) not in waiting]
            if not request:
                continue
            failed, answered = self._send(client, request)
            delivery.record(request, failed, answered=answered)
            if failed is None or failed.scope == "sink":
                continue
            if failed.outcome == "retry":
                for entry in request:
                    held = self._key(entry) in waiting
                    delivery.failures.append(Failure.held(entry) if held else failed.failure(entry))
                    waiting.add(self._key(entry))
            elif len(request) > 1:
                middle = len(request) // 2
                todo.extendleft((request[middle:], request[:middle]))
            else:
                delivery.failures.append(failed.failure(request[0]))

    def _send(self, client: TimedClient, request: Sequence[Entry]) -> tuple[Classification | None, bool]:
        """Send a request; return its classification, None if it was accepted, and True if there was an answer."""
        settings = self._settings
        headers = {**self._headers, "webhook-id": _identity(request)}
        try:
            answer = client.request(settings.method, headers, _body(request, settings.format))
        except (NoConnection, OSError, HTTPException) as error:
            return classify_exception(error, self._where, settings.timeout), False
        return classify(answer, self._where, datetime.now(UTC)), True

    def _conclude(self, delivery: Delivery, count: int) -> Sequence[Failure]:
        """Return the failures of a delivery of `count` events. The module's docstring explains timeouts."""
        error = delivery.unavailable
        if isinstance(error, Exception):
            raise error
        untried = len(delivery.delivered) + len(delivery.failures) < count
        if error is None and (untried or not (delivery.answered or delivery.timed_out <= self._slow)):
            error = delivery.silent
        if error is not None:
            self._late |= delivery.timed_out
            raise Unavailable(error.error, error.reason, retry_after=error.retry_after, delivered=delivery.delivered)
        unanswered = self._slow | delivery.timed_out | (self._late if delivery.answered else frozenset())
        slow = unanswered - delivery.delivered
        self._late, self._slow = frozenset(), slow if len(slow) <= 10_000 else frozenset()
        return delivery.failures


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
