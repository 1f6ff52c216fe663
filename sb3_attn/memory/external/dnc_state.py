"""What a differentiable neural computer carries from step to step."""

from typing import NamedTuple

import torch as th


class AccessState(NamedTuple):
    """What a memory access carries from step to step."""

    memory: th.Tensor  # [B, N, W]
    usage: th.Tensor  # [B, N]
    link: th.Tensor  # [B, N, N]
    precedence: th.Tensor  # [B, N]
    read_weights: th.Tensor  # [B, R, N]
    write_weights: th.Tensor  # [B, N]


class DNCState(NamedTuple):
    """The controller's, C being 0 if it is feed-forward; what was read last; and the fields of ``AccessState``."""

    hidden: th.Tensor  # [B, C]
    cell: th.Tensor  # [B, C]
    reads: th.Tensor  # [B, R, W]
    memory: th.Tensor  # [B, N, W]
    usage: th.Tensor  # [B, N]
    link: th.Tensor  # [B, N, N]
    precedence: th.Tensor  # [B, N]
    read_weights: th.Tensor  # [B, R, N]
    write_weights: th.Tensor  # [B, N]
