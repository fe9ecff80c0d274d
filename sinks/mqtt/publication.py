"""What is published about an event: the event itself, and perhaps the state of its resource; pure."""

from typing import Final, NamedTuple

from bridge.event import Fields
from bridge.sink import Entry, Failure
from sinks.mqtt.packets import encode_properties, varint
from sinks.mqtt.settings import MqttSettings
from sinks.mqtt.topic import LONGEST, Topic

_GONE: Final = "terminated"
"""The state of a resource after which nothing more is heard of it, in lower case."""


class Publication(NamedTuple):
    """A PUBLISH packet to be: `properties` is None for MQTT 3.1.1."""

    topic: bytes
    payload: bytes
    retain: bool
    properties: bytes | None


class Publisher:
    """Makes the publications of events.

    Args:
        settings: The sink's settings.
        max_packet: Bytes of a packet that the broker takes.
    """

    def __init__(self, settings: MqttSettings, max_packet: int) -> None:
        self._topic = Topic(settings.topic)
        self._state_topic = None if settings.state_topic is None else Topic(settings.state_topic)
        self._retain = settings.retain
        self._expiry = settings.expiry
        self._has_properties = settings.protocol == "5"
        self._max_packet = max_packet

    def __call__(self, entry: Entry) -> list[Publication] | Failure:
        """Make the publications of an event, its state first, or say why the broker can't take them.

        What is first is published again if the other one is refused, which does no harm to a state.
        """
        fields = entry.fields
        properties = encode_properties(fields, self._expiry) if self._has_properties else None
        found = [Publication(self._topic.of(fields), entry.json, self._retain, properties)]
        if self._state_topic is not None:
            found.insert(0, self._state(self._state_topic, fields, entry.json))
        for publication in found:
            if len(publication.topic) > LONGEST:
                return Failure.rejected(entry, "too_large", "its topic would be longer than MQTT allows")
            size = _packet_size(publication)
            if size > self._max_packet:
                return Failure.rejected(entry, "too_large", f"{size} bytes, and the broker takes {self._max_packet} at most")
        return found

    def _state(self, topic: Topic, fields: Fields, json: bytes) -> Publication:
        """Retain the event as its resource's last one; after the very last one, have the broker forget the resource.

        It does not expire: a resource may be quiet for long.
        """
        payload = b"" if fields.state.lower() == _GONE else json
        properties = encode_properties(fields, None) if self._has_properties else None
        return Publication(topic.of(fields), payload, retain=True, properties=properties)


def _packet_size(publication: Publication) -> int:
    """Bytes of the packet at QoS 1 or 2; with QoS 0 it is two bytes shorter."""
    topic, payload, _, properties = publication
    size = 4 + len(topic) + len(payload)
    if properties is not None:
        size += len(varint(len(properties))) + len(properties)
    return 1 + (1 if size < 1 << 7 else 2 if size < 1 << 14 else 3 if size < 1 << 21 else 4) + size
