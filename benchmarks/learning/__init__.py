"""Benchmarks of learning: scores, and the number of steps to reach them."""
