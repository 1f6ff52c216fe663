"""Adapters of the packages that ours is compared with. None of them is a dependency; the runner is given their paths."""
