"""Training through RL Zoo, and scoring. Importing this module registers all tasks."""

import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.runner import EVALUATION_SEED, Context, Options
from sb3_attn.zoo import register, zoo_config_path

register()
importlib.import_module("rl_zoo3.import_envs")  # registers the tasks without velocities

N_EPISODES = 100


def hyperparameters(algo: str, task: str, options: Options, **changes: Any) -> dict[str, Any]:
    """The shipped hyperparameters of a task with some changed, and the number of training steps at the scale."""
    entry = {**yaml.safe_load(zoo_config_path(algo).read_text())[task], **changes}
    return {**entry, "n_timesteps": options.scaled(entry["n_timesteps"])}


def train(
    context: Context, task: str, algo: str, hyperparameters: dict[str, Any], evaluation: tuple[int, int] = (-1, 1)
) -> Path:
    """
    Train through RL Zoo in a process of its own.

    :param evaluation: Number of steps between RL Zoo's evaluations, -1 for none, and number of episodes of each.
    :return: The zip saved at the end of training.
    :raises RuntimeError: with RL Zoo's message, if training fails
    """
    context.folder.mkdir(parents=True, exist_ok=True)
    config = context.folder / "hyperparameters.yml"
    config.write_text(yaml.safe_dump({task: hyperparameters}, sort_keys=False))
    command = [sys.executable, "-m", "sb3_attn.zoo", "train", "--algo", algo, "--env", task, "--seed", str(context.seed)]
    command += ["--conf-file", str(config), "--log-folder", str(context.folder), "--verbose", "0"]
    command += ["--eval-freq", str(evaluation[0]), "--eval-episodes", str(evaluation[1])]
    command += ["--num-threads", "1", "--device", "cpu"]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if process.returncode:
        raise RuntimeError(f"Training {task} with seed {context.seed} failed:\n{process.stderr}")
    run = max((context.folder / algo).glob(f"{task}_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    return run / f"{task}.zip"


def score(policy: Any, task: str, wrapper: str | None = None) -> tuple[float, float]:
    """
    Mean return of the greedy policy over :data:`N_EPISODES` episodes, and its standard error.

    :param wrapper: Class of a wrapper, as ``env_wrapper`` in RL Zoo's YAML.
    """
    wrapper_class = importlib.import_module("rl_zoo3.utils").get_wrapper_class({"env_wrapper": wrapper})
    make = partial(gym.make, task)  # given an id, SB3 would ask for rendering, which not every task supports
    vec_env: VecEnv = make_vec_env(make, n_envs=10, seed=EVALUATION_SEED, wrapper_class=wrapper_class)
    returns, _ = evaluate_policy(policy, vec_env, N_EPISODES, return_episode_rewards=True)
    vec_env.close()
    return float(np.mean(returns)), float(np.std(returns, ddof=1) / np.sqrt(N_EPISODES))
