"""Masks of the actions that are valid."""

from collections.abc import Sequence

import numpy as np
import torch as th


def mask_values(values: th.Tensor, action_masks: th.Tensor | None) -> th.Tensor:
    """
    Make invalid actions the worst.

    :param values: ``[..., A]``
    :param action_masks: True on valid actions, ``[..., A]``; ``None`` means that all are. Where none is, which is beyond the
        end of a window, all count as valid
    :return: the values, minus infinity where an action is invalid
    """
    if action_masks is None:
        return values
    return values.masked_fill(~(action_masks | ~action_masks.any(dim=-1, keepdim=True)), -th.inf)


def has_valid_action(action_masks: np.ndarray, nvec: Sequence[int]) -> np.ndarray:
    """
    Tell where there is a valid action.

    :param action_masks: of all components, one after the other, bool ``[n, A]``
    :param nvec: number of choices in each component of an action; their sum is A
    :return: whether each component has a valid choice, bool ``[n]``
    """
    return np.all(np.logical_or.reduceat(action_masks, np.cumsum([0, *nvec[:-1]]), axis=1), axis=1)


def check_masks(action_masks: np.ndarray, n_rows: int, nvec: Sequence[int]) -> np.ndarray:
    """
    Check the masks that ``predict`` was given.

    :param action_masks: one row of A for each observation, or A for a single one
    :param n_rows: number of observations n
    :param nvec: number of choices in each component of an action; their sum is A
    :return: bool ``[n, A]``
    :raises ValueError: if their number does not fit, or no action is valid
    """
    n_actions = sum(nvec)
    masks = np.asarray(action_masks, dtype=bool)
    if masks.size != n_rows * n_actions:
        raise ValueError(f"action_masks has shape {masks.shape}, but there are {n_rows} observations and {n_actions} actions.")
    masks = masks.reshape(n_rows, n_actions)
    if not has_valid_action(masks, nvec).all():
        raise ValueError(f"action_masks={masks.tolist()} has a row without a valid action.")
    return masks
