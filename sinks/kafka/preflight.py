"""Asking the brokers about a topic without writing to it; with `kafka_client` the only modules that know kafka-python."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka.admin import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]
from kafka.net.compat import KafkaNetClient  # type: ignore[import-untyped]

from sinks.kafka.errors import MISSING, UNAUTHORIZED
from sinks.kafka.remarks import About


def describe(options: Mapping[str, Any], topic: str | None) -> About:
    """Tell what the brokers know of a topic, or only of themselves; nothing is created by that.

    Args:
        options: What connections are made with.
        topic: The topic, if there is one.
    """
    about = About()
    # It is only advice: whatever is wrong shows when something is delivered.
    with suppress(Exception), _admin(options) as admin:
        if topic is not None:
            about = about._replace(**_existence(admin.describe_topics([topic])[0]))
        kind, name, setting = (ConfigResourceType.TOPIC, topic, "max.message.bytes")
        if not about.exists:
            node = next(it["broker_id"] for it in admin.describe_cluster()["brokers"] if not it.get("is_fenced"))
            kind, name, setting = (ConfigResourceType.BROKER, str(node), "message.max.bytes")
        found = admin.describe_configs([ConfigResource(kind, name, None)], config_filter="all")
        limit = int(found[kind.name.lower()][name][setting]["value"])
        about = about._replace(limit=limit) if about.exists else about._replace(default_limit=limit)
    return about


@contextmanager
def _admin(options: Mapping[str, Any]) -> Iterator[KafkaAdminClient]:
    """Make the library's client and end it; also when it was not made, since its thread runs before it connects."""
    made: list[KafkaNetClient] = []

    def make_net(**more: Any) -> KafkaNetClient:
        made.append(KafkaNetClient(**more))
        return made[0]

    try:
        yield KafkaAdminClient(**options, kafka_client=make_net)
    finally:
        for net in made:
            with suppress(Exception):
                net.close()


def _existence(described: Mapping[str, Any]) -> dict[str, bool | None]:
    """Read what a topic's description says."""
    code, operations = described["error_code"], described.get("authorized_operations")
    if code == MISSING:
        return {"exists": False}
    if code == UNAUTHORIZED:
        return {"may_write": False}
    return {"exists": True, "may_write": "WRITE" in operations if operations else None}
