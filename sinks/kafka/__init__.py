"""The Kafka sink."""

from sinks.kafka.sink import KafkaSink

__all__ = ["KafkaSink"]
