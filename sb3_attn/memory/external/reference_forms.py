"""
Cosine similarities and sharpening as the implementations have them that results are compared with.

Their gradients are not finite everywhere, or larger than need be; ``addressing`` has the forms to train with.
"""

import torch as th
from torch.nn import functional as F


def cosine_similarity(keys: th.Tensor, memory: th.Tensor) -> th.Tensor:
    """
    As in pytorch-ntm: of vectors to whose every entry 1e-16 was added.

    :param keys: ``[B, H, W]``
    :param memory: ``[B, N, W]``
    :return: ``[B, H, N]``
    """
    return F.cosine_similarity(memory.unsqueeze(1) + 1e-16, keys.unsqueeze(2) + 1e-16, dim=-1)


def sharpen(weights: th.Tensor, exponents: th.Tensor) -> th.Tensor:
    """
    As in pytorch-ntm: by a power, which loses even weights over many slots.

    :param weights: ``[B, H, N]``
    :param exponents: ``[B, H, 1]``
    :return: ``[B, H, N]``
    """
    powers = weights**exponents
    return powers / (powers.sum(dim=-1, keepdim=True) + 1e-16)


def dnc_cosine_similarity(keys: th.Tensor, memory: th.Tensor) -> th.Tensor:
    """
    As in DeepMind's DNC: k m / (|k| |m| + 1e-6), with 1e-6 inside the root of each length as well.

    :param keys: ``[B, H, W]``
    :param memory: ``[B, N, W]``
    :return: ``[B, H, N]``
    """
    key_lengths = (keys.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()
    memory_lengths = (memory.square().sum(dim=-1) + 1e-6).sqrt().unsqueeze(-2)
    return keys @ memory.transpose(-1, -2) / (key_lengths * memory_lengths + 1e-6)
