"""Events as HTTP requests: one event each, or a batch.

Acknowledged means answered with 2xx; what everything else means is decided in `sinks.webhook.errors`. Requests run in lanes,
one connection and one thread each; the events of one resource stay in one lane, in order.

A request without an answer is the hardest case, be it that time is up or that the connection is cut: is it the event or the
receiver? If the receiver answered others in the same call, it is the event. If it answered none, it is the receiver; but then
those events go last in the next call, so that a few that never get an answer can't keep the others from being tried. If the
receiver answers the next call, it was them. What was the event's fault once remains so when it is tried alone.
"""

import threading
import uuid
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from typing import ClassVar, Final, Literal

from bridge.event import NAMESPACE
from bridge.sink import Entry, Failure, Unavailable
from bridge.tls import tls_context
from sinks.classification import Classification
from sinks.webhook.client import NoConnection, TimedClient, read_url
from sinks.webhook.errors import classify, classify_exception
from sinks.webhook.settings import WebhookSettings, request_headers

_MAX_SLOW: Final = 10_000
"""How many events that get no answer by their own fault are remembered; beyond that it is learned anew."""


class _Call:
    """What one `deliver` has come to so far; its lanes share it.

    Args:
        groups: Requests that have to be sent one after another, as groups that may be sent side by side.
        late: Events that got no answer in the calls before this one, whoever's fault it was.
        slow: Events that are known to get none by their own fault.
        patience: After how many requests without an answer in between nothing more is sent.
    """

    def __init__(
        self, groups: Sequence[Sequence[list[Entry]]], late: frozenset[int], slow: frozenset[int], patience: int
    ) -> None:
        self._lock = threading.Lock()
        self._groups = deque(groups)
        self._late = late
        self._slow = slow
        self._patience = patience
        self._silence = 0
        self.delivered: set[int] = set()
        self.timed_out: set[int] = set()
        self.failures: list[Failure] = []
        self.answered = False
        self.stopped = False
        self.silent: Classification | None = None
        self.trouble: Classification | Exception | None = None

    def next_group(self) -> Sequence[list[Entry]] | None:
        """Take the next group; None if there is none or nothing more is to be sent."""
        with self._lock:
            return self._groups.popleft() if self._groups and not self.stopped else None

    def record(self, request: Sequence[Entry], failed: Classification | None, *, answered: bool) -> None:
        """Note the result of a request, except for the failures of its events."""
        seqs = {entry.seq for entry in request}
        with self._lock:
            if answered:
                self.answered, self._silence = True, 0
            if failed is None:
                self.delivered |= seqs
            elif failed.scope == "sink":
                self._stop(failed)
            elif not answered:
                self.timed_out |= seqs
                self.silent = failed
                expected = self._slow | self._late if self.answered else self._slow
                self._silence += not seqs <= expected
                self.stopped |= self._silence >= self._patience

    def fail(self, bug: Exception) -> None:
        """End the call because of a bug."""
        with self._lock:
            self._stop(bug)

    def _stop(self, trouble: Classification | Exception) -> None:
        self.stopped = True
        self.trouble = self.trouble or trouble


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
            Unavailable: Either is not possible.
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
            Unavailable: The receiver is not available, with what it has acknowledged.
        """
        clients = self._clients
        if not clients:
            raise Unavailable("the sink is not open", "internal")
        groups = self._groups(entries)
        call = _Call(groups, self._late, self._slow, patience=max(2, min(len(groups), len(clients))))
        # The first lane is this thread. The others are daemons, so that the end of the process never waits for a request.
        lanes = [
            threading.Thread(target=self._lane, args=(call, client), daemon=True, name=f"{self.name} lane")
            for client in clients[1 : len(groups)]
        ]
        try:
            for lane in lanes:
                lane.start()
        except RuntimeError as error:  # The system has no thread to spare.
            call.fail(error)
        self._lane(call, clients[0])
        for lane in lanes:
            if lane.ident is not None:
                lane.join()
        return self._conclude(call, len(entries))

    def close(self) -> None:
        """Close all connections. Requests under way in another thread fail soon."""
        clients, self._clients = self._clients, []
        for client in clients:
            client.close()

    def _groups(self, entries: Sequence[Entry]) -> list[list[list[Entry]]]:
        """Divide the entries into requests, and those into groups that may be sent side by side."""
        settings = self._settings
        if settings.format == "event":
            by_key: dict[Hashable, list[list[Entry]]] = {}
            for entry in entries:
                by_key.setdefault(self._key(entry), []).append([entry])
            groups = list(by_key.values())
        else:
            requests = list(_batches(entries, settings.batch.max_events, settings.batch.max_bytes))
            groups = [requests] if settings.ordering == "resource" else [[request] for request in requests]
        groups.sort(key=lambda group: bool(group) and group[0][0].seq in self._late)
        return groups

    def _key(self, entry: Entry) -> Hashable:
        """What an entry has in common with those that must not overtake it."""
        return entry.fields.resource_uri if self._settings.ordering == "resource" else entry.seq

    def _lane(self, call: _Call, client: TimedClient) -> None:
        try:
            while (group := call.next_group()) is not None:
                self._send_group(call, client, group)
        except Exception as bug:  # noqa: BLE001 - it is raised again by `deliver`, in the forwarder's thread
            call.fail(bug)

    def _send_group(self, call: _Call, client: TimedClient, group: Sequence[list[Entry]]) -> None:
        """Send requests one after another; what waits for an earlier event is held, and a rejected batch is sent in halves."""
        todo = deque(group)
        waiting: set[Hashable] = set()
        while todo and not call.stopped:
            request = todo.popleft()
            if waiting:
                call.failures.extend([Failure.held(entry) for entry in request if self._key(entry) in waiting])
                request = [entry for entry in request if self._key(entry) not in waiting]
            if not request:
                continue
            failed, answered = self._send(client, request)
            call.record(request, failed, answered=answered)
            if failed is None or failed.scope == "sink":
                continue
            if failed.outcome == "retry":
                for entry in request:
                    held = self._key(entry) in waiting
                    call.failures.append(Failure.held(entry) if held else failed.failure(entry))
                    waiting.add(self._key(entry))
            elif len(request) > 1:
                middle = len(request) // 2
                todo.extendleft((request[middle:], request[:middle]))
            else:
                call.failures.append(failed.failure(request[0]))

    def _send(self, client: TimedClient, request: Sequence[Entry]) -> tuple[Classification | None, bool]:
        """Send a request; return its classification, None if it was accepted, and True if there was an answer."""
        settings = self._settings
        headers = {**self._headers, "webhook-id": _identity(request)}
        try:
            answer = client.request(settings.method, headers, _body(request, settings.format))
        except (NoConnection, OSError, HTTPException) as error:
            return classify_exception(error, self._where, settings.timeout), False
        return classify(answer, self._where, datetime.now(UTC)), True

    def _conclude(self, call: _Call, count: int) -> Sequence[Failure]:
        """Say what a call for `count` events has come to; the module's docstring explains timeouts."""
        trouble = call.trouble
        if isinstance(trouble, Exception):
            raise trouble
        untried = len(call.delivered) + len(call.failures) < count
        if trouble is None and (untried or not (call.answered or call.timed_out <= self._slow)):
            trouble = call.silent
        if trouble is not None:
            self._late |= call.timed_out
            raise Unavailable(trouble.error, trouble.reason, retry_after=trouble.retry_after, delivered=call.delivered)
        suspects = self._slow | call.timed_out | (self._late if call.answered else frozenset())
        slow = suspects - call.delivered
        self._late, self._slow = frozenset(), slow if len(slow) <= _MAX_SLOW else frozenset()
        return call.failures


def _batches(entries: Sequence[Entry], max_events: int, max_bytes: int) -> Iterator[list[Entry]]:
    """Cut into batches of at most so many events and bytes, of one event at least."""
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
    """What a repeated request has in common with the first one: the event's uuid, or one made of those of the batch."""
    if len(request) == 1:
        return request[0].fields.uuid
    return str(uuid.uuid5(NAMESPACE, ",".join([entry.fields.uuid for entry in request])))
