"""Features extractors that attend, for any of SB3's algorithms."""

from abc import abstractmethod
from collections.abc import Mapping
from numbers import Integral
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_attn.attention import SCORES, HardAttention, SelfAttentionBlock, SoftAttention
from sb3_attn.attention.functional import masked_max, masked_mean
from sb3_attn.common.checks import check_flag, check_whole
from sb3_attn.common.former_names import FormerParameterNames
from sb3_attn.extractors.tokenizers import Trunk, make_tokenizer

__all__ = [
    "AttentionExtractor",
    "HardAttentionExtractor",
    "RegionExtractor",
    "SelfAttentionExtractor",
    "SoftAttentionExtractor",
]


class AttentionExtractor(FormerParameterNames, BaseFeaturesExtractor):
    """
    Tokens -> attention -> linear layer -> features.

    :param observation_space: an image, a matrix of entities, a vector, or a Dict of these
    :param features_dim: Number of features extracted.
    :param token_size: size of the tokens of matrices, vectors and Dicts
    :param trunk: convolutions that turn an image into regions: ``"nature"`` (Mnih et al. 2015), ``"patches"`` (8 x 8 pixels
        that do not overlap), or a list of (channels, kernel size, stride)
    :param coordinates: append its coordinates to each region; without them attention loses *where* a region is
    :param channels_last: use the memory layout in which convolutions are fastest; it changes nothing else
    :param mask_keys: for a Dict whose matrices have a varying number of entities: maps the key of a matrix to the key of the
        vector that is 1 on its real rows and 0 on padding, such as ``{"units": "units_mask"}``. Padding has weight 0 and
        no influence; the vector has no tokens of its own.
    :raises ValueError: if an argument does not fit the observation space
    """

    former_parameters: ClassVar[dict[str, str]] = {"tokens": "tokenizer"}

    def __init__(
        self,
        observation_space: spaces.Space,
        features_dim: int = 512,
        token_size: int = 64,
        trunk: str | Trunk = "nature",
        coordinates: bool = True,
        channels_last: bool = True,
        mask_keys: Mapping[str, str] | None = None,
    ) -> None:
        check_whole("features_dim", features_dim, at_least=1)
        super().__init__(observation_space, features_dim)
        self.tokenizer = make_tokenizer(
            observation_space, token_size, mask_keys, trunk=trunk, coordinates=coordinates, channels_last=channels_last
        )

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        Features.

        :param observations: ``[B, ...]``
        :return: ``[B, features_dim]``
        """
        return self.attend(observations)[0]

    @abstractmethod
    def attend(self, observations: PyTorchObs, need_weights: bool = False) -> tuple[th.Tensor, th.Tensor | None]:
        """
        Features together with the attention weights.

        :param observations: ``[B, ...]``
        :param need_weights: whether to compute the weights where they take extra time
        :return: ``[B, features_dim]`` and attention weights ``[B, heads, tokens]``, or ``None`` if they are not needed
        """


class SoftAttentionExtractor(AttentionExtractor):
    """
    A weighted sum of the tokens (Xu et al. 2015; Sorokin et al. 2015).

    :param observation_space: as for ``AttentionExtractor``
    :param features_dim: Number of features extracted.
    :param score: ``"additive"``, ``"linear"``, or with a query ``"bilinear"`` and ``"dot_product"``
    :param query: the query that tokens are compared with: ``"mean"`` of the tokens, or the index of a token; ``None`` means
        the mean if the score needs a query, and no query otherwise
    :param attention_size: size of the space in which tokens are scored
    :param n_heads: number of heads, whose contexts are concatenated
    :param temperature: below 1 sharpens the weights, above 1 flattens them
    :param sum_tokens: ``False`` concatenates the weighted tokens instead of summing them
    :param token_kwargs: as for ``AttentionExtractor``
    :raises ValueError: if an argument does not fit the others or the observation space
    """

    attention_class: type[SoftAttention] = SoftAttention

    def __init__(
        self,
        observation_space: spaces.Space,
        features_dim: int = 512,
        score: str = "additive",
        query: str | int | None = None,
        attention_size: int = 64,
        n_heads: int = 1,
        temperature: float = 1.0,
        sum_tokens: bool = True,
        **token_kwargs: Any,
    ) -> None:
        super().__init__(observation_space, features_dim, **token_kwargs)
        n_tokens, token_size = self.tokenizer.n_tokens, self.tokenizer.token_size
        if query is None and score in SCORES and SCORES[score].needs_query:
            query = "mean"
        self.query = None if query is None else _word_or_index("query", query, ("mean",), n_tokens)
        check_flag("sum_tokens", sum_tokens)
        self.sum_tokens = sum_tokens
        query_size = None if query is None else token_size
        self.attention = self.attention_class(token_size, score, query_size, attention_size, n_heads, temperature)
        n_contexts = n_heads if sum_tokens else n_heads * n_tokens
        self.linear = nn.Sequential(nn.Linear(n_contexts * token_size, features_dim), nn.ReLU())

    def attend(self, observations: PyTorchObs, need_weights: bool = False) -> tuple[th.Tensor, th.Tensor]:
        tokens, mask = self.tokenizer(observations), self.tokenizer.mask(observations)
        contexts, weights = self.attention(tokens, self._query(tokens, mask), mask)
        if not self.sum_tokens:
            contexts = weights.unsqueeze(-1) * tokens.unsqueeze(1)  # [B, H, n, 1] * [B, 1, n, d]
        return self.linear(contexts.flatten(1)), weights

    def _query(self, tokens: th.Tensor, mask: th.Tensor | None) -> th.Tensor | None:
        if self.query is None:
            return None
        return tokens[:, self.query] if isinstance(self.query, int) else masked_mean(tokens, mask)


class HardAttentionExtractor(SoftAttentionExtractor):
    """
    One token per head, learned with the straight-through gradient.

    :param observation_space: as for ``AttentionExtractor``
    :param sample: whether updates draw the token, with the weights as probabilities, instead of taking the most likely one, as
        acting and targets always do. For off-policy algorithms only: in PPO and A2C, whose rollouts would take the most likely
        token and whose updates drawn ones, the ratios of action probabilities would no longer be 1 before the first update
    :param kwargs: as for ``SoftAttentionExtractor``
    """

    attention_class = HardAttention
    attention: HardAttention

    def __init__(self, observation_space: spaces.Space, *args: Any, sample: bool = False, **kwargs: Any) -> None:
        super().__init__(observation_space, *args, **kwargs)
        self.attention.samples_in_training = sample


class SelfAttentionExtractor(AttentionExtractor):
    """
    Tokens attend to each other, then are pooled (Zambaldi et al. 2019).

    :param observation_space: as for ``AttentionExtractor``
    :param features_dim: Number of features extracted.
    :param n_blocks: number of blocks
    :param n_heads: number of heads in each
    :param block_size: size of the tokens inside the blocks
    :param feedforward_size: hidden size of the feed-forward network in each block; ``None`` means twice ``block_size``
    :param pooling: ``"max"`` (as in the paper) or ``"mean"`` over the tokens, or the index of a single token to read out, such
        as that of a cell that shows what to look for
    :param token_kwargs: as for ``AttentionExtractor``
    :raises ValueError: if an argument does not fit
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        features_dim: int = 512,
        n_blocks: int = 1,
        n_heads: int = 4,
        block_size: int = 64,
        feedforward_size: int | None = None,
        pooling: str | int = "max",
        **token_kwargs: Any,
    ) -> None:
        super().__init__(observation_space, features_dim, **token_kwargs)
        feedforward_size = 2 * block_size if feedforward_size is None else feedforward_size
        sizes = {"n_blocks": n_blocks, "n_heads": n_heads, "block_size": block_size, "feedforward_size": feedforward_size}
        for name, size in sizes.items():
            check_whole(name, size, at_least=1)
        self.pooling = _word_or_index("pooling", pooling, ("max", "mean"), self.tokenizer.n_tokens)
        self.projection = nn.Linear(self.tokenizer.token_size, block_size)
        self.blocks = nn.ModuleList(SelfAttentionBlock(block_size, n_heads, feedforward_size) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(block_size)
        self.linear = nn.Sequential(nn.Linear(block_size, features_dim), nn.ReLU())

    def attend(self, observations: PyTorchObs, need_weights: bool = False) -> tuple[th.Tensor, th.Tensor | None]:
        tokens, mask = self.projection(self.tokenizer(observations)), self.tokenizer.mask(observations)
        for block in self.blocks:
            tokens, weights = block(tokens, mask, need_weights)
        features = self.linear(self._pool(self.norm(tokens), mask))
        if not need_weights:
            return features, None
        # Weights of the last block: of the token that is read out, or averaged over all tokens
        if isinstance(self.pooling, int):
            return features, weights[..., self.pooling, :]
        return features, masked_mean(weights, None if mask is None else mask.unsqueeze(1))

    def _pool(self, tokens: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        if isinstance(self.pooling, int):
            return tokens[:, self.pooling]
        return masked_max(tokens, mask) if self.pooling == "max" else masked_mean(tokens, mask)


class RegionExtractor(FormerParameterNames, BaseFeaturesExtractor):
    """
    The concatenated tokens, for a memory that attends to them itself (``DARQNPolicy``).

    With ``mask_keys`` each token has an additional last entry, 1 if it is real and 0 if it is padding.

    :param observation_space: as for ``AttentionExtractor``
    :param token_kwargs: as for ``AttentionExtractor``, without ``features_dim``
    """

    former_parameters: ClassVar[dict[str, str]] = {"tokens": "tokenizer"}

    def __init__(self, observation_space: spaces.Space, **token_kwargs: Any) -> None:
        tokenizer = make_tokenizer(observation_space, **token_kwargs)
        token_size = tokenizer.token_size + bool(token_kwargs.get("mask_keys"))
        super().__init__(observation_space, tokenizer.n_tokens * token_size)
        self.tokenizer = tokenizer

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        tokens, mask = self.tokenizer(observations), self.tokenizer.mask(observations)
        if mask is not None:
            tokens = th.cat((tokens, mask.unsqueeze(-1)), dim=-1)
        return tokens.flatten(1)


def _word_or_index(name: str, value: str | int, words: tuple[str, ...], n_tokens: int) -> str | int:
    """Check an argument that is one of ``words`` or the index of a token, which may be an integer of NumPy's."""
    if isinstance(value, str) and value in words:
        return value
    # A bool is an Integral, but True is more likely a mistake than the second token
    if isinstance(value, Integral) and not isinstance(value, bool) and -n_tokens <= value < n_tokens:
        return int(value)
    choices = ", ".join(map(repr, words))
    raise ValueError(f"{name}={value!r} is unknown; choose {choices}, or the index of one of {n_tokens} tokens.")
