"""What a neural Turing machine carries from step to step."""

from typing import NamedTuple

import torch as th


class NTMState(NamedTuple):
    """Controller, memory and heads; C is 0 with a feed-forward controller."""

    hidden: th.Tensor  # [B, C]
    cell: th.Tensor  # [B, C]
    memory: th.Tensor  # [B, N, W]
    reads: th.Tensor  # [B, R, W]
    read_weights: th.Tensor  # [B, R, N]
    write_weights: th.Tensor  # [B, H, N]
