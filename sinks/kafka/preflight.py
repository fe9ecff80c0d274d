"""Preflight checks of a topic: ask the brokers without writing, and report what an operator should change."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Final, NamedTuple

from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka.admin import ConfigResource, ConfigResourceType  # type: ignore[import-untyped]

from sinks.kafka import errors
from sinks.kafka.connections import connect
from sinks.kafka.records import topic_template
from sinks.kafka.settings import KafkaSettings

_OVERHEAD_BYTES: Final = 1024
"""Room for key, headers and batch header."""


class About(NamedTuple):
    """A topic as the brokers describe it; None where unknown or not shown to us."""

    exists: bool | None = None
    may_write: bool | None = None
    limit: int | None = None  # Its `max.message.bytes`, or if it does not exist the brokers' `message.max.bytes`.
    compacted: bool = False
    max_age_ms: int | None = None  # Of records when they arrive: `message.timestamp.before.max.ms`.


def describe(options: Mapping[str, Any], topic: str | None) -> About:
    """Describe a topic, or with None the brokers' default, over connections with these options; nothing is created."""
    about = About()
    # It is only advice: whatever is wrong shows when something is delivered.
    with suppress(Exception), ExitStack() as stack:

        def connect_until_exit(**options: Any) -> Any:
            client = connect(**options)
            stack.callback(client.close)
            return client

        admin = KafkaAdminClient(**options, kafka_client=connect_until_exit)
        if topic is not None:
            about = _described(admin.describe_topics([topic])[0])
        kind, name = (ConfigResourceType.TOPIC, topic)
        if not about.exists:
            node = next(it["broker_id"] for it in admin.describe_cluster()["brokers"] if not it.get("is_fenced"))
            kind, name = (ConfigResourceType.BROKER, str(node))
        found = admin.describe_configs([ConfigResource(kind, name, None)], config_filter="all")[kind.name.lower()][name]
        # Most of a topic's settings have a broker's default `log.…`.
        values = {setting.removeprefix("log."): each["value"] for setting, each in found.items()}
        limit = int(values["max.message.bytes" if about.exists else "message.max.bytes"])
        about = about._replace(limit=limit, compacted="compact" in values["cleanup.policy"])
        if values["message.timestamp.type"] == "CreateTime":
            about = about._replace(max_age_ms=int(values["message.timestamp.before.max.ms"]))  # Since Kafka 3.6.
    return about


def _described(topic: Mapping[str, Any]) -> About:
    operations = topic.get("authorized_operations")
    match topic["error_code"]:
        case errors.MISSING:
            return About(exists=False)
        case errors.UNAUTHORIZED:
            return About(may_write=False)
    return About(exists=True, may_write="WRITE" in operations if operations else None)


def preflight(settings: KafkaSettings, about: About, max_event_bytes: int) -> Iterator[str]:
    """Report the state of the topic, and problems with events of up to `max_event_bytes` bytes."""
    template = topic_template(settings.topic)
    topic = None if template.names else template.literals
    yield _existence(settings.topic, topic, about)
    owner, whose = "the brokers'", "the brokers' `message.max.bytes`, which topics without their own limit have,"
    if topic is not None and about.exists:
        owner, whose = f"topic {topic}'s", f"topic {topic}'s `max.message.bytes`"
    if about.compacted and not settings.key:
        yield f"every event will become a dead letter: {owner} `cleanup.policy` is `compact`, so records need a key; set `key`"
    wanted_age_ms = int(settings.retry.max_age * 1000)
    if about.max_age_ms is not None and about.max_age_ms < wanted_age_ms and settings.timestamp != "sent":
        yield (
            f"events that wait too long will become dead letters: {owner} `message.timestamp.before.max.ms` is "
            f"{about.max_age_ms}; set it to {wanted_age_ms} (`retry.max_age`) or more, or set `timestamp: sent`"
        )
    if about.limit is None:
        yield (
            f"how large events may be is not known: {whose} could not be read; allow us DescribeConfigs there, "
            f"or see to it that it is {max_event_bytes + _OVERHEAD_BYTES} or more"
        )
    else:
        yield from _sizes(settings, about.limit, whose, max_event_bytes)


def _existence(template: str, topic: str | None, about: About) -> str:
    if topic is None:
        made = f"topics are made of the events (`{template}`)"
        return f"{made}, so that it can't be checked whether they exist and whether we may write to them"
    if about.exists is None:
        return f"whether topic {topic} exists is not known: the brokers do not tell"
    if not about.exists:
        return f"topic {topic} does not exist; with `allow_auto_create_topics` its first event creates it, if brokers allow it"
    if about.may_write is None:
        return f"topic {topic} exists; whether we may write to it is not known, since the brokers do not tell"
    return f"topic {topic} exists, and we may write to it"


def _sizes(settings: KafkaSettings, limit: int, whose: str, max_event_bytes: int) -> Iterator[str]:
    needed = max_event_bytes + _OVERHEAD_BYTES
    if limit < needed:
        yield (
            f"large events will become dead letters: {whose} is {limit}, and events may have {max_event_bytes} bytes; "
            f"set it to {needed} or more, or `journal.max_event_bytes` to {max(1, limit - _OVERHEAD_BYTES)} or less"
        )
    if limit < settings.record_batch_bytes:
        yield (
            f"full batches will be refused and sent again in halves: {whose} is {limit}; "
            f"set `record_batch_bytes` ({settings.record_batch_bytes}) to that or less"
        )
