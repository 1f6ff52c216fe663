"""Weights as plain arrays, together with a description of the axes they are over."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sb3_attn.extractors.tokenizers import ReceptiveField


class ImageGrid(NamedTuple):
    """The layout of an image's regions."""

    #: Rows and columns of regions
    grid: tuple[int, int]
    #: The pixels that one region sees
    receptive_field: ReceptiveField
    #: Height and width of the image
    image_size: tuple[int, int]


class TokenPart(NamedTuple):
    """
    A run of consecutive tokens of one kind.

    :param key: the key of the Dict observation that the tokens come from; ``None`` for any other observation
    :param kind: ``"region"`` of an image, ``"entity"`` of a matrix, ``"entry"`` of a vector, ``"slot"`` or ``"step"`` of a
        memory, or any word that a source chooses
    :param start: index of the first token
    :param stop: index after the last token
    :param image: the layout of the tokens, if they are regions of an image
    :param newest_age: if the tokens are consecutive steps in time, oldest first, the number of steps between the last of them
        and the present step; otherwise ``None``
    :param entry_names: what the entries of a vector are; ``None`` numbers them
    """

    key: str | None
    kind: str
    start: int
    stop: int
    image: ImageGrid | None = None
    newest_age: int | None = None
    entry_names: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The kind, and the key if there is one, for titles and axes."""
        return self.kind if self.key is None else f"{self.key}: {self.kind}"

    @property
    def names(self) -> list[str]:
        """A name for each token, such as ``"speed: entry 2"``, or ``"t - 3"`` for three steps ago."""
        if self.entry_names is not None:
            return [name if self.key is None else f"{self.key}: {name}" for name in self.entry_names]
        n_tokens = self.stop - self.start
        if self.newest_age is None:
            return [f"{self.label} {i}" for i in range(n_tokens)]
        return [f"t - {age}" if age else "t" for age in self.newest_age + np.arange(n_tokens)[::-1]]


@dataclass
class RecordedWeights:
    """
    The weights of one source over several steps: attention, or what a memory reads, writes, uses or links.

    :param name: the name of the source
    :param weights: ``[T, heads, tokens]``, or with rows ``[T, heads, rows, tokens]``
    :param parts: a description of the tokens
    :param rows: a description of the rows, if each step has a matrix
    :param is_distribution: True if the weights of a step share at most 1 among the tokens; False if each token has a value of
        its own, such as the usage of a slot
    :param reachable: True on the tokens that a step can put weight on, False on padding for example, bool ``[T, tokens]``;
        ``None`` if all are, except, where the tokens are past steps, those before the start of the episode
    """

    name: str
    weights: np.ndarray
    parts: tuple[TokenPart, ...]
    rows: TokenPart | None = None
    is_distribution: bool = True
    reachable: np.ndarray | None = None

    @property
    def title(self) -> str:
        """The name with spaces, for titles."""
        return self.name.replace("_", " ")

    @property
    def token_label(self) -> str:
        """The name of a token in titles, such as "past step"; just "token" where there are several kinds."""
        label = self.parts[0].label if len(self.parts) == 1 else "token"
        return label if self.parts[0].newest_age is None else f"past {label}"

    @property
    def entropy(self) -> np.ndarray:
        """
        -sum_i a_i ln a_i in nats, ``[T, heads]``: 0 if all weight is on one token, ln n if it is spread evenly.

        Weights that sum to less than 1 are divided by their sum first.
        """
        # Where all weights are 0 the smallest positive number avoids 0 / 0, and the entropy is 0
        shares = self.weights / np.maximum(self.total, np.finfo(self.weights.dtype).tiny)[..., None]
        # 0 ln 0 is 0, its limit. The sum is never positive; a minus sign would turn 0 into -0, which is printed as -0.00
        return np.abs(np.sum(shares * np.log(shares, where=shares > 0, out=np.zeros_like(shares)), axis=-1))

    @property
    def peak(self) -> np.ndarray:
        """The largest weight, ``[T, heads]``."""
        return self.weights.max(axis=-1)

    @property
    def total(self) -> np.ndarray:
        """The sum of the weights, ``[T, heads]``."""
        return self.weights.sum(axis=-1)

    @property
    def n_reachable(self) -> np.ndarray:
        """
        The number of tokens that each step can put weight on, ``[T]``.

        It is smaller in the first steps if the tokens are past steps, since none lies before the start of the episode, and
        where some tokens are padding.
        """
        return self._reachable().sum(axis=-1)

    @property
    def even(self) -> np.ndarray:
        """The weights of each step if all tokens that it can reach had the same, and the others none, ``[T, tokens]``."""
        return self._reachable() / np.maximum(self.n_reachable, 1)[:, None]

    def _reachable(self) -> np.ndarray:
        if self.reachable is not None:
            return self.reachable
        n_steps, n_tokens = len(self.weights), self.weights.shape[-1]
        newest_age = self.parts[0].newest_age
        if newest_age is None:
            return np.ones((n_steps, n_tokens), bool)
        # Step t is t steps away from the start, so whatever is older than that lies before it
        ages = newest_age + np.arange(n_tokens)[::-1]
        return ages <= np.arange(n_steps)[:, None]

    @property
    def by_step(self) -> np.ndarray | None:
        """
        Weights on past steps, arranged by the steps of the episode, which has to be recorded from its start.

        Entry ``[t, head, s]`` is the weight that step t puts on step s; it is 0 if s is later than t. ``None`` if the tokens
        are not steps, if there is weight on something before the start, or if the episode is more than four times as long
        as the memory: then a picture of all steps would show a thin diagonal line.

        :return: ``[T, heads, T]``
        """
        n_steps, _, n_tokens = self.weights.shape[:3]
        newest_age = self.parts[0].newest_age
        if newest_age is None or self.rows is not None or n_steps > 4 * n_tokens:
            return None
        # The last token of step t is step t - newest_age, and each token before it is one step older
        steps, tokens = np.indices((n_steps, n_tokens))
        past = steps - newest_age - (n_tokens - 1 - tokens)
        exists = past >= 0
        weights = self.weights.swapaxes(1, 2)  # [T, tokens, heads], so that one index array selects all heads
        if weights[~exists].any():
            return None
        by_step = np.zeros((n_steps, n_steps, weights.shape[-1]), weights.dtype)
        by_step[steps[exists], past[exists]] = weights[exists]
        return by_step.swapaxes(1, 2)
