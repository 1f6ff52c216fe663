"""Attention as modules: each returns the result together with the attention weights."""

from abc import ABC, abstractmethod

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_attn.attention.functional import (
    additive_score,
    bilinear_score,
    dot_product_score,
    hard_weights,
    linear_score,
    soft_weights,
)
from sb3_attn.common.checks import check_number, check_whole


class Score(nn.Module, ABC):
    """
    Scores how much each region matters.

    :param region_size: size d of a region
    :param query_size: size of the query; ``None`` if there is none
    :param attention_size: size a of the space in which regions are scored
    :param n_heads: number H of scores per region
    :raises ValueError: if a query is missing where the score needs one, or given where it takes none
    """

    needs_query = False
    takes_query = False

    def __init__(self, region_size: int, query_size: int | None, attention_size: int, n_heads: int) -> None:
        super().__init__()
        name = type(self).__name__
        if self.needs_query and query_size is None:
            raise ValueError(f"{name} compares regions with a query, but query=None; give one, such as 'mean'.")
        if not self.takes_query and query_size is not None:
            raise ValueError(f"{name} has no use for a query; leave it None, or use score='bilinear' or 'additive'.")
        self.n_heads = n_heads

    @abstractmethod
    def forward(self, regions: th.Tensor, query: th.Tensor | None = None) -> th.Tensor:
        """
        Scores.

        :param regions: ``[B, n, d]``
        :param query: ``[B, query_size]``
        :return: ``[B, H, n]``
        """


class AdditiveScore(Score):
    """W2 tanh(W1 x + Wq q), with or without the query. Parameters as for ``Score``."""

    takes_query = True

    def __init__(self, region_size: int, query_size: int | None, attention_size: int, n_heads: int) -> None:
        super().__init__(region_size, query_size, attention_size, n_heads)
        self.key = nn.Linear(region_size, attention_size)
        self.query = None if query_size is None else nn.Linear(query_size, attention_size, bias=False)
        self.vector = nn.Linear(attention_size, n_heads)

    def forward(self, regions: th.Tensor, query: th.Tensor | None = None) -> th.Tensor:
        projected = None if self.query is None else self.query(query)
        # The bias shifts all scores of a head alike, so the softmax ignores it. The published networks have it, and their
        # numbers of parameters include it.
        return additive_score(self.key(regions), self.vector.weight, projected) + self.vector.bias.unsqueeze(-1)


class LinearScore(Score):
    """w x. Parameters as for ``Score``; ``attention_size`` is not used."""

    def __init__(self, region_size: int, query_size: int | None, attention_size: int, n_heads: int) -> None:
        super().__init__(region_size, query_size, attention_size, n_heads)
        self.vector = nn.Linear(region_size, n_heads, bias=False)

    def forward(self, regions: th.Tensor, query: th.Tensor | None = None) -> th.Tensor:
        return linear_score(regions, self.vector.weight)


class BilinearScore(Score):
    """(x W1) (W2 q). Parameters as for ``Score``."""

    needs_query = takes_query = True
    score = staticmethod(bilinear_score)

    def __init__(self, region_size: int, query_size: int | None, attention_size: int, n_heads: int) -> None:
        super().__init__(region_size, query_size, attention_size, n_heads)
        assert query_size is not None, "checked above"
        self.key = nn.Linear(region_size, n_heads * attention_size, bias=False)
        self.query = nn.Linear(query_size, n_heads * attention_size, bias=False)

    def forward(self, regions: th.Tensor, query: th.Tensor | None = None) -> th.Tensor:
        keys = self.key(regions).unflatten(-1, (self.n_heads, -1)).transpose(-2, -3)  # [B, n, H * a] -> [B, H, n, a]
        return self.score(keys, self.query(query).unflatten(-1, (self.n_heads, -1)))


class DotProductScore(BilinearScore):
    """(x W1) (W2 q) / sqrt(a). Parameters as for ``Score``."""

    score = staticmethod(dot_product_score)


SCORES: dict[str, type[Score]] = {
    "additive": AdditiveScore,
    "bilinear": BilinearScore,
    "dot_product": DotProductScore,
    "linear": LinearScore,
}


class SoftAttention(nn.Module):
    """
    context = sum_i alpha_i x_i with alpha = softmax(score(x)), one context per head.

    Xu et al. (2015), section 4.2; Sorokin et al. (2015), section 3.1.

    :param region_size: size d of a region
    :param score: a key of ``SCORES``
    :param query_size: size of the query; ``None`` if there is none
    :param attention_size: size a of the space in which regions are scored
    :param n_heads: number H of contexts
    :param temperature: below 1 sharpens the weights, above 1 flattens them
    :raises ValueError: if the score is unknown or does not fit the query, or a number is not positive
    """

    def __init__(
        self,
        region_size: int,
        score: str = "additive",
        query_size: int | None = None,
        attention_size: int = 64,
        n_heads: int = 1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score={score!r} is unknown; choose one of {sorted(SCORES)}.")
        check_whole("attention_size", attention_size, at_least=1)
        check_whole("n_heads", n_heads, at_least=1)
        check_number("temperature", temperature, low=0, positive=True)
        self.score = SCORES[score](region_size, query_size, attention_size, n_heads)
        self.n_heads = n_heads
        self.temperature = temperature

    def forward(
        self, regions: th.Tensor, query: th.Tensor | None = None, mask: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Attend.

        :param regions: ``[B, n, d]``
        :param query: ``[B, query_size]``
        :param mask: True on real regions, bool ``[B, n]``
        :return: contexts ``[B, H, d]`` and attention weights ``[B, H, n]``
        """
        weights = self._select(self.score(regions, query), None if mask is None else mask.unsqueeze(-2))
        return weights @ regions, weights  # [B, H, n] @ [B, n, d]

    def _select(self, scores: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        return soft_weights(scores, mask, self.temperature)


class HardAttention(SoftAttention):
    """
    context = x_i for one region i per head, learned with the straight-through gradient.

    In training mode the region is drawn, unless ``samples_in_training`` is ``False``; otherwise it is the most likely one, so
    acting and targets are deterministic. Parameters as for ``SoftAttention``.
    """

    #: Whether the module samples in training mode
    samples_in_training = True

    def _select(self, scores: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        return hard_weights(scores, mask, self.temperature, sample=self.training and self.samples_in_training)


class MultiHeadSelfAttention(nn.Module):
    """
    softmax(Q K^T / sqrt(d / H)) V for each head, concatenated and projected.

    Vaswani et al. (2017), section 3.2.2. With the same weights it equals ``nn.MultiheadAttention``, except that a row whose
    tokens are all masked gives the output bias instead of NaN.

    :param size: size d of a token, in and out
    :param n_heads: number H of heads
    :raises ValueError: if the heads do not divide the size
    """

    def __init__(self, size: int, n_heads: int) -> None:
        super().__init__()
        if n_heads < 1 or size % n_heads:
            raise ValueError(f"n_heads={n_heads} does not divide the token size {size}; choose one of its divisors.")
        self.n_heads = n_heads
        self.in_projection = nn.Linear(size, 3 * size)
        self.out_projection = nn.Linear(size, size)

    def forward(
        self, tokens: th.Tensor, mask: th.Tensor | None = None, need_weights: bool = False
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        Let each token attend to all.

        :param tokens: ``[B, n, d]``
        :param mask: True on real tokens, bool ``[B, n]``
        :param need_weights: whether to return the weights too, which takes a slower path
        :return: ``[B, n, d]``, and the weights of each query over the keys, ``[B, H, n, n]``, or ``None``
        """
        heads = self.in_projection(tokens).unflatten(-1, (3, self.n_heads, -1))  # [B, n, 3, H, d / H]
        queries, keys, values = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, H, n, d / H]
        mask = None if mask is None else mask[:, None, None, :]
        if need_weights:
            scores = queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
            weights = soft_weights(scores, mask)
            contexts = weights @ values
        else:
            weights = None
            contexts = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
            if mask is not None:
                # Where all keys are masked, the result of the fused kernel depends on the device
                contexts = contexts.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)
        return self.out_projection(contexts.transpose(-2, -3).flatten(-2)), weights


class SelfAttentionBlock(nn.Module):
    """
    A transformer block: z = x + attention(norm(x)), output z + feedforward(norm(z)).

    The pre-LN form of Xiong et al. (2020), figure 1b; used as a relational module by Zambaldi et al. (2019).

    :param size: size d of a token
    :param n_heads: number H of heads
    :param feedforward_size: size of the hidden layer of the feed-forward network, which is applied to each token
    """

    def __init__(self, size: int, n_heads: int, feedforward_size: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(size)
        self.attention = MultiHeadSelfAttention(size, n_heads)
        self.feedforward_norm = nn.LayerNorm(size)
        self.feedforward = nn.Sequential(nn.Linear(size, feedforward_size), nn.ReLU(), nn.Linear(feedforward_size, size))

    def forward(
        self, tokens: th.Tensor, mask: th.Tensor | None = None, need_weights: bool = False
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """As ``MultiHeadSelfAttention.forward``."""
        attended, weights = self.attention(self.attention_norm(tokens), mask, need_weights)
        tokens = tokens + attended
        return tokens + self.feedforward(self.feedforward_norm(tokens)), weights
