"""Prioritized replay of windows."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th

from sb3_attn.common.td import importance_weights, sequence_priority
from sb3_attn.replay.observation_store import Observation
from sb3_attn.replay.samples import SequenceReplayBufferSamples
from sb3_attn.replay.sequence_buffer import SequenceReplayBuffer

#: Lower bound of priorities, so that a window whose errors are all 0 can still be drawn
MIN_PRIORITY = 1e-6


class PrioritizedSequenceReplayBuffer(SequenceReplayBuffer):
    """
    Draws windows in proportion to ``priority ** priority_exponent`` and weights their losses accordingly.

    Schaul et al. (2016), proportional variant; the priorities of sequences and both exponents are those of R2D2
    (Kapturowski et al. 2019, section 2.3). The priority of a new window follows from the TD errors that were added with its
    steps; if there are none it is the largest priority in the buffer, or 1 if the buffer is empty.

    :param args: as for ``SequenceReplayBuffer``
    :param priority_exponent: 0 is uniform replay
    :param importance_exponent: 0 leaves the bias of the sampling in, 1 removes it
    :param kwargs: as for ``SequenceReplayBuffer``
    :raises ValueError: if an exponent lies outside ``[0, 1]``
    """

    former_attributes = {**SequenceReplayBuffer.former_attributes, "_largest_leaf": None, "_max_priority": None}

    def __init__(self, *args: Any, priority_exponent: float = 0.9, importance_exponent: float = 0.6, **kwargs: Any) -> None:
        for name, value in (("priority_exponent", priority_exponent), ("importance_exponent", importance_exponent)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie between 0 and 1.")
        self.td_errors: np.ndarray | None = None  # [buffer_size, n_envs], NaN if unknown; made when the first errors come
        super().__init__(*args, **kwargs)
        self.priority_exponent = priority_exponent
        self.importance_exponent = importance_exponent

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self.td_errors is None else self.td_errors.nbytes)

    def add(
        self,
        obs: Observation,
        next_obs: Observation,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
        core_state: tuple[Any, ...] | None = None,
        episode_starts: np.ndarray | None = None,
        env_indices: np.ndarray | None = None,
        td_errors: np.ndarray | None = None,
    ) -> None:
        """
        Append one step of each of n environments. Parameters as for ``SequenceReplayBuffer.add``, and:

        :param td_errors: |delta| of the steps as the actor computed them, ``[n]``; ``None`` means unknown
        """
        if td_errors is not None and self.td_errors is None:
            self.td_errors = np.full((self.buffer_size, self.n_envs), np.nan, np.float32)
        if self.td_errors is not None:  # before the step itself, which may complete a window
            envs = np.arange(self.n_envs) if env_indices is None else np.asarray(env_indices)
            self.td_errors[self.pos[envs], envs] = np.nan if td_errors is None else td_errors
        super().add(obs, next_obs, action, reward, done, infos, core_state, episode_starts, env_indices)

    def state_arrays(self) -> dict[str, np.ndarray]:
        errors = {} if self.td_errors is None else {"td_errors": self.td_errors}
        return super().state_arrays() | errors

    def set_state_arrays(self, state: Mapping[str, np.ndarray]) -> None:
        self.td_errors = state["td_errors"].copy() if "td_errors" in state else None
        super().set_state_arrays(state)

    def _initial_priorities(
        self, positions: np.ndarray, env_indices: np.ndarray, lengths: np.ndarray | int
    ) -> np.ndarray | float:
        # The largest now rather than ever, or one outlier would make every new window as important for good. Windows have
        # leaves above 0, so 0 means that there is none.
        largest = self._tree.largest or 1.0
        if self.td_errors is None or len(positions) == 0:
            return largest
        lengths = np.broadcast_to(lengths, positions.shape)
        time = np.arange(lengths.max())[:, None]
        mask = time < lengths  # [T, n]
        errors = np.where(mask, self.td_errors[(positions + time) % self.buffer_size, env_indices], 0.0)
        priorities = self._to_leaves(sequence_priority(th.from_numpy(errors), th.from_numpy(mask)).numpy())
        return np.where(np.isnan(priorities), largest, priorities)  # NaN if the error of any step is unknown

    def _to_leaves(self, priorities: np.ndarray) -> np.ndarray:
        return np.maximum(priorities, MIN_PRIORITY) ** self.priority_exponent

    def _draw(self, batch_size: int) -> np.ndarray:
        # Stratified: one draw from each of `batch_size` equal parts of the total. Every window is drawn as often as by
        # independent draws on average, but with less variance.
        parts = (np.arange(batch_size) + np.random.rand(batch_size)) / batch_size
        return self._tree.find(parts * self._tree.total)

    def _importance_weights(self, batch_inds: np.ndarray) -> np.ndarray:
        probabilities = self._tree[batch_inds] / self._tree.total
        weights = importance_weights(th.from_numpy(probabilities), self.n_windows, self.importance_exponent)
        return weights.numpy().astype(np.float32)

    def update_priorities(self, samples: SequenceReplayBufferSamples, priorities: np.ndarray) -> None:
        """
        Set the priorities of a batch's windows, except those that have been overwritten since.

        :param samples: the batch
        :param priorities: ``[B]``
        :raises ValueError: if one is negative, NaN or infinite, which would spoil the sums over all others
        """
        if not (np.isfinite(priorities) & (priorities >= 0)).all():
            raise ValueError(f"priorities={priorities} must be finite and at least 0; look for NaN in the TD errors.")
        positions, env_indices = np.divmod(samples.indices, self.n_envs)
        same_window = self.window_ids[positions, env_indices] == samples.window_ids
        alive = same_window & (self.window_lengths[positions, env_indices] > 0)
        self._tree.update(samples.indices[alive], self._to_leaves(priorities[alive]))
