"""
From sb3-contrib's RecurrentPPO to RecurrentDQN, side by side: what stays, what changes, and what it brings.

    python examples/from_recurrent_ppo.py   # a minute on one core, most of it RecurrentPPO's

The task is MemoryChain-v0, whose first observation is the answer to the question 30 steps later.
"""

import argparse
import time
from typing import Any

import numpy as np
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_attn import RecurrentDQN  # registers MemoryChain-v0, too

ENV_ID = "MemoryChain-v0"


def recurrent_ppo(seed: int) -> BaseAlgorithm:
    """sb3-contrib's class: the policy's name says that there is an LSTM, and its size is an argument of the policy."""
    env = make_vec_env(ENV_ID, n_envs=8, seed=seed)
    policy_kwargs = dict(lstm_hidden_size=64, net_arch=[64])
    return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=policy_kwargs, seed=seed, device="cpu")


def recurrent_dqn(seed: int) -> BaseAlgorithm:
    """Ours: there is always a memory, so the name is SB3's; which memory, and its size, are arguments of the policy."""
    env = make_vec_env(ENV_ID, n_envs=8, seed=seed)
    policy_kwargs = dict(core="lstm", core_kwargs=dict(hidden_size=64), net_arch=[64])
    return RecurrentDQN("MlpPolicy", env, policy_kwargs=policy_kwargs, seed=seed, device="cpu")


def play(model: BaseAlgorithm) -> float:
    """One episode. This is the same for both: the state goes in and comes out, and ``episode_start`` resets it."""
    env = make_vec_env(ENV_ID, n_envs=1, seed=1000)
    obs: Any = env.reset()
    state, episode_start, total = None, np.ones(1, dtype=bool), 0.0
    while True:
        actions, state = model.predict(obs, state, episode_start, deterministic=True)
        obs, rewards, episode_start, _ = env.step(actions)
        total += rewards[0]
        if episode_start[0]:
            return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="number of training steps of each (20000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of both training runs (0)")
    args = parser.parse_args()
    for make in (recurrent_dqn, recurrent_ppo):
        model, start = make(args.seed), time.process_time()
        model.learn(args.steps)
        seconds = time.process_time() - start
        mean, _ = evaluate_policy(model, make_vec_env(ENV_ID, n_envs=8, seed=1000), n_eval_episodes=100)
        print(f"{type(model).__name__}: mean return {mean:.2f} after {args.steps:,} steps, {seconds:.0f} s of processor time")
        print(f"  one more episode: {play(model):g}")


if __name__ == "__main__":
    main()
