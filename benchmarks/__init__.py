"""The benchmarks of `make bench`: speed, latency and memory of the whole program, and the cost of its stages."""
