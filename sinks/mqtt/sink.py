"""Events as publications to an MQTT broker, one each.

Acknowledged means: a PUBACK (QoS 1) or PUBCOMP (QoS 2) with a good reason code. With QoS 0 there is no acknowledgement; there a
ping follows the events of a call, and its answer says that the broker has read them, which is not to say that it took them.
MQTT 3.1.1 has no reason codes: a broker acknowledges what it refuses. Each connection begins a new session, so that QoS 2 does
not mean once and only once if a connection breaks; the event's uuid tells.

Whose fault is a refusal? "Not authorized" is about a topic, and others may be fine: the event is tried again later, and those
of its resource wait. An invalid name or payload, or a packet that is too large, is the event's fault for ever. A quota is the
broker's.

Some brokers say nothing and end the connection over an event that they do not like, or never acknowledge it; every new
connection would end in the same way. So what was on its way when a connection broke is under suspicion: in the next calls it
goes last, and each event alone. If the connection broke over it alone three times, although it had taken something else before,
the event is at fault and has to wait for a retry. A broker that is down, or hangs, does not look like that: it takes nothing.

With a `state_topic` an event is two publications, and delivered when both are acknowledged: first the state, which can be
published again without harm; when the broker has taken that, the event itself. Otherwise an event whose state is refused would
be published at every retry.
"""

from collections.abc import Collection, Sequence
from time import monotonic
from typing import ClassVar, Final

import structlog

from bridge.sink import Entry, Failure, Unavailable
from bridge.tls import tls_context
from sinks.classification import Classification
from sinks.mqtt import packets
from sinks.mqtt.connection import Connection
from sinks.mqtt.delivery import Pipeline, make_lanes
from sinks.mqtt.publication import Publication, Publisher
from sinks.mqtt.settings import MqttSettings, read_address
from sinks.mqtt.topic import Topic
from sinks.mqtt.transport import Profile

log = structlog.get_logger(__name__)

_STRIKES: Final = 3
"""How often a connection may break over one event before it is the event's fault."""

_MAX_SUSPECTS: Final = 10_000
"""How many events are under suspicion at most; beyond that it is learned anew."""

_WINDOW: Final = 60_000
"""How many events are sent without an acknowledgement with QoS 0, before a ping says that they have been read."""

_PARTING: Final = 2.0
"""Seconds that a polite end of the connection may take."""

_MANY_HANGUPS: Final = 3
"""So many ends of connections without a reason, all within the memory (in seconds), are told and slow us down."""

_HANGUP_MEMORY: Final = 600.0
_LONGEST_PAUSE: Final = 30.0

_ID: Final = 1
"""The number of the packets that say whether we are available; nothing else is on its way then."""


class MqttSink:
    """Publishes events to an MQTT broker.

    Args:
        name: The sink's name in the configuration.
        settings: Its settings.
    """

    Settings: ClassVar = MqttSettings

    def __init__(self, name: str, settings: MqttSettings) -> None:
        self.name = name
        self._settings = settings
        self._address = read_address(settings.url)
        template = settings.availability_topic
        self._availability = None if template is None else Topic(template, ("name",)).fill((name,))
        self._connection: Connection | None = None
        self._publisher = Publisher(settings, 0)
        self._refused_availability = False
        self._proven = False
        self._hangups: list[float] = []
        self._suspects: dict[int, int] = {}  # How often each was alone when the connection broke.
        self._strikes: dict[int, int] = {}
        self._unwanted: dict[int, Classification] = {}

    def open(self) -> None:
        """Connect, and say that we are online.

        Raises:
            Unavailable: The broker can't be reached, or does not take us, or can't do what is set.
        """
        self.close()
        settings = self._settings
        profile = Profile(
            address=self._address,
            protocol=settings.protocol,
            client_id=settings.client_id_of(self.name),
            username=settings.username,
            password=settings.password.get_secret_value() if settings.password else None,
            context=tls_context(settings) if self._address.tls else None,
            timeout=settings.timeout,
            keepalive=int(settings.keepalive),
            will=None if self._availability is None else (self._availability.decode(), b"offline", min(settings.qos, 1)),
        )
        connection = Connection(profile)
        try:
            with connection.in_use():
                self._check_limits(connection)
                self._proven = self._announce(connection)
        except BaseException:
            connection.close()
            raise
        self._publisher = Publisher(settings, connection.limits.max_packet)
        self._connection = connection

    def deliver(self, entries: Sequence[Entry]) -> Sequence[Failure]:
        """Publish all entries.

        Raises:
            Unavailable: The broker is not available, with what it has acknowledged.
        """
        connection = self._opened()
        settings = self._settings
        ordered = settings.ordering == "resource" and settings.qos > 0
        lanes, suspects = make_lanes(entries, ordered=ordered, suspects=self._suspects)
        window = min(settings.window, connection.limits.receive_maximum) if settings.qos else _WINDOW
        pipeline = Pipeline(lanes, suspects, self._publications, qos=settings.qos, window=window)
        try:
            with connection.in_use():
                self._run(connection, pipeline)
        except Unavailable as error:
            code = connection.ended_by
            self._suspect(pipeline, packets.classify(code) if code and code not in packets.BLAMES_A_PACKET else None)
            raise self._with_hint(error, connection.ended_by, pipeline.delivered) from error
        self._acquit(pipeline.delivered)
        if pipeline.trouble is not None:
            words = f"{self._address}: the broker refused an event: {pipeline.trouble.error}"
            raise Unavailable(words, pipeline.trouble.reason, delivered=pipeline.delivered)
        return pipeline.failures

    def check_connection(self) -> None:
        """Read what the broker has sent, the end of the connection perhaps.

        Raises:
            Unavailable: The connection is lost.
        """
        connection = self._opened()
        try:
            with connection.in_use():
                connection.receive(0.0)
        except Unavailable as error:
            raise self._with_hint(error, connection.ended_by) from error

    def close(self) -> None:
        """Say that we are offline, and disconnect. A delivery under way in another thread fails soon."""
        connection, self._connection = self._connection, None
        if connection is not None:
            patience = min(_PARTING, self._settings.timeout)
            connection.close(self._availability_packet(connection, b"offline"), min(self._settings.qos, _ID), patience)

    def _opened(self) -> Connection:
        if self._connection is None:
            raise Unavailable("the sink is not open", "internal")
        return self._connection

    def _publications(self, entry: Entry) -> Sequence[Publication] | Failure:
        """Make the publications of an event, unless it has shown to break connections."""
        refusal = self._unwanted.pop(entry.seq, None)
        if refusal is not None:
            return refusal._replace(error=f"the broker ended the connection over it: {refusal.error}").failure(entry)
        if self._strikes.get(entry.seq, 0) >= _STRIKES:
            # When it comes again as a retry, it is tried once more.
            self._strikes[entry.seq] = _STRIKES - 1
            words = "the connection broke each time when this event was sent alone, and took others"
            return Failure.retry(entry, "server_error", words)
        return self._publisher(entry)

    def _run(self, connection: Connection, pipeline: Pipeline) -> None:
        """Send and take acknowledgements until everything has come to an end."""
        connection.receive(0.0)  # What has happened since the last call, the end of the connection perhaps.
        while True:
            data = pipeline.fill(monotonic())
            if data:
                connection.send(data)
            if pipeline.done:
                return
            if self._settings.qos == 0:
                self._await_pong(connection)
                pipeline.acknowledge_all()
                continue
            found = connection.receive(pipeline.silent_since + self._settings.timeout)
            if not found:
                raise self._no_answer(connection)
            now = monotonic()
            answers = b"".join(
                [
                    pipeline.acknowledge(kind, *packets.read_acknowledgement(body), now)
                    for kind, body in found
                    if kind in packets.ACKNOWLEDGEMENTS
                ]
            )
            if answers:
                connection.send(answers)

    def _await_pong(self, connection: Connection) -> None:
        number, until = connection.ping(), monotonic() + self._settings.timeout
        while connection.pongs < number:
            if not connection.receive(until):
                raise self._no_answer(connection)

    def _no_answer(self, connection: Connection) -> Unavailable:
        return connection.broken("timeout", f"no acknowledgement within {self._settings.timeout:g} s")

    def _check_limits(self, connection: Connection) -> None:
        settings, limits = self._settings, connection.limits
        if settings.qos > limits.max_qos:
            words = f"the broker can't do QoS {settings.qos}; set `qos: {limits.max_qos}`"
            raise Unavailable(f"{self._address}: {words}", "rejected")
        if not limits.retain and (settings.retain or settings.state_topic is not None):
            words = "the broker can't retain; set `retain: false` and no `state_topic`"
            raise Unavailable(f"{self._address}: {words}", "rejected")

    def _availability_packet(self, connection: Connection, payload: bytes) -> bytes:
        if self._availability is None:
            return b""
        return packets.encode_publish(
            self._availability,
            payload,
            qos=min(self._settings.qos, 1),
            retain=connection.limits.retain,
            packet_id=_ID,
            properties=b"" if self._settings.protocol == "5" else None,
        )

    def _announce(self, connection: Connection) -> bool:
        """Say that we are online; return whether the broker has shown that it takes what we send."""
        packet = self._availability_packet(connection, b"online")
        if packet:
            connection.send(packet)
        if self._settings.qos == 0:
            self._await_pong(connection)
            return True
        if not packet:
            return False
        code = self._await_acknowledgement(connection)
        refused = code >= packets.FAILED
        if refused and not self._refused_availability:
            words = packets.classify(code).error
            log.warning(
                "availability can't be published", sink=self.name, topic=(self._availability or b"").decode(), error=words
            )
        self._refused_availability = refused
        return not refused

    def _await_acknowledgement(self, connection: Connection) -> int:
        """Wait for the only acknowledgement that is due, and return its reason code."""
        until = monotonic() + self._settings.timeout
        while found := connection.receive(until):
            for kind, body in found:
                if kind == packets.PUBACK:
                    return packets.read_acknowledgement(body)[1]
        raise self._no_answer(connection)

    def _with_hint(self, error: Unavailable, code: int | None, delivered: Collection[int] = ()) -> Unavailable:
        """Add to the end of a connection what its frequency means, and a pause.

        Two clients with the same name take the session from each other, and not every broker tells them.
        """
        hint, pause = "", error.retry_after
        if error.reason == "unreachable" and not code:
            now = monotonic()
            self._hangups = [*(when for when in self._hangups if now - when < _HANGUP_MEMORY), now]
            times = len(self._hangups)
            if times >= _MANY_HANGUPS:
                client_id = self._settings.client_id_of(self.name)
                hint = f"; {times} times lately: is there another client with the `client_id` {client_id}?"
                pause = min(_LONGEST_PAUSE, float(times))
        return Unavailable(f"{error}{hint}", error.reason, retry_after=pause, delivered=delivered)

    def _suspect(self, pipeline: Pipeline, refusal: Classification | None) -> None:
        """Remember the events in flight when the connection broke; `refusal` is the broker's reason, if it gave one."""
        self._acquit(pipeline.delivered)
        if refusal is not None and refusal.scope == "sink":
            return
        flying = pipeline.unacknowledged
        if len(self._suspects) + len(flying) > _MAX_SUSPECTS:
            self._suspects, self._strikes, self._unwanted = {}, {}, {}
        for seq in flying:
            self._suspects.setdefault(seq, 0)
        if len(flying) == 1:
            (seq,) = flying
            self._suspects[seq] += 1
            if refusal is not None and refusal.outcome == "rejected":
                self._unwanted[seq] = refusal
            elif self._proven or pipeline.delivered:
                self._strikes[seq] = self._strikes.get(seq, 0) + 1

    def _acquit(self, delivered: set[int]) -> None:
        """Forget what was held against events that have arrived now."""
        if self._suspects:
            for seq in delivered & self._suspects.keys():
                del self._suspects[seq]
                self._strikes.pop(seq, None)
