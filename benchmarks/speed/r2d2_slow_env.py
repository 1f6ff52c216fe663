"""
R2D2's actors with environments that wait: whether more actors are faster.

A step is a sleep of 5 ms and nothing else, so an actor cannot do more than 200 steps/s, however many environments it has.
"""

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from gymnasium import spaces

from benchmarks.environments import SlowEnv
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, values
from benchmarks.speed.r2d2_throughput import ROLLOUT_LENGTH, act

N_ENVS = (1, 8)
N_ACTORS = (1, 2, 4, 8)

#: Seconds that a step takes
STEP_TIME = 0.005


def settings(options: Options) -> Settings:
    """A variant for each number of environments and of actors; ``seconds`` are those of the steps if they only slept."""
    return {
        f"{n_envs} x {n_actors}": {"n_actors": n_actors, "envs_per_actor": n_envs, "seconds": options.scale * 20}
        for n_envs in N_ENVS
        for n_actors in N_ACTORS
    }


def measure(context: Context, n_actors: int, envs_per_actor: int, seconds: float) -> dict[str, Any]:
    """Run actors on Ray, whose environments sleep one after the other; returns what ``act`` does."""
    n_trajectories = max(round(seconds / (ROLLOUT_LENGTH * envs_per_actor * STEP_TIME)), 1)
    env = partial(SlowEnv, spaces.Box(0, 1, (4,), np.float32), STEP_TIME)
    return act(context.seed, env, n_actors, envs_per_actor, n_trajectories, hidden_size=32)


def rows(variants: Variants) -> Iterator[Row]:
    """A number of environments and actors a row, with medians over rounds."""
    rates = {}
    for runs in variants.values():
        settings = runs[0].settings
        rates[settings["envs_per_actor"], settings["n_actors"]] = median(values(runs, "steps_per_second"))
    for (n_envs, n_actors), rate in rates.items():
        speed_up = rate / rates.get((n_envs, 1), float("nan"))
        yield {
            "environments per actor": str(n_envs),
            "actors": str(n_actors),
            "steps/s": f"{rate:,.0f}",
            "times one actor": f"{speed_up:.2f}",
            "of linear": f"{100 * speed_up / n_actors:.0f} %",
            "of sleeping alone": f"{100 * rate * STEP_TIME / n_actors:.0f} %",
        }


BENCHMARK = Benchmark(settings, measure, rows, seeds=3, alone=True)
