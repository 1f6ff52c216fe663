"""Where trajectories go."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from sb3_attn.r2d2.trajectory import Trajectory
from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer


class Receipt(NamedTuple):
    """
    What became of a trajectory.

    :param n_inserted: number of its steps that the replay has
    :param n_rejected: number of its steps that the replay does not have, by the reason
    :param n_windows: number of windows that can be drawn now and could not before
    """

    n_inserted: int
    n_rejected: Counter[str]
    n_windows: int


class Sink(Protocol):
    """
    Takes trajectories in.

    The replay of the learner's process does, and one shard of a larger replay would.
    """

    def insert(self, trajectory: Trajectory) -> Receipt:
        """Store a trajectory and say what became of it."""
        ...


class ReplaySink:
    """
    A replay buffer in this process, with K lanes for each actor.

    :param buffer: the replay buffer
    """

    def __init__(self, buffer: SequenceReplayBuffer) -> None:
        self.buffer = buffer

    def insert(self, trajectory: Trajectory) -> Receipt:
        """
        Store the steps of a trajectory, save those on which an environment failed.

        :param trajectory: of any actor
        :return: what became of it
        """
        n_windows = self.buffer.n_windows_added
        for step in self._steps(trajectory):
            self.buffer.add(**step)
        n_inserted = int(trajectory.valid.sum())
        rejected = Counter({"the environment failed": n_failed} if (n_failed := trajectory.n_steps - n_inserted) else {})
        return Receipt(n_inserted, rejected, self.buffer.n_windows_added - n_windows)

    def _steps(self, trajectory: Trajectory) -> Iterator[dict[str, Any]]:
        """The arguments of ``buffer.add``, step after step."""
        n_steps, n_envs = trajectory.rewards.shape
        with_errors = isinstance(self.buffer, PrioritizedSequenceReplayBuffer)
        n_finals = n_states = 0
        for t in range(n_steps):
            next_obs = trajectory.observations_after(t)
            if n := trajectory.timeouts[t].sum():
                finals = {key: array[n_finals : n_finals + n] for key, array in trajectory.final_observations.items()}
                next_obs = {key: _replace(array, trajectory.timeouts[t], finals[key]) for key, array in next_obs.items()}
                n_finals += n
            core_state = None
            if n := trajectory.state_mask[t].sum():
                states = [array[n_states : n_states + n] for array in trajectory.core_states]
                core_state = tuple(_spread(array, trajectory.state_mask[t]) for array in states)
                n_states += n
            step = {
                "obs": {key: array[t] for key, array in trajectory.observations.items()},
                "next_obs": next_obs,
                "action": trajectory.actions[t],
                "reward": trajectory.rewards[t],
                "done": trajectory.dones[t],
                "infos": [{"TimeLimit.truncated": timeout} for timeout in trajectory.timeouts[t]],
                "core_state": core_state,
                "episode_starts": trajectory.episode_starts[t],
                "env_indices": trajectory.actor * n_envs + np.arange(n_envs),
            }
            if with_errors and trajectory.td_errors is not None:
                step["td_errors"] = trajectory.td_errors[t]
            yield step if trajectory.valid[t].all() else _take(step, np.flatnonzero(trajectory.valid[t]))


def _replace(array: np.ndarray, mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A copy of an array in which the rows under the mask are others."""
    array = array.copy()
    array[mask] = values
    return array


def _spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An array that has the values in the rows under the mask, and zeros elsewhere."""
    return _replace(np.zeros((len(mask), *values.shape[1:]), values.dtype), mask, values)


def _take(value: Any, rows: np.ndarray) -> Any:
    """Some rows of each array in the arguments of a step."""
    if isinstance(value, dict):
        return {key: _take(item, rows) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_take(item, rows) for item in value)
    if isinstance(value, list):
        return [value[row] for row in rows]
    return None if value is None else value[rows]
