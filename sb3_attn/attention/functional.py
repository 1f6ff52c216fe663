"""
Attention as pure functions: scores say how much each region matters, selections turn scores into weights.

Shapes: B rows, H heads, n regions of size d, scored in a space of size a. A mask is True on real regions and False on
padding. Weights ``[..., n]`` are normalised over the last axis.
"""

import math

import torch as th
from torch.nn import functional as F

from sb3_attn.common.softmax import masked_softmax


def additive_score(keys: th.Tensor, vector: th.Tensor, query: th.Tensor | None = None) -> th.Tensor:
    """
    W2 tanh(W1 x + q): Bahdanau et al. (2015), section A.1.2; without a query, Xu et al. (2015) and DQN-SA.

    :param keys: W1 x, ``[B, n, a]``
    :param vector: W2, one row per head, ``[H, a]``
    :param query: q, already projected to size a, ``[B, a]``; ``None`` leaves it out
    :return: ``[B, H, n]``
    """
    hidden = th.tanh(keys if query is None else keys + query.unsqueeze(-2))  # [B, n, a] + [B, 1, a]
    return F.linear(hidden, vector).transpose(-1, -2)  # [B, n, H] -> [B, H, n]


def linear_score(regions: th.Tensor, vector: th.Tensor) -> th.Tensor:
    """
    w x. Without a query the bilinear score ``x W1 W2`` reduces to this, since W1 W2 is a single vector.

    :param regions: x, ``[B, n, d]``
    :param vector: w, one row per head, ``[H, d]``
    :return: ``[B, H, n]``
    """
    return F.linear(regions, vector).transpose(-1, -2)


def bilinear_score(keys: th.Tensor, query: th.Tensor) -> th.Tensor:
    """
    (x W1) (W2 q): Luong et al. (2015), eq. 8, with the matrix W = W1 W2 of rank a.

    :param keys: x W1, ``[B, H, n, a]``
    :param query: W2 q, ``[B, H, a]``
    :return: ``[B, H, n]``
    """
    return (keys @ query.unsqueeze(-1)).squeeze(-1)  # [B, H, n, a] @ [B, H, a, 1]


def dot_product_score(keys: th.Tensor, query: th.Tensor) -> th.Tensor:
    """
    k q / sqrt(a): Vaswani et al. (2017), eq. 1. The bilinear score, divided so that it does not grow with the size a.

    :param keys: ``[B, H, n, a]``
    :param query: ``[B, H, a]``
    :return: ``[B, H, n]``
    """
    return bilinear_score(keys, query) / math.sqrt(query.shape[-1])


def soft_weights(scores: th.Tensor, mask: th.Tensor | None = None, temperature: float = 1.0) -> th.Tensor:
    """
    softmax(scores / temperature) over the real regions.

    :param scores: ``[..., n]``
    :param mask: bool, broadcast to the scores; ``None`` means that all regions are real
    :param temperature: below 1 sharpens the weights, above 1 flattens them
    :return: ``[..., n]``; each row sums to 1, or is all 0 (not NaN) where no region is real
    """
    scores = scores / temperature
    return scores.softmax(dim=-1) if mask is None else masked_softmax(scores, mask)


def hard_weights(
    scores: th.Tensor, mask: th.Tensor | None = None, temperature: float = 1.0, sample: bool = False
) -> th.Tensor:
    """
    One region per row: weight 1 there and 0 elsewhere, with the gradient of the soft weights (straight-through).

    Bengio et al. (2013), section 4. The gradient is biased, but it needs no extra term in the loss.

    :param scores: ``[..., n]``
    :param mask: as for ``soft_weights``
    :param temperature: as for ``soft_weights``; it affects only the gradient and the drawing
    :param sample: draw the region, with the soft weights as probabilities; otherwise take the most likely one
    :return: ``[..., n]``; rows without a real region are all 0
    """
    soft = soft_weights(scores, mask, temperature)
    # A row without a real region has nothing but weights of 0: any pick will do, since it is masked out below
    chosen = sample_categorical(soft) if sample else soft.argmax(dim=-1)
    hard = F.one_hot(chosen, soft.shape[-1]).to(soft.dtype)
    if mask is not None:
        hard = hard.masked_fill(~mask, 0.0)
    # The value is that of hard, since the difference is exactly 0; the gradient is that of soft, the only term that has one
    return hard + (soft - soft.detach())


def sample_categorical(weights: th.Tensor) -> th.Tensor:
    """
    One index per row, drawn with probabilities proportional to the weights.

    :param weights: ``[..., n]``, at least 0; a row of zeros gives an arbitrary index
    :return: int64, ``[...]``
    """
    # With e_i ~ Exp(1), w_i / e_i is the largest with probability w_i / sum(w): one pass, and no need to normalise
    return (weights / th.empty_like(weights).exponential_()).argmax(dim=-1)


def masked_mean(values: th.Tensor, mask: th.Tensor | None = None) -> th.Tensor:
    """
    Mean over the real regions.

    :param values: ``[..., n, d]``
    :param mask: bool ``[..., n]``, broadcast; ``None`` means that all regions are real
    :return: ``[..., d]``, 0 where no region is real
    """
    if mask is None:
        return values.mean(dim=-2)
    real = mask.unsqueeze(-1)
    return values.masked_fill(~real, 0.0).sum(dim=-2) / real.sum(dim=-2).clamp(min=1)


def masked_max(values: th.Tensor, mask: th.Tensor | None = None) -> th.Tensor:
    """
    Maximum of each feature over the real regions.

    :param values: ``[..., n, d]``
    :param mask: bool ``[..., n]``, broadcast; ``None`` means that all regions are real
    :return: ``[..., d]``, 0 where no region is real
    """
    if mask is None:
        return values.amax(dim=-2)
    real = mask.unsqueeze(-1)
    largest = values.masked_fill(~real, th.finfo(values.dtype).min).amax(dim=-2)
    return largest.masked_fill(~real.any(dim=-2), 0.0)


def grid_coordinates(height: int, width: int) -> th.Tensor:
    """
    Coordinates of the regions of a grid, row by row, from (-1, -1) for the first region to (1, 1) for the last.

    :param height: number of rows
    :param width: number of columns
    :return: ``[height * width, 2]``, vertical then horizontal; 0 along an axis with a single region
    """
    axes = (th.linspace(-1, 1, size) if size > 1 else th.zeros(1) for size in (height, width))
    return th.stack(th.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
