"""Prioritized replay of sequences."""

from typing import Any

import numpy as np
import torch as th

from sb3_attn.common.td import importance_weights, sequence_priority
from sb3_attn.replay.samples import SequenceReplayBufferSamples
from sb3_attn.replay.sequence_buffer import SequenceReplayBuffer

#: A window whose errors are all 0 can still be drawn
MIN_PRIORITY = 1e-6


class PrioritizedSequenceReplayBuffer(SequenceReplayBuffer):
    """
    Draws windows in proportion to ``priority ** priority_exponent`` and weighs their losses accordingly.

    Schaul et al. (2016), proportional variant; the priorities of sequences and both exponents are those of R2D2
    (Kapturowski et al. 2019, section 2.3). A new window's priority is made from the TD errors that came with its steps, or
    is the largest that learning has seen so far.

    :param args: as for ``SequenceReplayBuffer``
    :param priority_exponent: 0 is uniform replay
    :param importance_exponent: 0 leaves the bias of the sampling in, 1 removes it
    :param kwargs: as for ``SequenceReplayBuffer``
    :raises ValueError: if an exponent lies outside ``[0, 1]``
    """

    def __init__(self, *args: Any, priority_exponent: float = 0.9, importance_exponent: float = 0.6, **kwargs: Any) -> None:
        for name, value in (("priority_exponent", priority_exponent), ("importance_exponent", importance_exponent)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie between 0 and 1.")
        super().__init__(*args, **kwargs)
        self.priority_exponent = priority_exponent
        self.importance_exponent = importance_exponent
        self._largest_leaf = 1.0
        self.td_errors: np.ndarray | None = None  # [buffer_size, n_envs]; made when the first errors come

    def add(self, *args: Any, td_errors: np.ndarray | None = None, **kwargs: Any) -> None:
        """
        Append one step to each of n lanes.

        :param args: as for ``SequenceReplayBuffer``
        :param td_errors: |delta| of the steps as whoever acted saw them, ``[n]``; ``None`` means not known
        :param kwargs: as for ``SequenceReplayBuffer``
        """
        if td_errors is not None and self.td_errors is None:
            self.td_errors = np.full((self.buffer_size, self.n_envs), np.nan, np.float32)
        if self.td_errors is not None:
            lanes = np.arange(self.n_envs) if kwargs.get("lanes") is None else np.asarray(kwargs["lanes"])
            self.td_errors[self.pos[lanes], lanes] = np.nan if td_errors is None else td_errors
        super().add(*args, **kwargs)

    def _new_leaves(self, slots: np.ndarray, lanes: np.ndarray, lengths: np.ndarray | int) -> np.ndarray | float:
        if self.td_errors is None or len(slots) == 0:
            return self._largest_leaf
        lengths = np.broadcast_to(lengths, slots.shape)
        time = np.arange(lengths.max())[:, None]
        mask = time < lengths
        errors = np.where(mask, self.td_errors[(slots + time) % self.buffer_size, lanes], 0.0)
        leaves = self._to_leaves(sequence_priority(th.from_numpy(errors), th.from_numpy(mask)).numpy())
        return np.where(np.isnan(leaves), self._largest_leaf, leaves)

    def _to_leaves(self, priorities: np.ndarray) -> np.ndarray:
        return np.maximum(priorities, MIN_PRIORITY) ** self.priority_exponent

    def _draw(self, batch_size: int) -> np.ndarray:
        # One draw from each of `batch_size` equal parts of the total: as likely as independent draws, but spread out
        parts = (np.arange(batch_size) + np.random.rand(batch_size)) / batch_size
        return self._tree.find(parts * self._tree.total)

    def _importance_weights(self, batch_inds: np.ndarray) -> np.ndarray:
        probabilities = self._tree[batch_inds] / self._tree.total
        weights = importance_weights(th.from_numpy(probabilities), self.n_windows, self.importance_exponent)
        return weights.numpy().astype(np.float32)

    def update_priorities(self, samples: SequenceReplayBufferSamples, priorities: np.ndarray) -> None:
        """
        Set the priorities of a batch's windows, save those that were overwritten since.

        :param samples: the batch
        :param priorities: ``[B]``
        :raises ValueError: if one is negative, NaN or infinite, which would spoil the sums of all others
        """
        if not (np.isfinite(priorities) & (priorities >= 0)).all():
            raise ValueError(f"priorities={priorities} must be finite and at least 0; look for NaN in the TD errors.")
        slots, lanes = np.divmod(samples.indices, self.n_envs)
        alive = (self.window_ids[slots, lanes] == samples.window_ids) & (self.window_lengths[slots, lanes] > 0)
        leaves = self._to_leaves(priorities[alive])
        self._tree.update(samples.indices[alive], leaves)
        self._largest_leaf = max(self._largest_leaf, leaves.max(initial=0.0))
