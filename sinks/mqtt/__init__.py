"""The MQTT sink."""

from sinks.mqtt.sink import MqttSink

__all__ = ["MqttSink"]
