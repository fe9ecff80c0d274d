"""The HTTP port: probes, metrics, status, and the operations on the journal."""
