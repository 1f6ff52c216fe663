"""Benchmarks of speed: alternatives are measured in turn, in one run."""
