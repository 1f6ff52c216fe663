"""Masks of the actions that are valid."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th


def mask_values(values: th.Tensor, action_masks: th.Tensor | None) -> th.Tensor:
    """
    Make invalid actions the worst.

    :param values: ``[..., A]``
    :param action_masks: True on valid actions, ``[..., A]``; ``None`` means that all are
    :return: the values, minus infinity where an action is invalid
    """
    return values if action_masks is None else th.where(action_masks, values, -th.inf)


def numbers_of_choices(action_space: Any) -> list[int]:
    """
    The number of choices in each component of an action, which is how masks are laid out, as MaskablePPO's.

    :param action_space: ``Discrete`` or ``MultiDiscrete``
    :return: nvec; one number if the space is ``Discrete``
    """
    return action_space.nvec.tolist() if hasattr(action_space, "nvec") else [int(action_space.n)]


def has_valid_choice(action_masks: np.ndarray, nvec: Sequence[int]) -> np.ndarray:
    """
    Find out which components of actions have a valid choice.

    :param action_masks: of all components, one after the other, bool ``[..., M]``
    :param nvec: number of choices in each component of an action; their sum is M
    :return: bool ``[..., components]``
    """
    if len(nvec) == 1:  # three times as fast, which counts because acting asks at every step
        return np.asarray(action_masks.any(axis=-1, keepdims=True))
    return np.logical_or.reduceat(action_masks, np.cumsum([0, *nvec[:-1]]), axis=-1)


def leave_valid(action_masks: np.ndarray, nvec: Sequence[int]) -> np.ndarray:
    """
    Let all choices count as valid where none is, as may be after the last step of an episode.

    :param action_masks: of all components, one after the other, bool ``[..., M]``
    :param nvec: number of choices in each component of an action; their sum is M
    :return: bool ``[..., M]``
    """
    return action_masks | np.repeat(~has_valid_choice(action_masks, nvec), nvec, axis=-1)


def row_without_valid_action(action_masks: np.ndarray, nvec: Sequence[int]) -> tuple[int, str] | None:
    """
    Find a component of an action that has no valid choice.

    :param action_masks: of all components, one after the other, bool ``[n, M]``
    :param nvec: number of choices in each component of an action; their sum is M
    :return: the first row that has one, and what it lacks, in words; ``None`` if there is none
    """
    is_valid = has_valid_choice(action_masks, nvec)
    if is_valid.all():
        return None
    row, component = np.argwhere(~is_valid)[0].tolist()
    return row, "valid action" if len(nvec) == 1 else f"valid choice of component {component}"


def what_masks_tell(nvec: Sequence[int]) -> str:
    """
    Say what masks have a bool for.

    :param nvec: number of choices in each component of an action
    :return: a few words for errors
    """
    return f"each of the {nvec[0]} actions" if len(nvec) == 1 else f"each choice of each component, {nvec}: {sum(nvec)} in all"


def check_masks(action_masks: np.ndarray, n_rows: int, nvec: Sequence[int]) -> np.ndarray:
    """
    Check the masks that ``predict`` was given.

    :param action_masks: one row of M for each observation, or M for a single one
    :param n_rows: number of observations n
    :param nvec: number of choices in each component of an action; their sum is M
    :return: bool ``[n, M]``
    :raises ValueError: if their number does not fit, or no action is valid
    """
    n_actions = sum(nvec)
    masks = np.asarray(action_masks, dtype=bool)
    if masks.size != n_rows * n_actions:
        raise ValueError(
            f"action_masks has shape {masks.shape}, but there are {n_rows} observations; give one bool for each of them and "
            f"{what_masks_tell(nvec)}."
        )
    masks = masks.reshape(n_rows, n_actions)
    if (found := row_without_valid_action(masks, nvec)) is not None:
        raise ValueError(f"action_masks={masks.tolist()} has no {found[1]} in row {found[0]}; leave one valid.")
    return masks
