"""
RecurrentDQN on two of NeuroGym's tasks, with the shipped hyperparameters, against RecurrentPPO at equal steps.

The score is the share of right answers in the first 1,000 trials of the last model, greedy. NeuroGym does not draw its trials
with the seed of ``reset``, so a run cannot be repeated exactly. It has to be installed in a certain way: see "Tasks and
wrappers" in the guide.
"""

import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from benchmarks.learning.first_try import RECURRENT_PPO
from benchmarks.learning.zoo import hyperparameters, train
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn import RecurrentDQN
from sb3_attn.common.evaluation import StateZeroed

TASKS = ("PerceptualDecisionMaking-v0", "DelayMatchSample-v0")
N_TRIALS = 1000


def settings(options: Options) -> Settings:
    """Variants "task" and "task, RecurrentPPO"."""
    variants: Settings = {}
    for task in TASKS:
        base = {"task": task, "hyperparameters": hyperparameters("rdqn", task, options)}
        variants[task] = base | {"recurrent_ppo": None}
        variants[f"{task}, RecurrentPPO"] = base | {"recurrent_ppo": "RL Zoo's for CartPoleNoVel"}
    return variants


def missing() -> str | None:
    return None if find_spec("neurogym") else "NeuroGym"


def right_answers(policy: Any, env: Any) -> float:
    """Share of right answers of a greedy policy in the first trials."""
    obs, starts = env.reset(), np.ones(env.num_envs, dtype=bool)
    state: Any = None
    performances: list[float] = []
    while len(performances) < N_TRIALS:
        actions, state = policy.predict(obs, state, starts, deterministic=True)
        obs, _, starts, infos = env.step(actions)
        performances += [info["performance"] for info in infos if info["new_trial"]]
    return float(np.mean(performances[:N_TRIALS]))


def measure(context: Context, task: str, hyperparameters: dict[str, Any], recurrent_ppo: str | None) -> dict[str, float]:
    """Train once; returns the share of right answers, with and without memory, and the seconds that training took."""
    make = partial(gym.make, task, max_episode_steps=100)  # as the entry says
    env: Any = make_vec_env(make, hyperparameters["n_envs"], context.seed)
    start = time.perf_counter()
    if recurrent_ppo is None:
        model: Any = RecurrentDQN.load(train(context, task, "rdqn", hyperparameters), device="cpu")
    else:
        env = VecNormalize(env)
        arguments = RECURRENT_PPO[recurrent_ppo]
        model = RecurrentPPO("MlpLstmPolicy", env, seed=context.seed, device="cpu", **arguments)
        model.learn(hyperparameters["n_timesteps"])
        env.training = False
    seconds = time.perf_counter() - start
    return {
        "right": right_answers(model, env),
        "right_with_state_zeroed": right_answers(StateZeroed(model), env),
        "seconds": seconds,
    }


def rows(variants: Variants) -> Iterator[Row]:
    """A variant a row."""
    for name, runs in variants.items():
        task, _, agent = name.partition(", ")
        yield {
            "task": task,
            "agent": agent or "RecurrentDQN",
            "steps": f"{runs[0].settings['hyperparameters']['n_timesteps']:,}",
            "right answers, mean": f"{np.mean(values(runs, 'right')):.2f}",
            "each seed": each(values(runs, "right")),
            "state zeroed": f"{np.mean(values(runs, 'right_with_state_zeroed')):.2f}",
            "seconds per run": f"{np.mean(values(runs, 'seconds')):.0f}",
        }


BENCHMARK = Benchmark(settings, measure, rows, seeds=3, quick="Perceptual*", missing=missing)
