"""
R2D2 with the shipped hyperparameters: in process, in two actors on Ray, and there while every 10 seconds an actor is killed.

The score is the mean return of the last model's greedy policy over 100 episodes. "Sent", "received", "inserted" and "rejected"
are steps, and no step may be missing between them. The policy lag is the number of updates by which the learner was ahead of
the weights that acted, the mean of the last 100 trajectories. Needs Linux, whose /proc tells actors' processes from Ray's own.
"""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from benchmarks.learning.zoo import hyperparameters, score
from benchmarks.processes import process_tree
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants
from sb3_attn import R2D2

TASKS = ("MemoryChain-v0", "popgym-RepeatFirstEasy-v0")

ON_RAY: dict[str, Any] = dict(n_actors=2, envs_per_actor=8, backend="ray", backend_kwargs={"cpus_per_actor": 0.5})

#: Who acts, with the same number of environments everywhere, and the seconds after which an actor is killed
SETUPS: dict[str, tuple[dict[str, Any], float | None]] = {
    "in process": (dict(n_actors=0, envs_per_actor=16), None),
    "Ray": (ON_RAY, None),
    "Ray, actors killed": (ON_RAY, 10.0),
}


def settings(options: Options) -> Settings:
    """A variant for each task and setup."""
    variants = {}
    for task in TASKS:
        entry = hyperparameters("r2d2", task, options)
        n_steps = entry.pop("n_timesteps")
        del entry["n_envs"]
        for name, (setup, kill_every) in SETUPS.items():
            arguments = {**entry, **setup}
            variants[f"{task}, {name}"] = dict(task=task, n_steps=n_steps, hyperparameters=arguments, kill_every=kill_every)
    return variants


def measure(
    context: Context, task: str, n_steps: int, hyperparameters: dict[str, Any], kill_every: float | None
) -> dict[str, Any]:
    """Train once; returns the score of the last model and what became of the steps."""
    model = R2D2(env=task, seed=context.seed, device="cpu", **hyperparameters)
    start = time.perf_counter()
    with killing(kill_every, context.seed) as killed:
        model.learn(n_steps)
    seconds = time.perf_counter() - start
    mean, standard_error = score(model, task)
    return {
        "score": mean,
        "standard_error": standard_error,
        "steps": model.num_timesteps,
        "updates": model._n_updates,
        "seconds": seconds,
        "kills": len(killed),
        "step_ledger": {
            "sent": sum(model.step_ledger.n_steps_sent.values()),
            "received": model.step_ledger.n_steps_received,
            "inserted": model.step_ledger.n_steps_inserted,
            "rejected": dict(model.step_ledger.n_steps_rejected),
            "restarts": model.step_ledger.n_restarts,
        },
        "samples_per_insert": model.n_windows_sampled / max(model.n_windows_inserted, 1),
        "policy_lag": float(np.mean(model._collection.rates.policy_lags)),  # type: ignore[union-attr]  # of the last 100
    }


@contextmanager
def killing(every: float | None, seed: int) -> Iterator[list[int]]:
    """
    Kill the process of an actor on Ray after every so many seconds, ``None`` for never, while the block runs.

    :return: Ids of the processes that were killed.
    """
    killed: list[int] = []
    rng, stop = random.Random(seed), threading.Event()

    def kill() -> None:
        while not stop.wait(every):
            pids = [pid for pid, process in process_tree(os.getpid()).items() if process.is_actor]
            with suppress(IndexError, ProcessLookupError):  # there is none at the moment, or it has just ended
                pid = rng.choice(pids)
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill, daemon=True)  # without an interval it waits until the block ends
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def rows(variants: Variants) -> Iterator[Row]:
    """A run a row."""
    for variant, runs in variants.items():
        for run in runs:
            result, steps = run.result, run.result["step_ledger"]
            rejected = ", ".join(f"{n_steps:,} ({reason})" for reason, n_steps in steps["rejected"].items())
            asked = run.settings["hyperparameters"]["samples_per_insert"]
            yield {
                "run": variant,
                "seed": str(run.seed),
                "score": f"{result['score']:.2f}",
                "steps": f"{result['steps']:,}",
                "seconds": f"{result['seconds']:.0f}",
                "kills": str(result["kills"]),
                "restarts": str(steps["restarts"]),
                **{name: f"{steps[name]:,}" for name in ("sent", "received", "inserted")},
                "rejected": rejected or "0",
                "samples per insert": f"{result['samples_per_insert']:.2f}, asked for {asked:g}",
                "policy lag": f"{result['policy_lag']:.1f}",
            }


BENCHMARK = Benchmark(settings, measure, rows, seeds=3, alone=True)
