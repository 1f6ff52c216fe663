"""
Environment steps per second through SB3's vector environments and RayVecEnv, by the time that an environment takes for a step.

Environments sleep for that time, as if they waited for a simulator, so the processors do not limit how many can step at once.
Observations are as large as a stack of four Atari frames.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from statistics import median
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from benchmarks.environments import SlowEnv
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, values
from benchmarks.speed.turns import in_turn, medians
from sb3_attn.distributed import RayVecEnv

#: Milliseconds that an environment takes for a step
STEP_TIMES = (0, 1, 2, 5, 10, 20)

N_ENVS = 8
N_ACTORS = (1, 2, 4, 8)
FRAMES = spaces.Box(0, 255, (84, 84, 4), np.uint8)


def settings(options: Options) -> Settings:
    """One variant, with all step times."""
    return {f"{N_ENVS} environments": {"rounds": 5, "seconds": 2.0 * options.scale}}


def steps_per_second(env: VecEnv, step_time: int, seconds: float) -> float:
    """Environment steps per second, measured for some seconds after one step that does not count."""
    env.set_attr("step_time", step_time / 1000)
    actions = np.zeros(env.num_envs, np.int64)
    env.step(actions)
    n_steps, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        env.step(actions)
        n_steps += env.num_envs
    return n_steps / passed


def measure(context: Context, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure all vector environments at all step times in turn; returns steps per second."""
    makers: dict[str, Callable[..., VecEnv]] = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}
    for n_actors in N_ACTORS:
        # They rest while others are measured, and so may claim no processor
        maker = partial(RayVecEnv, envs_per_actor=N_ENVS // n_actors, cpus_per_actor=0)
        makers[f"RayVecEnv, {n_actors} actor{'s' * (n_actors > 1)}"] = maker
    with ExitStack() as stack:
        env_fns = [partial(SlowEnv, FRAMES)] * N_ENVS
        envs = {name: stack.enter_context(closing(make(env_fns))) for name, make in makers.items()}
        for env in envs.values():
            env.reset()
        sides = {(ms, name): partial(steps_per_second, env, ms, seconds) for ms in STEP_TIMES for name, env in envs.items()}
        rates = in_turn(sides, rounds)
    by_step_time = {str(ms): {name: rates[ms, name] for name in envs} for ms in STEP_TIMES}
    return {"steps_per_second": {ms: medians(measured) for ms, measured in by_step_time.items()}, "rounds": by_step_time}


def rows(variants: Variants) -> Iterator[Row]:
    """A step time a row."""
    for runs in variants.values():
        for step_time, names in runs[0].result["steps_per_second"].items():
            rates = {name: median(values(runs, "steps_per_second", step_time, name)) for name in names}
            yield {"a step takes": f"{step_time} ms", **{name: f"{rate:.0f}" for name, rate in rates.items()}}


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
