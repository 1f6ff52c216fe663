"""
Learn to learn: each episode rewards another of two colours, and which one has to be found out by trying.

    python examples/contextual_bandit.py                   # two minutes on one core
    python examples/contextual_bandit.py --recurrent-ppo   # the same steps with sb3-contrib's RecurrentPPO

The task is the Rainbow Bandit of Juliani's "Learning Policies For Learning Policies", which was reported as one that
RecurrentPPO does not learn. From the colours alone nothing can: an agent that never sees its rewards is right half of the
time, whatever it remembers. With the wrapper PreviousActionReward the best is one guess, and the right colour from then on.
"""

import argparse
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule

from sb3_attn import RecurrentDQN
from sb3_attn.envs import PreviousActionReward

#: RL Zoo's hyperparameters of RecurrentPPO for CartPole without velocities; the defaults take much longer
RL_ZOO: dict[str, Any] = dict(n_steps=32, batch_size=256, n_epochs=20, gamma=0.98, gae_lambda=0.8)
RL_ZOO |= dict(learning_rate=LinearSchedule(1e-3, 0.0, 1.0), clip_range=LinearSchedule(0.2, 0.0, 1.0))
RL_ZOO |= dict(policy_kwargs=dict(lstm_hidden_size=64, net_arch=[64], ortho_init=False))


class ContextualBandit(gym.Env[np.ndarray, np.int64]):
    """Two pixels of complementary colours, drawn for each episode and swapped at random at each trial; one colour pays 1."""

    observation_space = spaces.Box(0.0, 1.0, (6,), np.float32)
    action_space = spaces.Discrete(2)  # the left or the right pixel
    trials = 100

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.rewarded = self.np_random.random(3, dtype=np.float32)
        self.trial = 0
        return self.observe(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(action == self.rewarded_side)
        self.trial += 1
        return self.observe(), reward, self.trial == self.trials, False, {}

    def observe(self) -> np.ndarray:
        self.rewarded_side = self.np_random.integers(2)
        pixels = [self.rewarded, 1 - self.rewarded]
        return np.concatenate(pixels[::-1] if self.rewarded_side else pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000, help="number of training steps (100000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training run (0)")
    parser.add_argument("--recurrent-ppo", action="store_true", help="train RecurrentPPO instead of RecurrentDQN")
    args = parser.parse_args()
    env = make_vec_env(ContextualBandit, n_envs=8, seed=args.seed, wrapper_class=PreviousActionReward)
    if args.recurrent_ppo:
        model: BaseAlgorithm = RecurrentPPO("MlpLstmPolicy", env, seed=args.seed, device="cpu", **RL_ZOO)
    else:
        model = RecurrentDQN("MlpPolicy", env, seed=args.seed, device="cpu")
    start = time.process_time()
    model.learn(args.steps)
    seconds = time.process_time() - start
    evaluation_env = make_vec_env(ContextualBandit, n_envs=8, seed=1000, wrapper_class=PreviousActionReward)
    mean, std = evaluate_policy(model, evaluation_env, n_eval_episodes=100)
    print(f"Right choices of 100: {mean:.1f} ± {std:.1f}; {seconds:.0f} s of processor time")


if __name__ == "__main__":
    main()
