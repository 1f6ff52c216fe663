"""A softmax over what is there."""

import torch as th


def masked_softmax(scores: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    softmax over the real entries of the last axis.

    :param scores: ``[..., n]``
    :param mask: True on real entries, bool, broadcast to the scores
    :return: ``[..., n]``; they sum to 1, or are all 0 (not NaN) where no entry is real
    """
    weights = scores.masked_fill(~mask, th.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~mask, 0.0)
