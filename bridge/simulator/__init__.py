"""A Docker Cloud Stream API server for demos and tests."""
