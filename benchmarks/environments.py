"""
Environments to measure speed with.

Tianshou's interpreter imports this file, too, so it needs only NumPy and Gymnasium.
"""

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

FULL_EPISODE = 500


class MaskedCartPole(gym.Wrapper[np.ndarray, np.int64, np.ndarray, np.int64]):
    """
    CartPole-v1 with its velocities set to 0, as RL Zoo's CartPoleNoVel-v1.

    :param full_windows: When the pole falls, put it upright without ending the episode, so that every episode has 500 steps.
        Untrained agents let it fall after some 20 steps; training windows are then as short, and cost as little.
    """

    POSITIONS = np.array([1.0, 0.0, 1.0, 0.0], dtype=np.float32)

    def __init__(self, full_windows: bool) -> None:
        super().__init__(gym.make("CartPole-v1").unwrapped)
        self.full_windows = full_windows
        self._elapsed_steps = 0

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        obs, info = self.env.reset(**kwargs)
        self._elapsed_steps = 0
        return obs * self.POSITIONS, info

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, _, info = self.env.step(action)
        if terminated and self.full_windows:
            obs, info = self.env.reset()
            terminated = False
        self._elapsed_steps += 1
        return obs * self.POSITIONS, float(reward), terminated, self._elapsed_steps == FULL_EPISODE, info


class SlowEnv(gym.Env):
    """
    Sleeps at each step, like an environment that waits for a simulator. Its only episode does not end.

    :param observation_space: Observations are zeros of this space.
    :param step_time: Seconds that a step takes; may be set later.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, observation_space: spaces.Box, step_time: float = 0.0) -> None:
        self.observation_space = observation_space
        self.step_time = step_time

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape or (), self.observation_space.dtype), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.step_time:
            time.sleep(self.step_time)
        return np.zeros(self.observation_space.shape or (), self.observation_space.dtype), 0.0, False, False, {}
