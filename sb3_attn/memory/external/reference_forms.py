"""
Cosine similarity and sharpening exactly as in the implementations that the tests compare with.

Their gradients are in places infinite or unnecessarily large. To train, use the forms in ``addressing``.
"""

import torch as th
from torch.nn import functional as F


def cosine_similarity(keys: th.Tensor, memory: th.Tensor) -> th.Tensor:
    """
    Cosine similarity of pytorch-ntm, which adds 1e-16 to every entry of the vectors.

    :param keys: ``[B, H, W]``
    :param memory: ``[B, N, W]``
    :return: ``[B, H, N]``
    """
    return F.cosine_similarity(memory.unsqueeze(1) + 1e-16, keys.unsqueeze(2) + 1e-16, dim=-1)


def sharpen(weights: th.Tensor, exponents: th.Tensor) -> th.Tensor:
    """
    Sharpening of pytorch-ntm: powers, in which uniform weights over many slots underflow.

    :param weights: ``[B, H, N]``
    :param exponents: ``[B, H, 1]``
    :return: ``[B, H, N]``
    """
    powers = weights**exponents
    return powers / (powers.sum(dim=-1, keepdim=True) + 1e-16)


def dnc_cosine_similarity(keys: th.Tensor, memory: th.Tensor) -> th.Tensor:
    """
    Cosine similarity of DeepMind's DNC: k m / (|k| |m| + 1e-6), with 1e-6 also inside the root of each norm.

    :param keys: ``[B, H, W]``
    :param memory: ``[B, N, W]``
    :return: ``[B, H, N]``
    """
    key_norms = (keys.square().sum(dim=-1, keepdim=True) + 1e-6).sqrt()
    memory_norms = (memory.square().sum(dim=-1) + 1e-6).sqrt().unsqueeze(-2)
    return keys @ memory.transpose(-1, -2) / (key_norms * memory_norms + 1e-6)
