"""Masks of the actions that are valid."""

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


def check_masks(action_masks: np.ndarray, n_rows: int, n_actions: int) -> np.ndarray:
    """
    Check the masks that ``predict`` was given.

    :param action_masks: one row of A for each observation, or A for a single one
    :param n_rows: number of observations n
    :param n_actions: number of actions A
    :return: bool ``[n, A]``
    :raises ValueError: if their number does not fit, or no action is valid
    """
    masks = np.asarray(action_masks, dtype=bool)
    if masks.size != n_rows * n_actions:
        raise ValueError(f"action_masks has shape {masks.shape}, but there are {n_rows} observations and {n_actions} actions.")
    masks = masks.reshape(n_rows, n_actions)
    if not masks.any(axis=1).all():
        raise ValueError(f"action_masks={masks.tolist()} has a row without a valid action.")
    return masks
