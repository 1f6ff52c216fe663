"""Memories that are a window of the past: the last L entries, the oldest first, and those of the steps at hand behind them."""

import torch as th
from torch.nn import functional as F


def extend(past: th.Tensor, present: th.Tensor) -> th.Tensor:
    """
    The entries of the window and of T steps.

    :param past: ``[B, L, ...]``
    :param present: ``[T, B, ...]``
    :return: ``[B, L + T, ...]``, the last L of which are the window after these steps
    """
    return th.cat((past, present.transpose(0, 1)), dim=1)


def visible(filled: th.Tensor, n_steps: int, with_present: bool) -> th.Tensor:
    """
    Which entries each step can see: the L before its own, as far as there are any.

    :param filled: 1 where the window has an entry, 0 before the episode's start, ``[B, L]``
    :param n_steps: T
    :param with_present: whether a step sees its own entry, too
    :return: bool ``[B, T, L + T]``
    """
    length = filled.shape[1]
    ages = th.arange(n_steps, device=filled.device).unsqueeze(1) - th.arange(-length, n_steps, device=filled.device)
    in_window = (ages >= (0 if with_present else 1)) & (ages <= length)  # [T, L + T]
    return F.pad(filled > 0, (0, n_steps), value=True).unsqueeze(1) & in_window


def by_entry(by_age: th.Tensor) -> th.Tensor:
    """
    What each of T steps has for the ages of its window, put where the entries are; elsewhere nothing that counts.

    Dai et al. (2019), appendix B: with one column more than wanted, each row starts one column further to the right.

    :param by_age: from the entry L steps back to the step's own, ``[..., T, L + 1]``
    :return: ``[..., T, L + T]``
    """
    n_steps, n_ages = by_age.shape[-2:]
    n_entries = n_ages - 1 + n_steps
    return F.pad(by_age, (0, n_steps)).flatten(-2)[..., : n_steps * n_entries].unflatten(-1, (n_steps, n_entries))
