"""
Bring an environment of your own, and check whether the trained model owes its score to its memory.

    python examples/own_environment.py   # half a minute on one core

A ball falls and drifts to one side, but only its first rows are lit. Below them the paddle has to go where the ball will come
down: from a single observation there nobody can know. So the same network is also scored with its memory zeroed at every step.
If both scores were equal, the environment would not need a memory, or the model would not use it.
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_attn import RecurrentDQN
from sb3_attn.common.evaluation import StateZeroed


class BallInTheDark(gym.Env[np.ndarray, np.int64]):
    """Catch a ball that is seen in its first rows only; it bounces off the walls. The reward is 1 if it is caught."""

    width, height, lit_rows = 9, 12, 3
    # Column and row of the ball, both -1 in the dark, and the column of the paddle, each divided by the size of the field
    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = spaces.Discrete(3)  # left, stay, right

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.column, self.row, self.paddle = int(self.np_random.integers(self.width)), 0, self.width // 2
        self.drift = int(self.np_random.choice([-1, 1]))
        return self.observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.paddle = int(np.clip(self.paddle + action - 1, 0, self.width - 1))
        if not 0 <= self.column + self.drift < self.width:
            self.drift = -self.drift
        self.column, self.row = self.column + self.drift, self.row + 1
        terminated = self.row == self.height - 1
        return self.observe(), float(terminated and self.column == self.paddle), terminated, False, {}

    def observe(self) -> np.ndarray:
        ball = (self.column / self.width, self.row / self.height) if self.row < self.lit_rows else (-1.0, -1.0)
        return np.array([*ball, self.paddle / self.width], np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30_000, help="number of training steps (30000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training run (0)")
    args = parser.parse_args()
    check_env(BallInTheDark())
    model = RecurrentDQN("MlpPolicy", make_vec_env(BallInTheDark, n_envs=8, seed=args.seed), seed=args.seed, device="cpu")
    model.learn(args.steps)
    for name, agent in (("with its memory", model), ("with its memory zeroed at every step", StateZeroed(model))):
        mean, _ = evaluate_policy(agent, make_vec_env(BallInTheDark, n_envs=8, seed=1000), n_eval_episodes=200)
        print(f"Balls caught {name}: {mean:.2f}")


if __name__ == "__main__":
    main()
