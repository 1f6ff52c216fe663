"""Memories that are a window of the past: the last entries, the oldest first."""

import torch as th


def windows(past: th.Tensor, present: th.Tensor) -> th.Tensor:
    """
    For each of T steps the L entries before it, and its own.

    :param past: the entries before the first step, ``[B, L, ...]``
    :param present: those of the steps, ``[T, B, ...]``
    :return: a view, the oldest entry first, ``[T, B, L + 1, ...]``
    """
    entries = th.cat((past.transpose(0, 1), present))  # [L + T, B, ...]
    return entries.unfold(0, past.shape[1] + 1, 1).movedim(-1, 2)


def slide(past: th.Tensor, present: th.Tensor) -> th.Tensor:
    """
    The last L entries after T steps.

    :param past: the entries before the first step, ``[B, L, ...]``
    :param present: those of the steps, ``[T, B, ...]``
    :return: ``[B, L, ...]``
    """
    return th.cat((past, present.transpose(0, 1)), dim=1)[:, -past.shape[1] :]
