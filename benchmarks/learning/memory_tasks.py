"""
RecurrentDQN on tasks that need memory, with the shipped hyperparameters.

The model that is scored is the one at the end of training, loaded from its zip: greedy, over 100 episodes, once as it is and
once with its state zeroed at every step.
"""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.learning.zoo import hyperparameters, score, train
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn import RecurrentDQN
from sb3_attn.common.evaluation import StateZeroed

#: Mean return to reach, over seeds, and the one that agents without memory do not exceed
TASKS = {
    "popgym-RepeatFirstEasy-v0": (0.95, -0.37),  # DQN with a stack of 4 frames
    "popgym-RepeatPrevious8-v0": (0.95, -0.46),  # likewise
    "MemoryChain-v0": (0.95, 0.0),  # proof in its docstring
    "AssociativeRecall-v0": (0.95, 0.0625),  # likewise
    "MiniGrid-MemoryS11-v0": (0.9, 0.49),  # one of two ways is right: half of the largest return
    "CartPoleNoVel-v1": (450.0, 112.0),  # DQN with a stack of 4 frames; 44 without
    "LunarLanderNoVel-v3": (200.0, -571.0),  # likewise, after 300,000 steps
}


def settings(options: Options) -> Settings:
    """A variant for each task."""
    return {task: {"task": task, "hyperparameters": hyperparameters("rdqn", task, options)} for task in TASKS}


def measure(context: Context, task: str, hyperparameters: dict[str, Any]) -> dict[str, float]:
    """Train once; returns scores with and without memory, their standard errors, and the seconds that training took."""
    if hyperparameters.get("normalize", {}).get("norm_obs"):
        raise ValueError(f"{task} normalizes its observations, which score() does not; set norm_obs to false.")
    start = time.perf_counter()
    zip_path = train(context, task, "rdqn", hyperparameters)
    result = {"seconds": time.perf_counter() - start}
    model = RecurrentDQN.load(zip_path, device="cpu")
    for name, policy in (("score", model), ("state_zeroed", StateZeroed(model))):
        result[name], result[f"{name}_standard_error"] = score(policy, task, hyperparameters.get("env_wrapper"))
    return result


def rows(variants: Variants) -> Iterator[Row]:
    """A task a row."""
    for name, runs in variants.items():
        threshold, ceiling = TASKS[name]
        form = ".0f" if threshold > 1 else ".2f"
        steps = sorted({run.settings["hyperparameters"]["n_timesteps"] for run in runs})
        yield {
            "task": name,
            "steps": " / ".join(f"{n_steps:,}" for n_steps in steps),
            "mean": format(np.mean(values(runs, "score")), form),
            "each seed": each(values(runs, "score"), form),
            "threshold": f"{threshold:g}",
            "ceiling": f"{ceiling:g}",
            "state zeroed": format(np.mean(values(runs, "state_zeroed")), form),
            "seconds per run": f"{np.mean(values(runs, 'seconds')):.0f}",
        }


BENCHMARK = Benchmark(settings, measure, rows, seeds=5, quick="MemoryChain-v0")
