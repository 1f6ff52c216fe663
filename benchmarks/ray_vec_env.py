"""
Environment steps per second through SB3's vector environments and RayVecEnv, by how long a step of an environment takes.

    python -m benchmarks.ray_vec_env

An environment sleeps for that long, as one does that waits for a simulator, so the processors do not limit how many can
step at once. All are measured in turns, in one run, and reported by their median, so that whatever else the machine does
falls on all of them alike.
"""

import argparse
import json
import os
import platform
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import ray
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_attn.distributed import RayVecEnv

#: Milliseconds that an environment takes for a step
STEP_TIMES = (0, 1, 2, 5, 10, 20)

N_ENVS = 8
N_ACTORS = (1, 2, 4, 8)


class Simulator(gym.Env):
    """Shows a stack of four small frames, as Atari's tasks do, and takes its time for a step."""

    observation_space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space = spaces.Discrete(2)
    step_time = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, which does not end."""
        super().reset(seed=seed)
        return np.zeros((84, 84, 4), np.uint8), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Sleep for ``step_time`` milliseconds."""
        if self.step_time:
            time.sleep(self.step_time / 1000)
        return np.zeros((84, 84, 4), np.uint8), 0.0, False, False, {}


def steps_per_second(env: VecEnv, seconds: float) -> float:
    """
    Environment steps per second.

    :param env: What to step, once more at first than is measured.
    :param seconds: For how long.
    """
    actions = np.zeros(env.num_envs, np.int64)
    env.step(actions)
    n_steps, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        env.step(actions)
        n_steps += env.num_envs
    return n_steps / passed


def measure(rounds: int, seconds: float) -> dict[str, Any]:
    """
    All of it, with what it was measured on.

    :param rounds: How many times each is measured.
    :param seconds: For how long each time.
    """
    makers: dict[str, Any] = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}
    for n_actors in N_ACTORS:
        # They rest while others are measured, and so may claim no processor
        maker = partial(RayVecEnv, envs_per_actor=N_ENVS // n_actors, cpus_per_actor=0)
        makers[f"RayVecEnv, {n_actors} actor{'s' * (n_actors > 1)}"] = maker
    rates: dict[int, dict[str, list[float]]] = {step_time: {name: [] for name in makers} for step_time in STEP_TIMES}
    with ExitStack() as stack:
        envs = {name: stack.enter_context(closing(make([Simulator] * N_ENVS))) for name, make in makers.items()}
        for env in envs.values():
            env.reset()
        for _ in range(rounds):
            for step_time in STEP_TIMES:
                for name, env in envs.items():
                    env.set_attr("step_time", step_time)
                    rates[step_time][name].append(steps_per_second(env, seconds))
    return {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "ray": ray.__version__,
        },
        "steps_per_second": {
            step_time: {name: median(values) for name, values in by_name.items()} for step_time, by_name in rates.items()
        },
        "rounds": rates,
    }


def report(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    by_step_time = result["steps_per_second"]
    names = list(next(iter(by_step_time.values())))
    lines = [f"| a step takes | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for step_time, by_name in by_step_time.items():
        lines.append(f"| {step_time} ms | {' | '.join(f'{by_name[name]:.0f}' for name in names)} |")
    machine = result["machine"]
    where = f"{machine['cores']} cores, load {machine['load']:.1f} at the end, Ray {machine['ray']}"
    return "\n".join([*lines, "", f"Environment steps per second, {N_ENVS} environments. {where}."])


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: Its arguments; ``None`` takes them from ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ray_vec_env.json"), help="where to write")
    args = parser.parse_args(arguments)
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds and --seconds have to be positive.")
    result = measure(args.rounds, args.seconds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(report(result))


if __name__ == "__main__":  # SubprocVecEnv's processes import this module again
    main()
