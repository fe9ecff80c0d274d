"""The kinds of streams."""
