"""
DARQN, a memory that chooses where to look, on a task that needs both and on one that needs a long memory.

    python -m benchmarks.darqn --seeds 3

Each selection is trained with the shipped hyperparameters of MemoryChain-v0. The model scored is the one at the end of
training: greedy, over 500 episodes, once as it is and once with its state zeroed at every step. "Mass" is the share of the
attention on the entity that was asked for, "picks" how often it has the largest share. Finished runs are skipped.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.learning import EVALUATION_SEED, StateZeroed, hyperparameters
from benchmarks.runs import finish, key, read
from sb3_attn import DARQNPolicy, RecurrentDQN
from sb3_attn.envs import RememberedSearch

N_EPISODES, N_ENVS = 500, 10
SELECTIONS = ("soft", "straight_through", "reinforce")


class Task(NamedTuple):
    """
    What is trained.

    :param make: Makes an environment.
    :param steps: Number of training steps.
    :param ceiling: Mean return that agents without memory do not exceed.
    """

    make: Any
    steps: int
    ceiling: float


TASKS = {
    "RememberedSearch, 2 kinds": Task(partial(RememberedSearch, kinds=2), 20_000, 0.625),
    "RememberedSearch, 4 kinds": Task(partial(RememberedSearch, kinds=4), 60_000, 0.53),
    "MemoryChain-v0": Task(partial(gym.make, "MemoryChain-v0"), 5_000, 0.0),
}


def settings(task: str, selection: str, steps: int | None = None) -> dict[str, Any]:
    """
    Hyperparameters, as the results file has them.

    :param task: A key of :data:`TASKS`.
    :param selection: How the memory selects.
    :param steps: Number of training steps instead of the task's.
    """
    core_kwargs = dict(hidden_size=64, attention_size=64, selection=selection)
    return {
        **hyperparameters("MemoryChain-v0", steps or TASKS[task].steps),
        "policy": "DARQNPolicy",
        "policy_kwargs": dict(core_kwargs=core_kwargs),
    }


def attention_to_the_target(model: RecurrentDQN, env: RememberedSearch) -> dict[str, float]:
    """
    Where a model looks at the last step of ``RememberedSearch``.

    :param model: A trained model.
    :param env: What it was trained on.
    :return: Mass and picks.
    """
    network, shares = model.q_net, []
    for episode in range(N_EPISODES):
        obs, _ = env.reset(seed=EVALUATION_SEED + episode)
        state = None
        for _ in range(env.blanks + 1):
            _, state = model.predict(obs, state, deterministic=True)
            obs, *_ = env.step(np.int64(0))
        with th.no_grad():
            inputs = network.encode(model.policy.obs_to_tensor(obs)[0])
            weights = network.core.attend(inputs, network.state_or_initial(state, 1))[1]  # type: ignore[operator]
        shares.append(np.roll(weights.flatten().numpy(), -env.target))  # the target's comes first
    return {"mass": float(np.mean(shares, axis=0)[0]), "picks": float(np.mean(np.argmax(shares, axis=1) == 0))}


def run(task: str, selection: str, seed: int, steps: int | None = None) -> dict[str, Any]:
    """
    Train once and score the model.

    :param task: A key of :data:`TASKS`.
    :param selection: How the memory selects.
    :param seed: Seed of the run.
    :param steps: Number of training steps instead of the task's.
    """
    th.set_num_threads(1)
    entry = settings(task, selection, steps)
    kwargs = {key: value for key, value in entry.items() if key not in ("n_timesteps", "n_envs", "policy")}
    vec_env: VecEnv = make_vec_env(TASKS[task].make, n_envs=entry["n_envs"], seed=seed)
    start = time.process_time()  # of this thread alone, however busy the machine
    model = RecurrentDQN(DARQNPolicy, vec_env, seed=seed, device="cpu", **kwargs).learn(entry["n_timesteps"])
    result = {"task": task, "network": selection, "seed": seed, "hyperparameters": entry}
    result["cpu_seconds"] = time.process_time() - start
    evaluation: VecEnv = make_vec_env(TASKS[task].make, n_envs=N_ENVS, seed=EVALUATION_SEED)
    for name, policy in (("score", model), ("state_zeroed", StateZeroed(model))):
        result[name] = float(evaluate_policy(policy, evaluation, N_EPISODES)[0])  # type: ignore[arg-type]
    env = TASKS[task].make()
    return {**result, **(attention_to_the_target(model, env) if isinstance(env, RememberedSearch) else {})}


def report(runs: list[dict[str, Any]]) -> str:
    """The runs as a Markdown table, a selection a row."""
    lines = [
        "| task | selection | steps | mean | each seed | ceiling | state zeroed | mass | picks | CPU seconds per run |",
        "|---|" + "---|" * 9,
    ]
    for task in TASKS:
        for selection in SELECTIONS:
            rows = [run for run in runs if (run["task"], run["network"]) == (task, selection)]
            rows.sort(key=lambda row: row["seed"])
            if not rows:
                continue
            mean = {key: np.mean([row.get(key, np.nan) for row in rows]) for key in ("score", "state_zeroed", "cpu_seconds")}
            mass, picks = (
                f"{np.mean([row[key] for row in rows]):.2f}" if key in rows[0] else "-" for key in ("mass", "picks")
            )
            seeds = ", ".join(f"{row['score']:.2f}" for row in rows)
            lines.append(
                f"| {task} | {selection} | {rows[0]['hyperparameters']['n_timesteps']:,} | {mean['score']:.2f} | {seeds} "
                f"| {TASKS[task].ceiling:g} | {mean['state_zeroed']:.2f} | {mass} | {picks} | {mean['cpu_seconds']:.0f} |"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: Its arguments; ``None`` takes them from ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="the tasks to learn")
    parser.add_argument("--selection", nargs="+", choices=SELECTIONS, default=list(SELECTIONS), help="how to select")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time, one thread each")
    parser.add_argument("--steps", type=int, help="training steps instead of the task's, to try the benchmark out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/darqn.json"), help="the results file")
    args = parser.parse_args(arguments)

    asked = {
        (task, selection, seed): (task, selection, seed, args.steps)
        for seed in range(args.seeds)
        for task in args.task
        for selection in args.selection
    }

    def is_current(result: dict[str, Any]) -> bool:
        task, selection, _ = wanted = key(result)
        return wanted not in asked or result["hyperparameters"] == settings(task, selection, args.steps)

    current = [result for result in read(args.out) if is_current(result)]  # others are done again
    runs = finish(run, asked, current, args.out, args.jobs)
    print(report(runs))


if __name__ == "__main__":
    main()
