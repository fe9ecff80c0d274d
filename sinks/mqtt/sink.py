"""Events as publications to an MQTT broker, one each.

Acknowledged means a PUBACK (QoS 1) or PUBCOMP (QoS 2) with a good reason code. With QoS 0 there is no acknowledgement: a ping
follows the events of a delivery, and its answer shows that the broker has read them, not that it accepted them. MQTT 3.1.1 has
no reason codes: a broker acknowledges what it refuses. Each connection begins a new session, so that QoS 2 does not mean
exactly once if a connection breaks; the event's uuid identifies duplicates.

Some brokers end the connection over an event, mostly without a reason, and would do so on every new connection: see
`sinks.mqtt.breakers`. When the event is known, the sink connects again within the delivery, and takes the rest.

With a `state_topic` an event is two publications, and delivered when both are acknowledged: the state, which can be published
again without harm, and then the event. Otherwise an event whose state is refused would be published at every retry.
"""

import contextlib
from collections.abc import Sequence
from time import monotonic
from typing import ClassVar, Final

import structlog

from bridge.sink import Entry, Failure, Unavailable
from sinks.mqtt import packets
from sinks.mqtt.breakers import Breakers
from sinks.mqtt.connection import Connection, VersionRefused
from sinks.mqtt.delivery import Delivery
from sinks.mqtt.publication import Publication, PublicationEncoder
from sinks.mqtt.settings import MqttSettings
from sinks.mqtt.topic import Topic
from sinks.mqtt.transport import Profile
from sinks.ordering import group

log = structlog.get_logger(__name__)

_RECONNECTS: Final = 10
"""New connections within one delivery, after events that broke it, at most."""


class MqttSink:
    """Publishes events to an MQTT broker."""

    Settings: ClassVar = MqttSettings

    def __init__(self, name: str, settings: MqttSettings) -> None:
        self.name = name
        self._settings = settings
        self._address = settings.address
        template = settings.availability_topic
        self._availability = None if template is None else Topic(template, ("name",)).fill((name,))
        self._connection: Connection | None = None
        self._encode = PublicationEncoder(settings, "", 0)
        self._warned: set[str] = set()
        self._accepts = False  # True if the broker has accepted anything on this connection.
        self._disconnects: list[float] = []
        self._breakers = Breakers()

    def open(self) -> None:
        """Connect, and publish `online`; raise `Unavailable` if the broker is, or lacks what the settings need."""
        self.close()
        connection = self._connect()
        try:
            with connection.in_use():
                self._check_limits(connection)
                self._accepts = self._announce(connection)
        except BaseException:
            connection.close()
            raise
        self._encode = PublicationEncoder(self._settings, connection.protocol, connection.limits.max_packet)
        self._connection = connection

    def _connect(self) -> Connection:
        """Connect with the newest version of MQTT that the broker knows."""
        settings = self._settings
        will = None if self._availability is None else (self._availability.decode(), b"offline", min(settings.qos, 1))
        profile = Profile(settings, settings.protocols[-1], settings.client_id_of(self.name), will)
        for protocol in settings.protocols[:-1]:
            with contextlib.suppress(VersionRefused):
                return Connection(profile._replace(protocol=protocol))
        connection = Connection(profile)
        if len(settings.protocols) > 1:
            self._warn("the broker knows only MQTT 3.1.1, in which it can't say that it refused an event")
        return connection

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        """Publish all entries, or raise `Unavailable` with the events that the broker has acknowledged."""
        failures: list[Failure] = []
        self.delivered = set[int]()
        try:
            reconnects = iter(range(_RECONNECTS))
            while not self._deliver(entries, failures, may_reconnect=next(reconnects, None) is not None):
                self.open()
                ended = self.delivered.union(failure.seq for failure in failures)
                entries = [entry for entry in entries if entry.seq not in ended]
        except Unavailable as error:
            error.delivered = self.delivered
            raise
        return failures

    def _deliver(self, entries: Sequence[Entry], failures: list[Failure], *, may_reconnect: bool) -> bool:
        """Publish entries, and add to the failures; return False if the connection broke over one that is known."""
        connection, settings = self._opened(), self._settings
        groups = group(entries, ordered=settings.ordering == "resource" and settings.qos > 0)
        window = min(settings.window(connection.protocol), connection.limits.receive_maximum) if settings.qos else 60_000
        delivery = Delivery(groups, self._publications, self.delivered, qos=settings.qos, window=window)
        error: Unavailable | None = None
        try:
            with connection.in_use():
                self._run(connection, delivery)
        except Unavailable as broken:
            error = broken
        failures += delivery.failures
        self._breakers.accepted(self.delivered, delivery.topics, delivery.largest)
        if delivery.downgraded:
            self._warn("the broker does QoS 2 as QoS 1: events may arrive twice; set `qos: 1`")
        if error is not None:
            in_flight, code = delivery.in_flight, connection.ended_by
            # Malformed packet and protocol error do not say which packet is meant, nor what is wrong with it.
            refusal = packets.classify(code) if code and code not in {0x81, 0x82} else None
            known = self._breakers.disconnected(in_flight, refusal, accepts=self._accepts or bool(delivery.topics))
            if known:
                self._disconnects = []
                if may_reconnect and error.reason != "timeout":
                    return False
            raise self._with_hint(error, code, len(in_flight)) from error
        if delivery.unavailable is not None:
            message = f"{self._address}: the broker refused an event: {delivery.unavailable.error}"
            raise Unavailable(message, delivery.unavailable.reason)
        return True

    def check_connection(self) -> None:
        """Read what the broker has sent since the last use; raise `Unavailable` if the connection is lost."""
        connection = self._opened()
        try:
            with connection.in_use():
                connection.receive(0.0)
        except Unavailable as error:
            raise self._with_hint(error, connection.ended_by) from error

    def close(self) -> None:
        """Publish `offline`, and disconnect. A delivery in another thread fails soon."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(self._availability_packet(connection, b"offline"), patience=min(2.0, self._settings.timeout))

    def _opened(self) -> Connection:
        if self._connection is None:
            raise Unavailable("the sink is not open", "internal")
        return self._connection

    def _publications(self, entry: Entry, alone: bool) -> Sequence[Publication] | Failure | int:  # noqa: FBT001 - positional
        """Return the publications of an event, its failure, or the rank at which it may be sent alone."""
        publications = self._encode(entry)
        if self._breakers.active and not isinstance(publications, Failure):
            judged = self._breakers.judge(entry, publications, monotonic(), alone=alone)
            return publications if judged is None else judged
        return publications

    def _run(self, connection: Connection, delivery: Delivery) -> None:
        """Send publications and read acknowledgements until all entries have an outcome."""
        connection.receive(0.0)  # Find a disconnect since the last delivery.
        while True:
            data = delivery.fill(monotonic())
            if data:
                connection.send(data)
            if delivery.done:
                return
            if self._settings.qos == 0:
                connection.await_pong()
                delivery.acknowledge_all()
                continue
            received = connection.await_packets(delivery.silent_since + self._settings.timeout)
            now = monotonic()
            answers = b"".join(
                [
                    delivery.acknowledge(kind, *packets.read_acknowledgement(body), now)
                    for kind, body in received
                    if kind in packets.ACKNOWLEDGEMENTS
                ]
            )
            if answers:
                connection.send(answers)

    def _check_limits(self, connection: Connection) -> None:
        settings, limits, lacks = self._settings, connection.limits, ""
        if settings.qos > limits.max_qos:
            lacks = f"do QoS {settings.qos}; set `qos: {limits.max_qos}`"
        elif not limits.retain and (settings.retain or settings.state_topic is not None):
            lacks = "retain; set `retain: false` and no `state_topic`"
        if lacks:
            raise Unavailable(f"{self._address}: the broker can't {lacks}", "rejected")

    def _availability_packet(self, connection: Connection, payload: bytes) -> bytes:
        if self._availability is None:
            return b""
        return packets.encode_publish(
            self._availability,
            payload,
            qos=min(self._settings.qos, 1),
            retain=bool(connection.limits.retain),
            packet_id=1,
            properties=b"" if connection.protocol == "5" else None,
        )

    def _announce(self, connection: Connection) -> bool:
        """Publish `online`; return True if the broker has accepted it, or has answered a ping with QoS 0."""
        packet = self._availability_packet(connection, b"online")
        code, words = connection.publish(packet) if packet else None, "availability can't be published"
        if code is not None and code >= packets.FAILED:
            self._warn(words, topic=(self._availability or b"").decode(), error=packets.classify(code).error)
            return False
        self._warned.discard(words)
        if self._settings.qos == 0:
            connection.await_pong()
        return code is not None or self._settings.qos == 0

    def _warn(self, words: str, **context: str) -> None:
        """Log a warning once."""
        if words not in self._warned:
            self._warned.add(words)
            log.warning(words, sink=self.name, **context)

    def _with_hint(self, error: Unavailable, code: int | None, in_flight: int = 0) -> Unavailable:
        """Return the error with a hint and a pause if the broker often disconnects without a reason.

        Two clients with the same client id take the session from each other, and not every broker sends the reason.
        """
        hint, pause = "", error.retry_after
        if error.reason == "unreachable" and not code:
            now = monotonic()
            self._disconnects = [*(when for when in self._disconnects if now - when < 600), now]
            times = len(self._disconnects)
            if times >= 3:
                client_id = self._settings.client_id_of(self.name)
                other = f", or is it over one of the {in_flight} publications in flight" if in_flight else ""
                hint = f"; {times} times lately: is there another client with the `client_id` {client_id}{other}?"
                pause = min(30.0, float(times))
        return Unavailable(f"{error}{hint}", error.reason, retry_after=pause)
