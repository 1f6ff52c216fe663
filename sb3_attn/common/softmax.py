"""Masked softmax."""

import torch as th


def masked_softmax(scores: th.Tensor, mask: th.Tensor) -> th.Tensor:
    """
    Softmax over the real entries of the last axis.

    :param scores: ``[..., n]``
    :param mask: True on real entries, bool, broadcast to the scores
    :return: weights ``[..., n]`` that sum to 1, or are all 0 (not NaN) where no entry is real
    """
    # The most negative number instead of -inf: without a real entry all scores would be -inf, and their softmax NaN
    weights = scores.masked_fill(~mask, th.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~mask, 0.0)
