"""
Steps and windows per second of R2D2's actors without learning, and the processor time that Ray adds.

CartPole without velocities in episodes of 500 steps: 8 environments in each actor, LSTM 128, windows of 80 steps with 40 of
burn-in, a new one every 40 steps. The tax compares the processor time per step of all processes of a run with that of one
process without Ray in the same round: alone, or beside another that keeps the other core busy, which makes both slower.
Needs Linux.
"""

import math
import os
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple

from stable_baselines3.common.callbacks import BaseCallback

from benchmarks.environments import MaskedCartPole
from benchmarks.processes import process_tree
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, values
from sb3_attn import R2D2

#: Number of trajectories of each actor before the measurement, among them those collected ahead of the learner at the start
WARM_UP = 3

ALONE, BESIDE_ANOTHER = "in process", "in process, beside another"

ROLLOUT_LENGTH = 80
ENVS_PER_ACTOR = 8
IN_PROCESS = 0


def settings(options: Options) -> Settings:
    """A variant for each number of actors."""
    names = {ALONE: IN_PROCESS, "Ray, 1 actor": 1, "Ray, 2 actors": 2, "Ray, 4 actors": 4}
    n_steps = options.scaled(120_000)
    variants: Settings = {name: {"n_actors": n_actors, "n_steps": n_steps} for name, n_actors in names.items()}
    return {BESIDE_ANOTHER: {**variants[ALONE], "beside_another": True}, **variants}


def measure(context: Context, n_actors: int, n_steps: int, beside_another: bool = False) -> dict[str, Any]:
    """Run actors once, if asked for beside another process that does the same; returns what :func:`act` does."""
    n_trajectories = max(n_steps // (ROLLOUT_LENGTH * ENVS_PER_ACTOR * max(n_actors, 1)), 1)
    env = partial(MaskedCartPole, full_windows=True)
    arguments = context.seed, env, n_actors, ENVS_PER_ACTOR, n_trajectories, 128
    if not beside_another:
        return act(*arguments)
    processes = get_context("spawn")
    ready = processes.Event()
    other = processes.Process(target=act_for_ever, args=(ready, *arguments))
    other.start()
    ready.wait()
    rates = act(*arguments)
    other.kill()
    rates["cpu_seconds_per_1000_steps"]["ray"] = 0.0  # it was the other's
    return rates


def act(seed: int, env: Any, n_actors: int, envs_per_actor: int, n_trajectories: int, hidden_size: int) -> dict[str, Any]:
    """Run actors with environments that ``env`` makes, without learning; returns the :meth:`Interval.rates`."""
    windows: dict[str, Any] = dict(trace_length=80, burn_in_length=40, sequence_period=40)  # the paper's
    actors: dict[str, Any] = dict(n_actors=n_actors, envs_per_actor=envs_per_actor, rollout_length=ROLLOUT_LENGTH)
    if n_actors != IN_PROCESS:
        actors.update(backend="ray", backend_kwargs=dict(cpus_per_actor=0.2))  # so that 8 fit on 2 cores
    network = dict(core_kwargs=dict(hidden_size=hidden_size), encoder_arch=[64], net_arch=[hidden_size])
    training: dict[str, Any] = dict(buffer_size=100_000, learning_starts=10**9, seed=seed, device="cpu")
    model = R2D2("MlpPolicy", env, policy_kwargs=network, **windows, **actors, **training)
    interval = Interval(n_trajectories)
    model.learn(10**9, callback=interval)
    return interval.rates()


def act_for_ever(ready: Any, *arguments: Any) -> None:
    """Set an event, then run :func:`act` until the process is killed."""
    ready.set()
    while True:
        act(*arguments)


class Snapshot(NamedTuple):
    """Counts of a run so far: steps received, windows added to the replay, processor time of each process with its kind."""

    seconds: float
    n_steps: int
    n_windows: int
    cpu_seconds: dict[int, tuple[str, float]]


class Interval(BaseCallback):
    """
    From the time when each actor has sent :data:`WARM_UP` trajectories until each has sent ``n_trajectories`` more.

    So it covers whole trajectories, and not the start of processes. Training ends with it.
    """

    def __init__(self, n_trajectories: int) -> None:
        super().__init__()
        self.n_trajectories = n_trajectories
        self.snapshots: list[Snapshot] = []

    def _on_step(self) -> bool:
        return len(self.snapshots) < 2

    def _on_rollout_end(self) -> None:
        thresholds = (WARM_UP, WARM_UP + self.n_trajectories, math.inf)
        if self._n_sent() >= thresholds[len(self.snapshots)]:
            self.snapshots.append(self._snapshot())

    def _n_sent(self) -> int:
        """The least number of trajectories that an actor has sent."""
        model = self.model
        assert isinstance(model, R2D2)
        steps = model.step_ledger.n_steps_sent.values()
        return min(steps) // (model.rollout_length * model.n_envs) if len(steps) == max(model.n_actors, 1) else 0

    def _snapshot(self) -> Snapshot:
        cpu_seconds = {}
        for pid, process in process_tree(os.getpid()).items():
            kind = "learner" if pid == os.getpid() else "actors" if process.is_actor else "ray"
            cpu_seconds[pid] = kind, process.cpu_seconds
        n_windows = self.model.replay_buffer.n_windows_added  # type: ignore[attr-defined]
        return Snapshot(time.perf_counter(), self.num_timesteps, n_windows, cpu_seconds)

    def rates(self) -> dict[str, Any]:
        """Steps and windows per second, and processor time per step."""
        first, last = self.snapshots
        seconds, n_steps = last.seconds - first.seconds, last.n_steps - first.n_steps
        cpu_seconds = dict.fromkeys(("learner", "actors", "ray"), 0.0)
        for pid, (kind, used) in last.cpu_seconds.items():
            cpu_seconds[kind] += used - first.cpu_seconds.get(pid, (kind, 0.0))[1]
        return {
            "steps": n_steps,
            "seconds": seconds,
            "steps_per_second": n_steps / seconds,
            "windows_per_second": (last.n_windows - first.n_windows) / seconds,
            "cpu_seconds_per_1000_steps": {kind: 1000 * used / n_steps for kind, used in cpu_seconds.items()},
        }


def rows(variants: Variants) -> Iterator[Row]:
    """A number of actors a row, with medians over rounds."""
    kinds = ("learner", "actors", "ray")
    costs = {name: {run.seed: run.result["cpu_seconds_per_1000_steps"] for run in runs} for name, runs in variants.items()}

    def tax(name: str, without_ray: str) -> str:
        others = costs.get(without_ray, {})
        ratios = [sum(cost.values()) / others[seed]["learner"] for seed, cost in costs[name].items() if seed in others]
        return f"{100 * (median(ratios) - 1):+.0f} %" if ratios and name.startswith("Ray") else "-"

    for name, runs in variants.items():
        learner, actors, ray = (f"{median(values(runs, 'cpu_seconds_per_1000_steps', kind)):.3f}" for kind in kinds)
        yield {
            "actors": name,
            "steps/s": f"{median(values(runs, 'steps_per_second')):,.0f}",
            "windows/s": f"{median(values(runs, 'windows_per_second')):,.0f}",
            "CPU s per 1000 steps: learner": learner,
            "of actors": actors,
            "Ray's own": ray,
            "tax": tax(name, ALONE),
            "tax, cores busy": tax(name, BESIDE_ANOTHER),
        }


BENCHMARK = Benchmark(settings, measure, rows, seeds=3, alone=True)
