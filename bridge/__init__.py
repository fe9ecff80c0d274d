"""event-bridge: from event streams without replay, through a durable journal, to sinks that acknowledge."""
