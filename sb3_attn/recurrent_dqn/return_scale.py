"""The size of returns, by which learning is made independent of the rewards' unit."""

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd

#: Smallest scale, with which rewards that have all been 0 so far do not lead to a division by 0
MIN_SCALE = 1e-6


class ReturnScale:
    """
    Running standard deviation of discounted sums of rewards: that by which ``VecNormalize`` divides rewards.

    :param gamma: the discount factor
    """

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self._moments = RunningMeanStd(epsilon=0.0, shape=())

    def reset(self, n_envs: int) -> None:
        """
        Begin new sums; the standard deviation stays.

        :param n_envs: number of environments from now on
        """
        self._sums = np.zeros(n_envs)

    def update(self, rewards: np.ndarray, dones: np.ndarray, env_indices: np.ndarray | None = None) -> None:
        """
        Take account of one step of each of n environments.

        :param rewards: ``[n]``
        :param dones: whether an episode ended, so that its sum ends too, ``[n]``
        :param env_indices: environments of the steps, ``[n]``; ``None`` means all, in order
        """
        env_indices = np.arange(len(self._sums)) if env_indices is None else env_indices
        sums = self.gamma * self._sums[env_indices] + rewards
        self._moments.update(sums)
        self._sums[env_indices] = np.where(dones, 0.0, sums)

    @property
    def value(self) -> float:
        """The scale, in the unit of the rewards."""
        return max(float(np.sqrt(self._moments.var)), MIN_SCALE)
