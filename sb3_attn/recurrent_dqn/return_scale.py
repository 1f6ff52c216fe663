"""The size of returns, by which learning is made independent of the rewards' unit."""

import math
from typing import Any

import numpy as np

#: Number of standard deviations in the scale. Most returns lie in a range of this size, so that outputs of a network that are
#: multiplied by the scale need not be larger than about 1
N_DEVIATIONS = 4.0

#: Smallest scale, with which rewards that have all been 0 so far do not lead to a division by 0
MIN_SCALE = 1e-6


class ReturnScale:
    """
    Four standard deviations of the returns of all steps so far: of G_t = r_{t+1} + gamma r_{t+2} + ... up to the episode's
    end, or up to the present where it still runs.

    :param gamma: the discount factor
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self._n_steps, self._sum, self._sum_of_squares = 0, 0.0, 0.0  # over t: of 1, of G_t, of G_t^2

    def reset(self, n_envs: int) -> None:
        """
        Begin new episodes; the scale stays.

        :param n_envs: number of environments from now on
        """
        # A reward r adds w_t r to each return G_t of its episode, with w_t = gamma^age. So the sums need of the episode only:
        # sum_t w_t, sum_t w_t^2 and sum_t w_t G_t, each [n_envs]
        self._weights, self._squared_weights, self._weighted_returns = np.zeros((3, n_envs))

    def update(self, rewards: np.ndarray, episode_starts: np.ndarray, env_indices: np.ndarray | None = None) -> None:
        """
        Take account of one step of each of n environments.

        :param rewards: ``[n]``
        :param episode_starts: whether the step is the first of its episode, ``[n]``
        :param env_indices: environments of the steps, ``[n]``; ``None`` means all, in order
        """
        env_indices = np.arange(len(self._weights)) if env_indices is None else env_indices
        # All steps of the episode become older by one, and the new one joins them, with weight 1 and return 0
        gamma = np.where(episode_starts, 0.0, self.gamma)
        weights = gamma * self._weights[env_indices] + 1
        squared_weights = gamma**2 * self._squared_weights[env_indices] + 1
        weighted_returns = gamma * self._weighted_returns[env_indices]
        self._n_steps += len(rewards)
        self._sum += float(np.sum(rewards * weights))
        self._sum_of_squares += float(np.sum(rewards * (2 * weighted_returns + rewards * squared_weights)))
        self._weights[env_indices] = weights
        self._squared_weights[env_indices] = squared_weights
        self._weighted_returns[env_indices] = weighted_returns + rewards * squared_weights

    @property
    def value(self) -> float:
        """The scale, in the unit of the rewards."""
        n_steps = max(self._n_steps, 1)
        variance = self._sum_of_squares / n_steps - (self._sum / n_steps) ** 2
        return max(N_DEVIATIONS * math.sqrt(max(variance, 0.0)), MIN_SCALE)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Models that were saved earlier have the moments of discounted sums of past rewards, and one deviation was the scale.
        # It stays the same at first, since the outputs of their networks have this unit
        if (moments := state.pop("_moments", None)) is not None:
            n_steps, mean, variance = int(moments.count), float(moments.mean), float(moments.var) / N_DEVIATIONS**2
            state |= dict(_n_steps=n_steps, _sum=n_steps * mean, _sum_of_squares=n_steps * (variance + mean**2))
        self.__dict__.update(state)
