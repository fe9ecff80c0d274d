"""The webhook sink."""

from sinks.webhook.sink import WebhookSink

__all__ = ["WebhookSink"]
