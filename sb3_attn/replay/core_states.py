"""The core states of a sequence replay buffer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th

from sb3_attn.common.former_names import FormerAttributeNames


class CoreStateStore(FormerAttributeNames):
    """
    Core states, stored only before the steps at which a window can start.

    With their burn-in, windows start at steps ``k * sequence_period - burn_in_length`` of an episode, or at its first step,
    where the state is the initial one and need not be stored. So each environment has a ring of about
    ``buffer_size / sequence_period`` entries instead of ``buffer_size``.

    :param buffer_size: number of steps in the ring of an environment
    :param n_envs: number of environments
    :param burn_in_length: as for ``SequenceReplayBuffer``
    :param sequence_period: as for ``SequenceReplayBuffer``
    """

    former_attributes = {"n_rows": "n_entries", "rows": "entries", "_next_rows": "_next_entries"}

    def __init__(self, buffer_size: int, n_envs: int, burn_in_length: int, sequence_period: int) -> None:
        self.burn_in_length = burn_in_length
        self.sequence_period = sequence_period
        # One step in sequence_period has an entry. The others are for states of the open episode whose windows have not
        # started yet, and for what rounding down loses at both ends of the ring.
        self.n_entries = buffer_size // sequence_period + burn_in_length // sequence_period + 3
        #: The entry that holds the state before each step, if one does
        self.entries = np.zeros((buffer_size, n_envs), np.int32)
        #: One array ``[n_entries, n_envs, ...]`` for each field of the state; made when the first state comes
        self.arrays: tuple[np.ndarray, ...] | None = None
        self._next_entries = np.zeros(n_envs, np.int64)

    @property
    def nbytes(self) -> int:
        """Size of all arrays."""
        return self.entries.nbytes + self._next_entries.nbytes + sum(array.nbytes for array in self.arrays or ())

    def keep(
        self, core_state: tuple[Any, ...] | None, positions: np.ndarray, env_indices: np.ndarray, steps: np.ndarray
    ) -> None:
        """
        Given n steps, store the states before those at which a window can start.

        :param core_state: states before the steps, arrays or tensors ``[n, ...]``; ``None`` counts as zeros
        :param positions: positions of the steps in their rings, ``[n]``
        :param env_indices: environments of the steps, ``[n]``
        :param steps: numbers of the steps within their episodes, ``[n]``
        """
        if self.arrays is None:
            if core_state is None:
                return
            shape = (self.n_entries, self.entries.shape[1])
            self.arrays = tuple(np.zeros((*shape, *a.shape[1:]), a.dtype) for a in map(_to_numpy, core_state))
        due = is_window_start(steps, self.burn_in_length, self.sequence_period)
        if not due.any():
            return
        env_indices = env_indices[due]
        entries = self._next_entries[env_indices]
        for i, array in enumerate(self.arrays):
            array[entries, env_indices] = 0 if core_state is None else _to_numpy(core_state[i])[due]
        self.entries[positions[due], env_indices] = entries
        self._next_entries[env_indices] = (entries + 1) % self.n_entries

    def close_episode(self, env_index: int, length: int) -> None:
        """
        Free the entries kept for windows that the episode ended too early to start.

        :param env_index: environment of the episode
        :param length: number of its steps
        """
        if self.arrays is None:
            return
        # Window k has its first trained step at k * period, and its state before step k * period - burn_in_length. No state
        # is needed for k <= n_before, whose burn-in reaches back to the first step. A state was kept for each further k with
        # k * period - burn_in_length <= length - 1; a window started only if k * period <= length - 1. The surplus states are
        # the newest entries, so moving the write position back frees them.
        n_before = self.burn_in_length // self.sequence_period
        n_kept = (length - 1 + self.burn_in_length) // self.sequence_period - n_before
        n_needed = max((length - 1) // self.sequence_period - n_before, 0)
        self._next_entries[env_index] = (self._next_entries[env_index] - (n_kept - n_needed)) % self.n_entries

    def get(self, positions: np.ndarray, env_indices: np.ndarray) -> tuple[np.ndarray, ...]:
        """
        The states before steps at which windows start.

        :param positions: positions of the steps in their rings, ``[B]``
        :param env_indices: environments of the steps, ``[B]``
        :return: arrays ``[B, ...]``, empty if none are stored; meaningless at an episode's first step
        """
        entries = self.entries[positions, env_indices]
        return tuple(array[entries, env_indices] for array in self.arrays or ())

    def state_arrays(self) -> dict[str, np.ndarray]:
        """
        All that is stored, as plain arrays.

        :return: arrays by name, for ``set_state_arrays``
        """
        state: dict[str, np.ndarray] = {"entries": self.entries, "next_entries": self._next_entries}
        return state | {str(i): array for i, array in enumerate(self.arrays or ())}

    def set_state_arrays(self, state: Mapping[str, np.ndarray]) -> None:
        """
        Take over what another store held.

        :param state: from ``state_arrays``
        :raises ValueError: if an array does not have the shape that it has here
        """
        fields = [state[str(i)].copy() for i in range(len(state) - 2)]
        shape = (self.n_entries, self.entries.shape[1])
        if state["entries"].shape != self.entries.shape or any(field.shape[:2] != shape for field in fields):
            raise ValueError(f"the core states of the saved replay do not have the shapes {self.entries.shape} and {shape}.")
        self.entries, self._next_entries = state["entries"].copy(), state["next_entries"].copy()
        self.arrays = tuple(fields) or None


def is_window_start(steps: np.ndarray, burn_in_length: int, sequence_period: int) -> np.ndarray:
    """
    Steps at which a window with its burn-in can start, except an episode's first, whose state is the initial one.

    :param steps: numbers of the steps within their episodes, ``[n]``
    :param burn_in_length: as for ``SequenceReplayBuffer``
    :param sequence_period: as for ``SequenceReplayBuffer``
    :return: bool ``[n]``
    """
    return (steps > 0) & ((steps + burn_in_length) % sequence_period == 0)


def _to_numpy(array: np.ndarray | th.Tensor) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, th.Tensor) else array
