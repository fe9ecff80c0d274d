"""The publications of an event: the event itself, and with a `state_topic` the state of its resource; pure."""

import sys
from typing import NamedTuple

from bridge.sink import Entry, Failure
from sinks.mqtt.packets import encode_properties, varint
from sinks.mqtt.settings import MqttSettings
from sinks.mqtt.topic import MAX_TEXT_BYTES, Topic


class Publication(NamedTuple):
    """The content of a PUBLISH packet; `properties` is None for MQTT 3.1.1."""

    topic: bytes
    payload: bytes
    retain: bool
    properties: bytes | None


class PublicationEncoder:
    """Encodes events as publications in a version of MQTT, for a broker that accepts packets of `max_packet` bytes at most."""

    def __init__(self, settings: MqttSettings, protocol: str, max_packet: int) -> None:
        self._topic = Topic(settings.topic, replace=settings.replace)
        state_topic = settings.state_topic
        self._state_topic = None if state_topic is None else Topic(state_topic, replace=settings.replace)
        self._retain = settings.retain
        self._expiry = settings.expiry
        self._has_properties = protocol == "5"
        self._max_packet = max_packet
        self._max_event = settings.max_event_bytes or sys.maxsize

    def __call__(self, entry: Entry) -> list[Publication] | Failure:
        """Return the publications of an event, its state first, or the failure of an event that is too large.

        If the second is refused, the first is published again at the retry, which does no harm to a state.
        """
        if len(entry.json) > self._max_event:
            return Failure.rejected(entry, "too_large", f"{len(entry.json)} bytes, more than `max_event_bytes`")
        fields = entry.fields
        properties = encode_properties(fields, self._expiry) if self._has_properties else None
        publications = [Publication(self._topic.of(fields), entry.json, self._retain, properties)]
        if self._state_topic is not None:
            # After "Terminated" an empty payload, which deletes the state. It does not expire: the next event may be far away.
            payload = b"" if fields.state.lower() == "terminated" else entry.json
            properties = encode_properties(fields, None) if self._has_properties else None
            publications.insert(0, Publication(self._state_topic.of(fields), payload, retain=True, properties=properties))
        for publication in publications:
            if len(publication.topic) > MAX_TEXT_BYTES:
                return Failure.rejected(entry, "too_large", "its topic would be longer than MQTT allows")
            size = _packet_size(publication)
            if size > self._max_packet:
                return Failure.rejected(entry, "too_large", f"{size} bytes, and the broker takes {self._max_packet} at most")
        return publications


def _packet_size(publication: Publication) -> int:
    """Return the size of the packet at QoS 1 or 2; with QoS 0 it is two bytes less."""
    topic, payload, _, properties = publication
    size = 4 + len(topic) + len(payload)
    if properties is not None:
        size += len(varint(len(properties))) + len(properties)
    return 1 + (1 if size < 1 << 7 else 2 if size < 1 << 14 else 3 if size < 1 << 21 else 4) + size
