"""The observations of a sequence replay buffer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

#: The key under which a Box observation is stored, so that it is a Dict with one key
SINGLE_KEY = "observation"

#: The key under which action masks are stored; the blank in it keeps it apart from those of environments
MASKS_KEY = "action masks"

Observation = np.ndarray | dict[str, np.ndarray]


def as_dict(observation: Any) -> dict[str, Any]:
    """
    Convert any observation to the form in which the replay stores it.

    :param observation: an array, or a dict of arrays
    :return: a dict of arrays; an array lies under ``SINGLE_KEY``
    """
    return observation if isinstance(observation, dict) else {SINGLE_KEY: observation}


def with_masks(obs: Any, action_masks: np.ndarray | None) -> Any:
    """
    Add masks to observations, in the form in which the replay stores both.

    :param obs: an array ``[n, ...]``, or a dict of arrays
    :param action_masks: ``[n, M]``; ``None`` leaves the observations as they are
    :return: the observations, a dict if there are masks
    """
    return obs if action_masks is None else {**as_dict(obs), MASKS_KEY: action_masks}


class ObservationStore:
    """
    Observations, each stored once, since the next observation of a step is the observation of the following one.

    Two kinds have no following step and lie beside the rings: the next observation of each environment's newest step, and the
    final observations of truncated episodes, from which their returns are bootstrapped.

    :param buffer_size: number of steps in the ring of an environment
    :param n_envs: number of environments
    :param shapes: shape of each key's observations
    :param dtypes: type of each key's observations
    """

    def __init__(
        self, buffer_size: int, n_envs: int, shapes: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, npt.DTypeLike]
    ) -> None:
        self.buffer_size = buffer_size
        #: The observations before steps, ``[buffer_size, n_envs, ...]`` for each key
        self.rings = {key: np.zeros((buffer_size, n_envs, *shapes[key]), dtypes[key]) for key in shapes}
        #: Those after the newest step of each environment, ``[n_envs, ...]`` for each key
        self.newest_next = {key: np.zeros_like(ring[0]) for key, ring in self.rings.items()}
        #: Those after the last steps of truncated episodes, by position and environment
        self.finals: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    @property
    def nbytes(self) -> int:
        """Size of all arrays, without the final observations, whose number is not known before."""
        return sum(array.nbytes for array in (*self.rings.values(), *self.newest_next.values()))

    def keep(self, obs: Observation, next_obs: Observation, positions: np.ndarray, env_indices: np.ndarray) -> None:
        """
        Store the observations before and after n steps, in place of the oldest ones.

        :param obs: observations before the steps, ``[n, ...]``
        :param next_obs: observations after them, ``[n, ...]``
        :param positions: positions of the steps in their rings, ``[n]``
        :param env_indices: environments of the steps, ``[n]``
        :raises ValueError: if they do not have the shapes of their spaces
        """
        for key, ring in self.rings.items():
            shape = (len(env_indices), *ring.shape[2:])
            ring[positions, env_indices] = _fitted(as_dict(obs)[key], shape)
            self.newest_next[key][env_indices] = _fitted(as_dict(next_obs)[key], shape)

    def keep_final(self, position: int, env_index: int) -> None:
        """
        Keep what follows an environment's newest step, with which an episode was truncated.

        :param position: position of the step
        :param env_index: the environment
        """
        self.finals[position, env_index] = {key: array[env_index].copy() for key, array in self.newest_next.items()}

    def burn_in(self, starts: np.ndarray, env_indices: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
        """
        The observations of the burn-in of B windows.

        :param starts: positions of the first trained steps, ``[B]``
        :param env_indices: environments of the windows, ``[B]``
        :param lengths: numbers of steps before the trained ones, ``[B]``
        :return: ``[largest length, B, ...]`` for each key, left-aligned; without masks, which the burn-in does not need
        """
        time = np.arange(lengths.max())[:, None]
        positions = (starts - lengths + np.minimum(time, lengths)) % self.buffer_size
        return {key: ring[positions, env_indices] for key, ring in self.rings.items() if key != MASKS_KEY}

    def trained(
        self, starts: np.ndarray, env_indices: np.ndarray, lengths: np.ndarray, is_last: np.ndarray
    ) -> dict[str, np.ndarray]:
        """
        The observations of the trained steps of B windows, and the one after the last.

        :param starts: positions of the first trained steps, ``[B]``
        :param env_indices: environments of the windows, ``[B]``
        :param lengths: numbers of trained steps, ``[B]``
        :param is_last: whether the observation after the last trained step is not in the ring, because that step is the
            environment's newest or truncated its episode, bool ``[B]``
        :return: ``[T + 1, B, ...]`` for each key; padding repeats the last
        """
        time = np.arange(lengths.max() + 1)[:, None]
        positions = (starts + np.minimum(time, lengths)) % self.buffer_size
        observations = {key: ring[positions, env_indices] for key, ring in self.rings.items()}
        last_positions = (starts + lengths - 1) % self.buffer_size
        for i in np.flatnonzero(is_last):
            env_index = int(env_indices[i])
            final = self.finals.get((int(last_positions[i]), env_index))
            for key, array in observations.items():
                array[lengths[i] :, i] = self.newest_next[key][env_index] if final is None else final[key]
        return observations

    def state_arrays(self) -> dict[str, np.ndarray]:
        """
        All that is stored, as plain arrays.

        :return: arrays by name, for ``set_state_arrays``
        """
        state: dict[str, np.ndarray] = {"final_positions": np.array(list(self.finals), np.int64).reshape(-1, 2)}
        for key, ring in self.rings.items():
            state[f"observations/{key}"] = ring
            state[f"newest_next_observations/{key}"] = self.newest_next[key]
            finals = [final[key] for final in self.finals.values()]
            state[f"final_observations/{key}"] = np.array(finals, ring.dtype).reshape(-1, *ring.shape[2:])
        return state

    def set_state_arrays(self, state: Mapping[str, np.ndarray]) -> None:
        """
        Take over what another store held.

        :param state: from ``state_arrays``
        """
        self.rings = {key: state[f"observations/{key}"].copy() for key in self.rings}
        self.newest_next = {key: state[f"newest_next_observations/{key}"].copy() for key in self.rings}
        self.finals = {
            (position, env_index): {key: state[f"final_observations/{key}"][i].copy() for key in self.rings}
            for i, (position, env_index) in enumerate(state["final_positions"].tolist())
        }


def _fitted(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Observations in the shape in which they are stored, which has an axis of size 1 for a Discrete one."""
    if array.shape == shape:
        return array
    if [size for size in array.shape if size != 1] != [size for size in shape if size != 1]:
        raise ValueError(f"observations have shape {array.shape[1:]}, but those of the replay buffer's space {shape[1:]}.")
    return np.reshape(array, shape)
