"""Core states: flat named tuples of arrays, batch axis first."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch as th

#: A flat ``NamedTuple`` of tensors ``[B, ...]``; every core defines its own
CoreState: TypeAlias = tuple[th.Tensor, ...]


def map_state(function: Any, *states: Any) -> Any:
    """
    Apply a function to the matching arrays of one or more core states.

    :param function: takes one array of each state, returns an array
    :param states: core states with the same fields; the result has the type of the first
    :return: the new state
    """
    arrays = (function(*fields) for fields in zip(*states, strict=True))
    return states[0]._make(arrays)


def where_rows(rows: th.Tensor, state: CoreState, other: CoreState) -> CoreState:
    """
    Take each row from one of two states, as ``torch.where`` does.

    :param rows: bool ``[B]``
    :param state: supplies the rows that are True
    :param other: supplies the rows that are False
    :return: the mixed state
    """

    def choose(array: th.Tensor, other_array: th.Tensor) -> th.Tensor:
        # [B] -> [B, 1, ..., 1], to broadcast over the other axes of the field
        return th.where(rows.view(-1, *[1] * (array.dim() - 1)), array, other_array)

    return map_state(choose, state, other)


def state_from_arrays(arrays: Sequence[np.ndarray] | CoreState, like: CoreState) -> CoreState:
    """
    Convert arrays, such as ``predict`` returns and the replay stores, to a core state.

    :param arrays: one array ``[B, ...]`` for each field of the state
    :param like: a state of the core with B rows, which gives type, shapes, dtypes and device
    :return: the core state
    :raises ValueError: if number or shapes of the arrays do not fit
    """
    if not isinstance(arrays, tuple | list):
        raise ValueError(f"state={arrays!r} must be the tuple of arrays that predict() returned, or None at the start.")
    shapes, expected = [np.shape(array) for array in arrays], [tuple(field.shape) for field in like]
    if shapes != expected:
        raise ValueError(
            f"state has arrays of shapes {shapes}, but this model's core has {expected} for this many environments; "
            "pass the state that predict() returned, or None at the start."
        )
    return map_state(lambda field, array: th.as_tensor(array, dtype=field.dtype, device=field.device), like, arrays)
