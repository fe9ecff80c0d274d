"""Brokers and servers that others wrote, each run with the real command: `make peers`."""
