"""The sinks that come with event-bridge, one file each, registered in pyproject.toml like anybody else's."""
