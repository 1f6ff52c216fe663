"""
DARQN, a memory that chooses where to look, on tasks that need both memory and attention, and on one that needs a long memory.

Each selection is trained with the shipped hyperparameters of MemoryChain-v0. The model that is scored is the one at the end of
training: greedy, over 500 episodes, once as it is and once with its state zeroed at every step. "Mass" is the share of the
attention that the entity asked for gets, "picks" how often it gets the largest share.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.learning.zoo import hyperparameters
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn import DARQNPolicy, RecurrentDQN
from sb3_attn.common.evaluation import StateZeroed
from sb3_attn.envs import MemoryChain, MemoryTask, RememberedSearch

N_EPISODES, N_ENVS = 500, 10
SELECTIONS = ("soft", "straight_through", "reinforce")

#: Environment, and number of training steps
TASKS: dict[str, tuple[Callable[[], MemoryTask], int]] = {
    "RememberedSearch, 2 kinds": (partial(RememberedSearch, kinds=2), 20_000),
    "RememberedSearch, 4 kinds": (partial(RememberedSearch, kinds=4), 60_000),
    "MemoryChain": (MemoryChain, 10_000),
}


def settings(options: Options) -> Settings:
    """A variant for each task and selection."""
    variants = {}
    for task, (_, steps) in TASKS.items():
        for selection in SELECTIONS:
            policy_kwargs = {"core_kwargs": {"hidden_size": 64, "attention_size": 64, "selection": selection}}
            changes = dict(n_timesteps=steps, policy="DARQNPolicy", policy_kwargs=policy_kwargs)
            entry = hyperparameters("rdqn", "MemoryChain-v0", options, **changes)
            variants[f"{task}, {selection}"] = dict(task=task, selection=selection, hyperparameters=entry)
    return variants


def measure(context: Context, task: str, selection: str, hyperparameters: dict[str, Any]) -> dict[str, float]:
    """Train once; returns CPU seconds of training, scores with and without memory, and mass and picks if there is a target."""
    make, _ = TASKS[task]
    kwargs = {key: value for key, value in hyperparameters.items() if key not in ("n_timesteps", "n_envs", "policy")}
    vec_env: VecEnv = make_vec_env(make, n_envs=hyperparameters["n_envs"], seed=context.seed)
    start = time.process_time()  # other processes do not add to it
    model = RecurrentDQN(DARQNPolicy, vec_env, seed=context.seed, device="cpu", **kwargs)
    model.learn(hyperparameters["n_timesteps"])
    result = {"cpu_seconds": time.process_time() - start}
    evaluation: VecEnv = make_vec_env(make, n_envs=N_ENVS, seed=EVALUATION_SEED)
    for name, policy in (("score", model), ("state_zeroed", StateZeroed(model))):
        result[name] = float(evaluate_policy(policy, evaluation, N_EPISODES)[0])  # type: ignore[arg-type]
    env = make()
    return {**result, **(attention_to_the_target(model, env) if isinstance(env, RememberedSearch) else {})}


def attention_to_the_target(model: RecurrentDQN, env: RememberedSearch) -> dict[str, float]:
    """Mass and picks of a model at the last step of the environment that it was trained on."""
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


def rows(variants: Variants) -> Iterator[Row]:
    """A selection a row."""
    for runs in variants.values():
        task, selection, hyperparameters = (runs[0].settings[key] for key in ("task", "selection", "hyperparameters"))
        has_target = "mass" in runs[0].result
        yield {
            "task": task,
            "selection": selection,
            "steps": f"{hyperparameters['n_timesteps']:,}",
            "mean": f"{np.mean(values(runs, 'score')):.2f}",
            "each seed": each(values(runs, "score")),
            "ceiling": f"{TASKS[task][0]().memoryless_ceiling:.3g}",
            "state zeroed": f"{np.mean(values(runs, 'state_zeroed')):.2f}",
            **{key: f"{np.mean(values(runs, key)):.2f}" if has_target else "-" for key in ("mass", "picks")},
            "CPU seconds per run": f"{np.mean(values(runs, 'cpu_seconds')):.0f}",
        }


BENCHMARK = Benchmark(settings, measure, rows, seeds=3)
