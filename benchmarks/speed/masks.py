"""
What action masks cost: environment steps per second of CPU time, training included, with masks and without.

All episodes have 500 steps. If they ended with the pole's fall, the better agent would have longer windows and dearer updates.
"""

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.environments import MaskedCartPole
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, compared, values
from benchmarks.speed.turns import in_turn, medians, ratio
from sb3_attn import RecurrentDQN


class AllValid(MaskedCartPole):
    """CartPole, whose masks leave out no action."""

    def action_masks(self) -> np.ndarray:
        return np.ones(2, dtype=bool)


def settings(options: Options) -> Settings:
    """A variant for each number of environments."""
    return {
        f"{n_envs} environments": {"n_envs": n_envs, "steps": options.scaled(1000), "rounds": options.scaled(15)}
        for n_envs in (1, 8)
    }


def trainer(n_envs: int, use_masking: bool, steps: int, seed: int) -> Callable[[], float]:
    """A model after its warm-up: trains for a number of steps and returns how many it did per second."""
    env = make_vec_env(lambda: AllValid(full_windows=True), n_envs, seed=seed)
    model = RecurrentDQN("MlpPolicy", env, use_masking=use_masking, seed=seed, device="cpu").learn(6000)

    def train() -> float:
        start = time.process_time()
        model.learn(steps, reset_num_timesteps=False)
        return steps / (time.process_time() - start)

    return train


def measure(context: Context, n_envs: int, steps: int, rounds: int) -> dict[str, Any]:
    """Measure both in turn; returns steps per second, and the ratio of those with masks to those without."""
    sides = {name: trainer(n_envs, name == "with", steps, context.seed) for name in ("with", "without")}
    rates = in_turn(sides, rounds)
    return {"steps_per_second": medians(rates), "ratio": ratio(rates["with"], rates["without"]), "rounds": rates}


def rows(variants: Variants) -> Iterator[Row]:
    """A number of environments a row."""
    for name, runs in variants.items():
        rates = [f"{median(values(runs, 'steps_per_second', side)):,.0f}/s" for side in ("with", "without")]
        yield compared(
            f"environment steps with masks, {name}", rates[0], "without masks", rates[1], median(values(runs, "ratio"))
        )


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
