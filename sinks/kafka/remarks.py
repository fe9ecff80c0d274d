"""What an operator should know of a topic before events go there: as lines, each with what to do about it; pure."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from sinks.kafka.names import Topics
from sinks.kafka.settings import KafkaSettings

_ROOM: Final = 1024
"""Bytes that key, headers and the batch's own head take beyond an event."""


class About(NamedTuple):
    """What the brokers tell about a topic; None for what they do not, or do not tell us.

    Attributes:
        exists: Whether it is there.
        may_write: Whether we may write to it.
        limit: Its `max.message.bytes`.
        default_limit: The brokers' `message.max.bytes`, which counts for topics that are to be created.
    """

    exists: bool | None = None
    may_write: bool | None = None
    limit: int | None = None
    default_limit: int | None = None


def remarks(settings: KafkaSettings, about: About, max_event_bytes: int) -> Iterator[str]:
    """Say what is known of the sink's topic, and what will go wrong with events of up to `max_event_bytes` bytes."""
    topic = Topics(settings.topic).fixed
    if topic is None:
        yield (
            f"topics are made of the events (`{settings.topic}`), so that it can't be checked whether they exist and whether "
            "we may write to them"
        )
    else:
        yield _existence(topic, about)
    if topic is not None and about.exists:
        limit, whose = about.limit, f"topic {topic}'s `max.message.bytes`"
    else:
        limit, whose = about.default_limit, "the brokers' `message.max.bytes`, which topics without their own limit have,"
    if limit is None:
        yield (
            f"how large events may be is not known: {whose} could not be read; allow us DescribeConfigs there, "
            f"or see to it that it is {max_event_bytes + _ROOM} or more"
        )
    else:
        yield from _sizes(settings, limit, whose, max_event_bytes)


def _existence(topic: str, about: About) -> str:
    if about.exists is None:
        return f"whether topic {topic} exists is not known: the brokers do not tell"
    if not about.exists:
        return (
            f"topic {topic} does not exist; with `allow_auto_create_topics` its first event creates it, if the brokers allow it"
        )
    if about.may_write is None:
        return f"topic {topic} exists; whether we may write to it is not known, since the brokers do not tell"
    return f"topic {topic} exists, and we may write to it"


def _sizes(settings: KafkaSettings, limit: int, whose: str, max_event_bytes: int) -> Iterator[str]:
    needed = max_event_bytes + _ROOM
    if limit < needed:
        yield (
            f"large events will become dead letters: {whose} is {limit}, and events may have {max_event_bytes} bytes; "
            f"set it to {needed} or more, or `journal.max_event_bytes` to {max(1, limit - _ROOM)} or less"
        )
    if limit < settings.record_batch_bytes:
        yield (
            f"full batches will be refused and sent again in halves: {whose} is {limit}; "
            f"set `record_batch_bytes` ({settings.record_batch_bytes}) to that or less"
        )
