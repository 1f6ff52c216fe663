"""What an actor hands over."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sb3_attn.recurrent_dqn.nan_checks import check_finite
from sb3_attn.replay.sequence_buffer import SINGLE_KEY


class Trajectory(NamedTuple):
    """
    T consecutive steps of the K environments of one actor, time-major; each observation is in it once.

    Windows are cut from it by the replay, so windows that overlap cost nothing on the way.
    """

    #: Number of the actor
    actor: int
    #: Which life of the actor: one that died and came back has another
    life: str
    #: Number of steps this life has handed over, those here among them
    n_sent: int
    #: The learner's number of updates when it gave away the weights that acted
    version: int
    #: Observations before the steps, ``[T, K, ...]`` for each key
    observations: dict[str, np.ndarray]
    #: Observations after the last steps, ``[K, ...]`` for each key
    next_observations: dict[str, np.ndarray]
    #: Last observations of the episodes that were truncated, in the order of ``timeouts``, ``[n, ...]`` for each key
    final_observations: dict[str, np.ndarray]
    #: ``[T, K]``, all that follow
    actions: np.ndarray
    #: r_{t+1}
    rewards: np.ndarray
    #: Whether the episode ended, and whether it was truncated
    dones: np.ndarray
    timeouts: np.ndarray
    episode_starts: np.ndarray
    #: False where the environment failed: nothing is known of that step
    valid: np.ndarray
    #: |delta| as the actor saw it; ``None`` if nobody needs it
    td_errors: np.ndarray | None
    #: Where a core state is needed, and these states, flat arrays ``[n, ...]`` in that order
    state_mask: np.ndarray
    core_states: tuple[np.ndarray, ...]
    #: Infos of the steps that ended episodes, by ``(t, k)``
    infos: dict[tuple[int, int], dict[str, Any]]

    @property
    def n_steps(self) -> int:
        """Number of environment steps T x K."""
        return self.rewards.size

    def observations_after(self, t: int) -> dict[str, np.ndarray]:
        """Observations after step t, where an episode ended those of the next one, ``[K, ...]`` for each key."""
        if t + 1 < len(self.rewards):
            return {key: array[t + 1] for key, array in self.observations.items()}
        return self.next_observations

    def steps(self, is_dict: bool) -> Iterator[tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]]:
        """
        Step after step what ``VecEnv.step`` returned: new observations, rewards, dones, infos at episodes' ends.

        :param is_dict: whether observations are Dicts
        """
        n_steps, n_envs = self.rewards.shape
        for t in range(n_steps):
            after = self.observations_after(t)
            infos = [self.infos.get((t, k), {}) for k in range(n_envs)]
            yield after if is_dict else after[SINGLE_KEY], self.rewards[t], self.dones[t], infos

    @property
    def n_bytes(self) -> int:
        """Size of its arrays."""
        fields = (*self, *self.core_states, *(a for field in self if isinstance(field, dict) for a in field.values()))
        return sum(field.nbytes for field in fields if isinstance(field, np.ndarray))


class StepRecord:
    """
    A trajectory that is being made.

    :param n_steps: number of steps T of each environment
    :param obs: observations of K environments, for their shapes
    """

    def __init__(self, n_steps: int, obs: dict[str, np.ndarray]) -> None:
        shape = (n_steps, len(next(iter(obs.values()))))
        self.observations = {key: np.empty((n_steps, *array.shape), array.dtype) for key, array in obs.items()}
        self.final_observations: dict[str, list[np.ndarray]] = {key: [] for key in obs}
        self.actions = np.empty(shape, np.int64)
        self.rewards = np.empty(shape, np.float32)
        self.q_values = np.empty(shape, np.float32)
        self.next_values = np.empty(shape, np.float32)
        self.dones = np.zeros(shape, bool)
        self.timeouts = np.zeros(shape, bool)
        self.episode_starts = np.zeros(shape, bool)
        self.valid = np.ones(shape, bool)
        self.state_mask = np.zeros(shape, bool)
        self.core_states: list[list[np.ndarray]] = []
        self.infos: dict[tuple[int, int], dict[str, Any]] = {}


def check_trajectory(trajectory: Trajectory, num_timesteps: int) -> None:
    """
    Check that what environments returned is finite.

    :param trajectory: of any actor
    :param num_timesteps: the learner's count of steps, for the message
    :raises ValueError: if there is a NaN or an infinity, naming actor, environment and step
    """
    actor = f"(actor {trajectory.actor})"
    parts = [("reward", trajectory.rewards)]
    for key, array in trajectory.observations.items():
        parts += [(f"observation {key!r}", array), (f"observation {key!r}", trajectory.next_observations[key][None])]
    for name, sequence in parts:
        if not _is_finite(sequence):
            row = next(row for row in sequence if not _is_finite(row))
            check_finite(f"{name} {actor}", row, num_timesteps)
    for key, array in trajectory.final_observations.items():
        for (_, k), final in zip(np.argwhere(trajectory.timeouts), array, strict=True):
            check_finite(f"final observation {key!r} {actor}", final, num_timesteps, int(k))


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())
