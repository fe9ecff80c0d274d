"""A Docker Engine as a source."""
