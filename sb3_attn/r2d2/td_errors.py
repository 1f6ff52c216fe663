"""What the priorities of new windows are made from."""

from typing import Any

import numpy as np
import torch as th

from sb3_attn.common import td


def acting_td_errors(
    q_values: np.ndarray,
    rewards: np.ndarray,
    discounts: np.ndarray,
    next_values: np.ndarray,
    starts: np.ndarray,
    **return_kwargs: Any,
) -> np.ndarray:
    """
    |delta| of consecutive steps, from the values that acting had anyway.

    Horgan et al. (2018), section 3: actors compute the priorities of what they send. There is one network, and returns end
    where the steps do, so these errors are only what priorities begin with.

    :param q_values: of the actions taken, ``[T, K]``
    :param rewards: r_{t+1}, ``[T, K]``
    :param discounts: gamma, or 0 where the episode terminated, ``[T, K]``
    :param next_values: max_a Q of the observation after each step, ``[T, K]``
    :param starts: whether the step does not follow the one before it, bool ``[T, K]``
    :param return_kwargs: which returns, as for ``sb3_attn.common.td.value_targets``
    :return: ``[T, K]``
    """
    # Pieces of episodes, environment after environment, each a column as td wants them
    starts = starts.T.copy()
    starts[:, 0] = True
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=starts.size)
    time = np.arange(lengths.max())[:, None]
    mask = time < lengths
    rows = np.minimum(first + time, starts.size - 1)

    def cut(array: np.ndarray) -> th.Tensor:
        return th.from_numpy(np.where(mask, array.T.ravel()[rows], 0.0))

    targets = td.value_targets(cut(rewards), cut(discounts), cut(next_values), th.from_numpy(mask), **return_kwargs)
    errors = np.empty(starts.size, np.float32)
    errors[rows[mask]] = (targets - cut(q_values)).abs().numpy()[mask]
    return np.ascontiguousarray(errors.reshape(starts.shape).T)
