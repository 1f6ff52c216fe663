"""Weights, and what they are over."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_attn.extractors.tokenizers import ReceptiveField


class ImageGrid(NamedTuple):
    """Where the regions of an image lie in it."""

    #: Rows and columns of regions
    grid: tuple[int, int]
    #: Which pixels a region sees
    receptive_field: ReceptiveField
    #: Height and width of the image
    image_size: tuple[int, int]


class TokenPart(NamedTuple):
    """
    A run of tokens of one kind.

    :param key: the key of a Dict observation that they come from; ``None`` if the observation is no Dict
    :param kind: ``"region"`` of an image, ``"entity"`` of a matrix, ``"entry"`` of a vector, ``"slot"`` of a memory, or
        what a source calls them
    :param start: index of the first
    :param stop: index after the last
    :param image: where they lie, if they are regions of an image
    :param newest: if they are the last steps, the oldest first: how many steps ago the last of them was
    """

    key: str | None
    kind: str
    start: int
    stop: int
    image: ImageGrid | None = None
    newest: int | None = None

    @property
    def label(self) -> str:
        """For titles and axes."""
        return self.kind if self.key is None else f"{self.key}: {self.kind}"

    @property
    def names(self) -> list[str]:
        """A name for each token, such as ``"speed: entry 2"``, or ``"t - 3"`` for three steps ago."""
        n_tokens = self.stop - self.start
        if self.newest is None:
            return [f"{self.label} {i}" for i in range(n_tokens)]
        return [f"t - {ago}" if ago else "t" for ago in self.newest + np.arange(n_tokens)[::-1]]


@dataclass
class Attention:
    """
    The weights of one source.

    :param name: of the source
    :param weights: ``[T, heads, tokens]``, or with rows ``[T, heads, rows, tokens]``
    :param parts: what the tokens are
    :param rows: what the rows are, if there is a matrix for each step
    :param is_distribution: whether weights lie on the tokens, summing to at most 1; else each token has a value of its own
    """

    name: str
    weights: np.ndarray
    parts: tuple[TokenPart, ...]
    rows: TokenPart | None = None
    is_distribution: bool = True

    @property
    def title(self) -> str:
        """The name, as words."""
        return self.name.replace("_", " ")

    @property
    def entropy(self) -> np.ndarray:
        """
        -sum_i a_i ln a_i in nats, ``[T, heads]``: 0 if all weight is on one token, ln n if it is spread evenly.

        Weights that sum to less than 1 are divided by their sum first.
        """
        shares = self.weights / np.maximum(self.total, np.finfo(self.weights.dtype).tiny)[..., None]
        return -np.sum(shares * np.log(shares, where=shares > 0, out=np.zeros_like(shares)), axis=-1)

    @property
    def peak(self) -> np.ndarray:
        """The largest weight, ``[T, heads]``."""
        return self.weights.max(axis=-1)

    @property
    def total(self) -> np.ndarray:
        """The sum of the weights, ``[T, heads]``."""
        return self.weights.sum(axis=-1)

    @property
    def n_available(self) -> np.ndarray:
        """Number of tokens that each step could put weight on, fewer where steps would lie before the start, ``[T]``."""
        n_steps, n_tokens = len(self.weights), self.weights.shape[-1]
        newest = self.parts[0].newest
        return np.full(n_steps, n_tokens) if newest is None else np.minimum(np.arange(n_steps) + 1 - newest, n_tokens)

    @property
    def by_step(self) -> np.ndarray | None:
        """
        Weights on the last steps as weights on the steps of the episode, which has to be recorded from its start.

        Entry ``[t, head, s]`` is the weight that step t puts on step s; none is on a later one. ``None`` if the tokens are
        no steps, if any weight is on something before the start, or if the steps looked back on are so few beside the
        episode's that they would be a thin line.

        :return: ``[T, heads, T]``
        """
        n_steps, _, n_tokens = self.weights.shape[:3]
        newest = self.parts[0].newest
        if newest is None or self.rows is not None or n_steps > 4 * n_tokens:
            return None
        steps, tokens = np.indices((n_steps, n_tokens))
        looked_at = steps - newest - (n_tokens - 1 - tokens)
        there = looked_at >= 0
        if self.weights.swapaxes(1, 2)[~there].any():
            return None
        weights = np.zeros((n_steps, n_steps, self.weights.shape[1]), self.weights.dtype)
        weights[steps[there], looked_at[there]] = self.weights.swapaxes(1, 2)[there]
        return weights.swapaxes(1, 2)


class WeightSource(ABC):
    """
    Something in a model that gives weights for each observation.

    A subclass in ``SOURCES`` is found by ``find_sources``; recordings, figures, videos and the command need no change.

    :param network: the part of the policy that acts: the Q-network, the actor, or the policy itself
    :param parts: what the weights are over
    """

    #: For titles and file names
    name: str
    #: Whether the weights depend on the memory of a recurrent model
    needs_state = False
    #: As for ``Attention``
    rows: TokenPart | None = None
    #: As for ``Attention``
    is_distribution = True

    def __init__(self, network: Any, parts: tuple[TokenPart, ...]) -> None:
        self.network = network
        self.parts = parts

    @classmethod
    @abstractmethod
    def from_network(cls, network: Any) -> "list[WeightSource]":
        """
        The sources of this kind; none if the network does not have what it takes.

        :param network: see above
        """

    @abstractmethod
    def weights(self, observations: PyTorchObs, state: Any = None, next_state: Any = None) -> th.Tensor:
        """
        The weights; nothing in the network changes.

        :param observations: as ``policy.obs_to_tensor`` gives them, ``[B, ...]``
        :param state: the memory before the step, as ``predict`` returns it; ``None`` at an episode's start, and for a
            model without memory
        :param next_state: the memory after the step
        :return: ``[B, heads, tokens]``, or with rows ``[B, heads, rows, tokens]``
        """

    def attention(self, weights: np.ndarray) -> Attention:
        """
        The weights of several steps, with what they are over.

        :param weights: ``[T, ...]``, as from ``weights``
        """
        return Attention(self.name, weights, self.parts, self.rows, self.is_distribution)


def features_extractor(network: Any) -> Any:
    """
    The features extractor with which a network acts.

    :param network: as ``acting_network`` returns it
    """
    # An actor-critic policy may have two; the value function's does not act
    extractor = getattr(network, "pi_features_extractor", None)
    return network.features_extractor if extractor is None else extractor
