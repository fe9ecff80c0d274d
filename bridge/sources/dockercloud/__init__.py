"""The Docker Cloud Stream API as a source."""
