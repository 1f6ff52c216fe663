"""DQN with masks learns what needs no memory: to take the best of the actions that are valid."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.env_util import make_vec_env

from sb3_attn import MaskableDQN

N_ACTIONS, LENGTH = 6, 10


class BestOffer(gym.Env[Any, Any]):
    """
    Six numbers between 0 and 1 are shown. The masks allow a random half of them, and the one that is taken is the reward.

    Whoever takes an invalid number gets nothing more. The best of three random numbers is 3/4 on average, any of them 1/2.
    """

    observation_space = spaces.Box(0, 1, (N_ACTIONS,), np.float32)
    action_space = spaces.Discrete(N_ACTIONS)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.n_steps = 0
        return self._offer(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        is_valid, reward = self.masks[action], float(self.offers[action])
        self.n_steps += 1
        return self._offer(), reward if is_valid else 0.0, not is_valid, self.n_steps == LENGTH, {}

    def action_masks(self) -> np.ndarray:
        return self.masks

    def _offer(self) -> np.ndarray:
        self.offers = self.np_random.random(N_ACTIONS).astype(np.float32)
        self.masks = self.np_random.permutation(N_ACTIONS) < N_ACTIONS // 2
        return self.offers


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(3))
def test_the_best_valid_action_is_learned(seed: int) -> None:
    env = make_vec_env(BestOffer, 8, seed=seed)
    model = MaskableDQN("MlpPolicy", env, 1e-3, 20_000, gamma=0.0, target_update_interval=1000, seed=seed, device="cpu")
    model.learn(30_000)
    mean, _ = evaluate_policy(model, make_vec_env(BestOffer, 1, seed=100), 100)  # type: ignore[arg-type]
    assert mean >= 0.95 * 0.75 * LENGTH
