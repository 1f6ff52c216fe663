"""Measurements of what the package promises: learning of tasks that need memory, and speed."""
