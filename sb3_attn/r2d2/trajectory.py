"""Trajectories: the steps that an actor sends, and how they get into the replay buffer."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th

from sb3_attn.common import td
from sb3_attn.recurrent_dqn.nan_checks import check_finite
from sb3_attn.replay import PrioritizedSequenceReplayBuffer, SequenceReplayBuffer
from sb3_attn.replay.observation_store import MASKS_KEY, SINGLE_KEY
from sb3_attn.replay.sequence_buffer import take_rows


class Trajectory:
    """
    T consecutive steps of the K environments of one actor, time-major; each observation is stored once.

    It is created empty, and the actor fills in one step after the other. The replay buffer cuts windows out of it, so
    overlapping windows are not sent twice.

    :param actor: number of the actor
    :param incarnation: identifies the actor among those that replaced each other after a crash
    :param n_sent_before: number of environment steps that this incarnation has sent before
    :param version: the learner's number of updates when it gave away the parameters that act
    :param rollout_length: number of steps T of each environment
    :param obs: the first observations, ``[K, ...]`` for each key, which give shapes and dtypes
    :param action_shape: shape of an action
    """

    def __init__(
        self,
        actor: int,
        incarnation: str,
        n_sent_before: int,
        version: int,
        rollout_length: int,
        obs: dict[str, np.ndarray],
        action_shape: tuple[int, ...] = (),
    ) -> None:
        shape = (rollout_length, len(next(iter(obs.values()))))
        self.actor = actor
        self.incarnation = incarnation
        self.version = version
        #: Number of environment steps that this incarnation has sent, including these
        self.n_sent = n_sent_before + rollout_length * shape[1]
        #: Observations before the steps, ``[T, K, ...]`` for each key
        self.observations = {key: np.empty((rollout_length, *array.shape), array.dtype) for key, array in obs.items()}
        #: Observations after the last step, ``[K, ...]`` for each key
        self.next_observations: dict[str, np.ndarray] = {}
        #: The actions, ``[T, K, *action_shape]``
        self.actions = np.empty((*shape, *action_shape), np.int64)
        #: r_{t+1}, ``[T, K]``, as all arrays below
        self.rewards = np.empty(shape, np.float32)
        #: True where an episode ended
        self.dones = np.zeros(shape, bool)
        #: True where it ended by truncation
        self.timeouts = np.zeros(shape, bool)
        #: Final observations of the truncated episodes, in the order of ``timeouts``
        self.final_observations: list[dict[str, np.ndarray]] = []
        #: True where the observation is the first of its episode
        self.episode_starts = np.zeros(shape, bool)
        #: True where an episode was truncated without a final observation, so that the step has no target
        self.unknown_finals = np.zeros(shape, bool)
        #: False where a step is not stored: where ``unknown_finals`` is True, and where the environment failed
        self.valid = np.ones(shape, bool)
        #: True where a window may start, so that the core state is needed
        self.state_mask = np.zeros(shape, bool)
        #: These states, flat arrays ``[n, ...]``, for every step that has any
        self.core_states: list[tuple[np.ndarray, ...]] = []
        #: |delta|, see :func:`acting_td_errors`; ``None`` unless the replay is prioritized
        self.td_errors: np.ndarray | None = None
        #: For each episode that ended, max_a Q of its first observation, and its discounted return (see ``EpisodeValues``)
        self.episode_values: list[tuple[float, float]] = []
        #: Infos of the steps that ended episodes, keyed by ``(t, k)``
        self.infos: dict[tuple[int, int], dict[str, Any]] = {}

    @property
    def n_env_steps(self) -> int:
        """Number of environment steps, T x K."""
        return self.rewards.size

    @property
    def n_bytes(self) -> int:
        """Size of all arrays."""
        return _n_bytes(vars(self))

    def observations_after(self, t: int) -> dict[str, np.ndarray]:
        """Observations after step t, ``[K, ...]`` for each key; the next episode's first where one ended."""
        if t + 1 < len(self.rewards):
            return {key: array[t + 1] for key, array in self.observations.items()}
        return self.next_observations

    def steps(self, is_dict: bool) -> Iterator[tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]]:
        """
        Iterate over what ``VecEnv.step`` returned: observations, rewards, dones, and infos where episodes ended.

        :param is_dict: whether the observation space is a Dict
        :return: an iterator over the T steps
        """
        n_steps, n_envs = self.rewards.shape
        for t in range(n_steps):
            after = self.observations_after(t)
            infos = [self.infos.get((t, k), {}) for k in range(n_envs)]
            obs = {key: array for key, array in after.items() if key != MASKS_KEY} if is_dict else after[SINGLE_KEY]
            yield obs, self.rewards[t], self.dones[t], infos

    def check_finite(self, num_timesteps: int) -> None:
        """
        Check that the environments returned finite numbers.

        :param num_timesteps: the learner's count of steps, for the error
        :raises ValueError: if there is a NaN or an infinity; names actor, environment and step
        """
        source = f"(actor {self.actor})"
        parts = [("reward", self.rewards)]
        for key, array in self.observations.items():
            parts += [(f"observation {key!r}", array), (f"observation {key!r}", self.next_observations[key][None])]
        for name, sequence in parts:
            if not _is_finite(sequence):
                row = next(row for row in sequence if not _is_finite(row))
                check_finite(f"{name} {source}", row, num_timesteps)
        for (_, k), final in zip(np.argwhere(self.timeouts), self.final_observations, strict=True):
            for key, array in final.items():
                check_finite(f"final observation {key!r} {source}", array, num_timesteps, int(k))


def _n_bytes(value: Any) -> int:
    if isinstance(value, dict | list | tuple):
        return sum(map(_n_bytes, value.values() if isinstance(value, dict) else value))
    return value.nbytes if isinstance(value, np.ndarray) else 0


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def acting_td_errors(
    q_values: np.ndarray,
    rewards: np.ndarray,
    discounts: np.ndarray,
    next_values: np.ndarray,
    starts: np.ndarray,
    td_lambda: float | None = None,
    trace_tolerance: float | None = None,
    **return_kwargs: Any,
) -> np.ndarray:
    """
    |delta| of consecutive steps, from the values computed while acting.

    Horgan et al. (2018), section 3: actors compute the initial priorities of what they send. An actor has no target
    network, and returns are cut at the end of the trajectory, so these errors only initialise priorities.

    :param q_values: Q of the actions taken, ``[T, K]``
    :param rewards: r_{t+1}, ``[T, K]``
    :param discounts: gamma, or 0 where the episode terminated, ``[T, K]``
    :param next_values: max_a Q of the observation after each step, ``[T, K]``
    :param starts: whether the step does not follow the one before it, bool ``[T, K]``
    :param td_lambda: as for ``sb3_attn.common.td.value_targets``
    :param trace_tolerance: as for ``sb3_attn.common.td.cut_traces``
    :param return_kwargs: ``n_steps`` and ``value_rescaling``, as for ``sb3_attn.common.td.value_targets``
    :return: ``[T, K]``
    """
    # td knows no episodes inside a sequence, so each piece of an episode becomes a column of its own, padded at its end.
    # Flattened environment after environment, a piece is a contiguous range, which begins where `starts` is True
    starts = starts.T.copy()
    starts[:, 0] = True
    first = np.flatnonzero(starts)
    lengths = np.diff(first, append=starts.size)
    time = np.arange(lengths.max())[:, None]
    mask = time < lengths
    rows = np.minimum(first + time, starts.size - 1)  # [longest piece, pieces], indices into the flat arrays

    def cut(array: np.ndarray) -> th.Tensor:
        return th.from_numpy(np.where(mask, array.T.ravel()[rows], 0.0))

    values, following = cut(q_values), cut(next_values)
    lambdas = td.cut_traces(td_lambda, trace_tolerance, values, following)
    targets = td.value_targets(
        cut(rewards), cut(discounts), following, th.from_numpy(mask), td_lambda=lambdas, **return_kwargs
    )
    errors = np.empty(starts.size, np.float32)
    errors[rows[mask]] = (targets - values).abs().numpy()[mask]
    return np.ascontiguousarray(errors.reshape(starts.shape).T)


class InsertResult(NamedTuple):
    """
    The result of inserting a trajectory.

    :param n_steps_inserted: number of its steps that were stored
    :param n_steps_rejected: number of its steps that were not stored, keyed by the reason
    :param n_windows_inserted: number of windows that have become available
    """

    n_steps_inserted: int
    n_steps_rejected: Counter[str]
    n_windows_inserted: int


def insert_trajectory(buffer: SequenceReplayBuffer, trajectory: Trajectory) -> InsertResult:
    """
    Store the valid steps of a trajectory.

    :param buffer: the replay buffer, with K environments for each actor
    :param trajectory: of any actor
    :return: numbers of steps and windows
    """
    n_windows = buffer.n_windows_added
    n_steps, n_envs = trajectory.rewards.shape
    td_errors = trajectory.td_errors if isinstance(buffer, PrioritizedSequenceReplayBuffer) else None
    final_observations, core_states = iter(trajectory.final_observations), iter(trajectory.core_states)
    for t in range(n_steps):
        next_obs = trajectory.observations_after(t)
        if trajectory.timeouts[t].any():
            next_obs = {key: array.copy() for key, array in next_obs.items()}
            for k in np.flatnonzero(trajectory.timeouts[t]):
                for key, array in next(final_observations).items():
                    next_obs[key][k] = array
        core_state = None
        if trajectory.state_mask[t].any():
            core_state = tuple(_spread(field, trajectory.state_mask[t]) for field in next(core_states))
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
        if td_errors is not None:
            step["td_errors"] = td_errors[t]
        buffer.add(**(step if trajectory.valid[t].all() else take_rows(step, np.flatnonzero(trajectory.valid[t]))))
    n_inserted = int(trajectory.valid.sum())
    n_unknown = int(trajectory.unknown_finals.sum())
    n_failed = trajectory.n_env_steps - n_inserted - n_unknown
    rejected = +Counter({"the final observation is missing": n_unknown, "the environment failed": n_failed})  # without zeros
    return InsertResult(n_inserted, rejected, buffer.n_windows_added - n_windows)


def _spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Rows for a whole batch: the values where the mask is True, zeros elsewhere."""
    rows = np.zeros((len(mask), *values.shape[1:]), values.dtype)
    rows[mask] = values
    return rows
