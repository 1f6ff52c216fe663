"""
A long run that is killed again and again and resumed from its checkpoints, against one that is left alone.

Both write the same checkpoints. The memory is that of the run that is left alone, while it learns.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from torch.nn.utils import parameters_to_vector

from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants
from sb3_attn import RecurrentDQN, SaveCheckpoints
from sb3_attn.recurrent_dqn.checkpoints import checkpoints

SAVE_FREQ = 5_000
#: Seconds that a process lives before it is killed, at least and at most
LIFETIMES = 10.0, 60.0
SECONDS_PER_SAMPLE = 5.0


def settings(options: Options) -> Settings:
    """One variant."""
    return {"CartPole-v1, 8 environments": {"n_steps": options.scaled(200_000)}}


def train(folder: Path, n_steps: int, seed: int) -> None:
    """Train until the end, from the newest checkpoint if there is one, and write the weights."""
    th.set_num_threads(1)
    env = make_vec_env("CartPole-v1", 8, seed=seed)
    if checkpoints(folder):
        model = RecurrentDQN.load_checkpoint(folder, env, device="cpu")
    else:
        model = RecurrentDQN("MlpPolicy", env, seed=seed, device="cpu")
    model.learn(n_steps - model.num_timesteps, SaveCheckpoints(folder, SAVE_FREQ), reset_num_timesteps=False)
    np.save(folder / "weights.npy", parameters_to_vector(model.q_net.parameters()).detach().numpy())


def run(folder: Path, n_steps: int, seed: int, lifetime: Callable[[], float]) -> tuple[list[tuple[float, float]], int]:
    """Train in processes that are killed after a lifetime; returns seconds and MiB of memory, and the number of kills."""
    samples, n_kills = [], 0
    start = time.monotonic()
    while not (folder / "weights.npy").exists():
        process = get_context("spawn").Process(target=train, args=(folder, n_steps, seed))
        process.start()
        end = time.monotonic() + lifetime()
        while process.is_alive() and time.monotonic() < end:
            process.join(min(SECONDS_PER_SAMPLE, max(end - time.monotonic(), 0)))
            with contextlib.suppress(OSError, StopIteration):  # it has just ended
                samples.append((time.monotonic() - start, resident_memory(process.pid)))
        if process.is_alive():
            process.kill()
            n_kills += 1
        process.join()
        if process.exitcode and process.exitcode > 0:
            raise RuntimeError("a process ended with an error, see above.")
    return samples, n_kills


def resident_memory(pid: int | None) -> float:
    """MiB of memory that a process has; Linux only."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def measure(context: Context, n_steps: int) -> dict[str, Any]:
    """Train left alone, then killed; returns the difference of the weights, and the memory over time."""
    rng = np.random.default_rng(context.seed)
    with TemporaryDirectory() as name:
        alone, killed = Path(name, "alone"), Path(name, "killed")
        alone.mkdir()
        killed.mkdir()
        memory, _ = run(alone, n_steps, context.seed, lambda: np.inf)
        _, n_kills = run(killed, n_steps, context.seed, lambda: rng.uniform(*LIFETIMES))
        weights = [np.load(folder / "weights.npy") for folder in (alone, killed)]
        n_files = len(list(killed.iterdir()))
    return {
        "kills": n_kills,
        "difference": float(np.abs(weights[0] - weights[1]).max()),
        "files": n_files,  # the newest checkpoints and the weights
        "memory": memory,
    }


def rows(variants: Variants) -> Iterator[Row]:
    """A run a row."""
    for name, runs in variants.items():
        for one in runs:
            seconds, memory = np.array(one.result["memory"]).T
            second_half = slice(len(memory) // 2, None)  # the replay fills in the first
            slope = np.polyfit(seconds[second_half], memory[second_half], 1)[0]
            yield {
                "run": name,
                "steps": f"{one.settings['n_steps']:,}",
                "kills": str(one.result["kills"]),
                "largest difference of a weight at the end": f"{one.result['difference']:g}",
                "minutes left alone": f"{seconds[-1] / 60:.0f}",
                "memory at the end": f"{memory[-1]:.0f} MiB",
                "slope over the second half": f"{60 * slope:.2f} MiB per minute",
            }


BENCHMARK = Benchmark(settings, measure, rows, seeds=1)
