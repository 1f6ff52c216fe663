"""
Helpers for sliding-window memories.

The state of such a memory is its window: the entries of the last L steps, oldest first. The entries of T new steps are
appended.
"""

import torch as th
from torch.nn import functional as F

#: Smallest number of steps in a block; shorter ones would only mean more calls
MIN_BLOCK_LENGTH = 64


def blocks(inputs: th.Tensor, window_length: int) -> tuple[th.Tensor, ...]:
    """
    Split steps into blocks to be computed one after the other.

    All T steps at once would attend to L + T entries each, most of them hidden by the mask, so time and memory would grow with
    T squared. In blocks of the window's length they grow with T.

    :param inputs: ``[T, B, F]``
    :param window_length: L
    :return: tensors ``[n, B, F]`` with n = max(L, 64), the last one shorter
    """
    return inputs.split(max(window_length, MIN_BLOCK_LENGTH))


def extend(past: th.Tensor, present: th.Tensor) -> th.Tensor:
    """
    Append the entries of T steps to the window.

    :param past: the window before these steps, ``[B, L, ...]``
    :param present: the entries of these steps, ``[T, B, ...]``
    :return: ``[B, L + T, ...]``; the last L are the window after these steps
    """
    return th.cat((past, present.transpose(0, 1)), dim=1)


def attention_mask(valid: th.Tensor, n_steps: int, with_present: bool) -> th.Tensor:
    """
    Mask of the entries that each step attends to: the L entries before its own, as far as the episode has them.

    With L = 2, T = 3, a full window and ``with_present=True``::

        step    window    new entries
                -2  -1    0   1   2
         0       x   x    x   .   .
         1       .   x    x   x   .
         2       .   .    x   x   x

    :param valid: 1 where the window has an entry, 0 before the episode's start, ``[B, L]``
    :param n_steps: T
    :param with_present: whether a step also attends to its own entry
    :return: True where a step attends, bool ``[B, T, L + T]``
    """
    length = valid.shape[1]
    ages = th.arange(n_steps, device=valid.device).unsqueeze(1) - th.arange(-length, n_steps, device=valid.device)
    in_window = (ages >= (0 if with_present else 1)) & (ages <= length)  # [T, L + T]
    return F.pad(valid > 0, (0, n_steps), value=True).unsqueeze(1) & in_window


def relative_shift(scores: th.Tensor) -> th.Tensor:
    """
    Turn scores indexed by relative position into scores indexed by entry.

    Dai et al. (2019), appendix B. The columns of the argument are ages: L steps ago, ..., 1 step ago, the present. The
    columns of the result are the L + T entries of ``extend``. So row t moves by t columns to the right. For L = 2 and T = 3,
    where ``ta`` is the score of step t for the entry a steps before it::

        02 01 00         02 01 00  .  .
        12 11 10   ->     . 12 11 10  .
        22 21 20          .  . 22 21 20

    The dots are zeros. They are not scores: apply ``attention_mask``.

    :param scores: ``[..., T, L + 1]``
    :return: ``[..., T, L + T]``
    """
    n_steps, n_positions = scores.shape[-2:]
    n_entries = n_positions - 1 + n_steps
    # With T zeros behind each row, rows are one longer than wanted. Read as rows of the wanted length, each starts one column
    # further to the right than the one above it
    return F.pad(scores, (0, n_steps)).flatten(-2)[..., : n_steps * n_entries].unflatten(-1, (n_steps, n_entries))
