"""What `make bench` runs: speed, latency and memory of the real program, and the cost of its stages."""
