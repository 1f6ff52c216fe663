"""Observations: one array, or a dict of arrays for a Dict space."""

from collections.abc import Callable
from typing import Any


def map_obs(function: Callable[..., Any], *observations: Any) -> Any:
    """
    Apply a function to the matching arrays of one or more observations.

    :param function: takes one array of each observation, returns an array
    :param observations: arrays, or dicts of arrays with the same keys
    :return: the new observation, a dict if the first one is
    """
    if isinstance(observations[0], dict):
        return {key: function(*(obs[key] for obs in observations)) for key in observations[0]}
    return function(*observations)


def batch_size(observations: Any) -> int:
    """
    Size of the leading axis, which all arrays of an observation share.

    :param observations: an array ``[B, ...]``, or a dict of such arrays
    :return: B; the number of steps T if the arrays are ``[T, B, ...]``
    """
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
