"""The core states of a sequence replay buffer."""

from typing import Any

import numpy as np
import torch as th


class CoreStateStore:
    """
    Core states, kept only for those steps at which a window with a past can start.

    Windows begin (with their burn-in) at steps ``k * sequence_period - burn_in_length`` of an episode, and at its first
    step, where the state is the initial one and needs no storage. So a ring of ``buffer_size / sequence_period`` rows
    and a few for episodes under way is enough for each lane.

    :param buffer_size: steps in a lane
    :param n_envs: number of lanes
    :param burn_in_length: as in the buffer
    :param sequence_period: as in the buffer
    """

    def __init__(self, buffer_size: int, n_envs: int, burn_in_length: int, sequence_period: int) -> None:
        self.burn_in_length = burn_in_length
        self.sequence_period = sequence_period
        self.n_rows = buffer_size // sequence_period + burn_in_length // sequence_period + 3
        #: The row in which the state before each step lies, if one is kept
        self.rows = np.zeros((buffer_size, n_envs), np.int32)
        #: One array ``[n_rows, n_envs, ...]`` for each field of the state; made when the first state comes
        self.arrays: tuple[np.ndarray, ...] | None = None
        self._next_rows = np.zeros(n_envs, np.int64)

    def keep(self, core_state: tuple[Any, ...] | None, slots: np.ndarray, lanes: np.ndarray, steps: np.ndarray) -> None:
        """
        Keep the states of those of n steps at which a window can start.

        :param core_state: states before the steps, arrays or tensors ``[n, ...]``; ``None`` counts as zeros
        :param slots: where the steps lie in their lanes, ``[n]``
        :param lanes: ``[n]``
        :param steps: positions in their episodes, ``[n]``
        """
        if self.arrays is None:
            if core_state is None:
                return
            shape = (self.n_rows, self.rows.shape[1])
            self.arrays = tuple(np.zeros((*shape, *a.shape[1:]), a.dtype) for a in map(_to_numpy, core_state))
        due = is_window_start(steps, self.burn_in_length, self.sequence_period)
        if not due.any():
            return
        lanes = lanes[due]
        rows = self._next_rows[lanes]
        for i, array in enumerate(self.arrays):
            array[rows, lanes] = 0 if core_state is None else _to_numpy(core_state[i])[due]
        self.rows[slots[due], lanes] = rows
        self._next_rows[lanes] = (rows + 1) % self.n_rows

    def close_episode(self, lane: int, length: int) -> None:
        """
        Make room again for the states of windows that the episode did not live to see.

        :param lane: the lane
        :param length: number of steps of its episode
        """
        if self.arrays is None:
            return
        n_before = self.burn_in_length // self.sequence_period  # starts whose burn-in reaches back to the first step
        n_kept = (length - 1 + self.burn_in_length) // self.sequence_period - n_before
        n_needed = max((length - 1) // self.sequence_period - n_before, 0)
        self._next_rows[lane] = (self._next_rows[lane] - (n_kept - n_needed)) % self.n_rows

    def get(self, slots: np.ndarray, lanes: np.ndarray) -> tuple[np.ndarray, ...]:
        """
        The states before steps at which windows start.

        :param slots: where the steps lie in their lanes, ``[B]``
        :param lanes: ``[B]``
        :return: arrays ``[B, ...]``, empty if none are kept; meaningless at an episode's first step
        """
        rows = self.rows[slots, lanes]
        return tuple(array[rows, lanes] for array in self.arrays or ())


def is_window_start(steps: np.ndarray, burn_in_length: int, sequence_period: int) -> np.ndarray:
    """
    Whether a window with a past can start at a step, so that the state before it is wanted.

    :param steps: positions in their episodes, ``[n]``
    :param burn_in_length: as in the buffer
    :param sequence_period: as in the buffer
    :return: bool ``[n]``
    """
    return (steps > 0) & ((steps + burn_in_length) % sequence_period == 0)


def _to_numpy(array: np.ndarray | th.Tensor) -> np.ndarray:
    return array.detach().cpu().numpy() if isinstance(array, th.Tensor) else array
