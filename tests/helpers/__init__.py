"""Environments, models, callbacks and oracles that several test folders share."""
