"""Measurements of what the package promises: learning of memory tasks, and speed."""
