"""
Train RecurrentDQN on memory tasks through the shipped YAML and score what was saved.

    python -m benchmarks.learning --seeds 5 --jobs 2

Each run is RL Zoo's, in a process and on a thread of its own. The model scored is the one at the end of training, loaded
from its zip: greedy, over 100 episodes, once as it is and once with its state zeroed at every step. Runs that the
results file already has, with the same hyperparameters, are skipped, so an interrupted benchmark goes on where it was.
"""

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.runs import finish, key, read
from sb3_attn import RecurrentDQN
from sb3_attn.zoo import register, zoo_config_path

N_EPISODES = 100
EVALUATION_SEED = 1_000_000  # far from the seeds of training


class Task(NamedTuple):
    """
    What is expected of an agent.

    :param bar: Mean return to reach, over seeds.
    :param ceiling: Mean return that agents without memory do not exceed.
    :param ceiling_source: Where the ceiling comes from.
    """

    bar: float
    ceiling: float
    ceiling_source: str


TASKS = {
    "popgym-RepeatFirstEasy-v0": Task(0.95, -0.37, "DQN with a stack of 4 frames"),
    "popgym-RepeatPrevious8-v0": Task(0.95, -0.46, "DQN with a stack of 4 frames"),
    "MemoryChain-v0": Task(0.95, 0.0, "proof in its docstring"),
    "AssociativeRecall-v0": Task(0.95, 0.0625, "proof in its docstring"),
    "CartPoleNoVel-v1": Task(450.0, 112.0, "DQN with a stack of 4 frames; 44 without"),
}


class StateZeroed:
    """
    A model whose memory is put back to the initial state at every step: it is told that each step begins an episode.

    :param model: The trained model.
    """

    def __init__(self, model: RecurrentDQN) -> None:
        self.model = model

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        return self.model.predict(observation, state, np.ones_like(episode_start), deterministic)


def hyperparameters(task: str, steps: int | None = None) -> dict[str, Any]:
    """
    The shipped hyperparameters of a task.

    :param task: An environment id in ``zoo_configs/rdqn.yml``.
    :param steps: Number of training steps instead of the shipped one.
    """
    entry = yaml.safe_load(zoo_config_path("rdqn").read_text())[task]
    return {**entry, "n_timesteps": entry["n_timesteps"] if steps is None else steps}


def train(
    task: str,
    seed: int,
    folder: Path,
    steps: int | None = None,
    algo: str = "rdqn",
    overrides: Mapping[str, str] = MappingProxyType({}),
    evaluation: tuple[int, int] | None = None,
) -> Path:
    """
    Train through RL Zoo.

    :param task: Environment id.
    :param seed: Seed of the run.
    :param folder: Where RL Zoo writes its logs.
    :param steps: Number of training steps; ``None`` means the YAML's.
    :param algo: RL Zoo's name of the algorithm.
    :param overrides: Hyperparameters instead of the YAML's, as Python expressions.
    :param evaluation: Every how many steps RL Zoo evaluates, and over how many episodes; ``None`` means never.
    :return: The zip saved at the end of training.
    """
    command = [sys.executable, "-m", "sb3_attn.zoo", "train", "--algo", algo, "--env", task, "--seed", str(seed)]
    if overrides:
        command += ["--hyperparams", *(f"{name}:{value}" for name, value in overrides.items())]
    command += ["--log-folder", str(folder), "--num-threads", "1", "--device", "cpu", "--verbose", "0"]
    every, episodes = (-1, 1) if evaluation is None else evaluation
    command += [
        "--eval-freq",
        str(every),
        "--eval-episodes",
        str(episodes),
        *([] if steps is None else ["--n-timesteps", str(steps)]),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    if process.returncode:
        raise RuntimeError(f"Training {task} with seed {seed} failed:\n{process.stderr}")
    run = max((folder / algo).glob(f"{task}_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    return run / f"{task}.zip"


def score(policy: Any, task: str, entry: dict[str, Any]) -> list[float]:
    """
    Returns of the greedy policy.

    :param policy: Anything with SB3's ``predict``.
    :param task: Environment id.
    :param entry: Its hyperparameters; wrappers among them are applied.
    :return: One return per episode.
    """
    get_wrapper_class = importlib.import_module("rl_zoo3.utils").get_wrapper_class
    wrapper = get_wrapper_class({"env_wrapper": entry.get("env_wrapper")})
    make = partial(gym.make, task)  # by its id SB3 would ask for pictures, which not every task has
    vec_env: VecEnv = make_vec_env(make, n_envs=10, seed=EVALUATION_SEED, wrapper_class=wrapper)
    returns, _ = evaluate_policy(policy, vec_env, N_EPISODES, return_episode_rewards=True)
    vec_env.close()
    return [float(value) for value in returns]  # type: ignore[union-attr]


def run(task: str, seed: int, folder: Path, steps: int | None = None) -> dict[str, Any]:
    """
    Train once and score the saved model.

    :param task: Environment id.
    :param seed: Seed of the run.
    :param folder: Where the logs go, under a folder of this seed's own.
    :param steps: Number of training steps; ``None`` means the YAML's.
    :return: Mean returns with and without memory and their standard errors, and the seconds that training took.
    """
    register()
    importlib.import_module("rl_zoo3.import_envs")  # registers the tasks without velocities
    th.set_num_threads(1)
    entry = hyperparameters(task, steps)
    if entry.get("normalize", {}).get("norm_obs"):
        raise ValueError(f"{task} normalizes its observations, which score() does not.")
    start = time.perf_counter()
    zip_path = train(task, seed, folder / f"seed-{seed}", steps)
    seconds = time.perf_counter() - start
    model = RecurrentDQN.load(zip_path, device="cpu")
    result: dict[str, Any] = {"task": task, "seed": seed, "hyperparameters": entry, "seconds": seconds}
    for name, policy in (("score", model), ("state_zeroed", StateZeroed(model))):
        returns = score(policy, task, entry)
        result[name] = float(np.mean(returns))
        result[f"{name}_standard_error"] = float(np.std(returns, ddof=1) / np.sqrt(len(returns)))
    return result


def report(runs: Sequence[dict[str, Any]]) -> str:
    """The runs as a Markdown table, a task a row."""
    lines = ["| task | steps | mean | each seed | bar | ceiling | state zeroed | seconds per run |", "|---|" + "---|" * 7]
    for name, task in TASKS.items():
        rows = [run for run in runs if run["task"] == name]
        if not rows:
            continue
        digits = 0 if task.bar > 1 else 2
        steps = " / ".join(f"{steps:,}" for steps in sorted({run["hyperparameters"]["n_timesteps"] for run in rows}))
        mean, zeroed, seconds = (np.mean([run[key] for run in rows]) for key in ("score", "state_zeroed", "seconds"))
        seeds = ", ".join(f"{run['score']:.{digits}f}" for run in sorted(rows, key=lambda run: run["seed"]))
        lines.append(
            f"| {name} | {steps} | {mean:.{digits}f} | {seeds} | {task.bar:g} | {task.ceiling:g} "
            f"| {zeroed:.{digits}f} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def measure(tasks: Sequence[str], seeds: int, jobs: int, out: Path, folder: Path, steps: int | None) -> list[dict[str, Any]]:
    """
    Do the runs that the results file lacks, and add them to it one by one.

    :param tasks: Keys of :data:`TASKS`.
    :param seeds: Number of seeds, from 0.
    :param jobs: Number of runs at a time.
    :param out: The results file.
    :param folder: Where the logs go.
    :param steps: Number of training steps; ``None`` means the YAML's.
    :return: The runs asked for.
    """
    asked = {(task, "", seed): (task, seed, folder, steps) for task in tasks for seed in range(seeds)}
    # Those with other hyperparameters are done again
    current = [r for r in read(out) if key(r) not in asked or r["hyperparameters"] == hyperparameters(r["task"], steps)]
    return [result for result in finish(run, asked, current, out, jobs) if key(result) in asked]


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: Its arguments; ``None`` takes them from ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="the tasks to learn")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at a time, one thread each")
    parser.add_argument("--steps", type=int, help="training steps instead of the YAML's, to try the benchmark out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/learning.json"), help="the results file")
    parser.add_argument("--folder", type=Path, default=Path("logs/benchmarks"), help="where models and logs go")
    args = parser.parse_args(arguments)
    if min(args.seeds, args.jobs) < 1:
        parser.error("--seeds and --jobs have to be positive.")
    print(report(measure(args.task, args.seeds, args.jobs, args.out, args.folder, args.steps)))


if __name__ == "__main__":
    main()
