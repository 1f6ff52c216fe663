"""
Every memory core in RecurrentDQN, and over the stacked frames of stock DQN.

Only the core and the number of training steps differ from the shipped hyperparameters.

RL Zoo evaluates the greedy policy over 50 episodes every 5,000 training steps. The score is the last of these evaluations;
"solved at" is the first one from which on all reach the threshold.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.learning.zoo import hyperparameters, train
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn.memory import CORES as ALL_CORES

EVALUATE_EVERY, EVALUATION_EPISODES = 5000, 50
THRESHOLD = 0.95

#: Algorithm and number of training steps: "rdqn" takes the core as such, "dqn" over eight stacked frames
TASKS = {
    "MemoryChain-v0": ("rdqn", 60_000),
    "AssociativeRecall-v0": ("rdqn", 150_000),
    "AssociativeRecall8-v0": ("rdqn", 150_000),
    "popgym-RepeatPreviousEasy-v0": ("dqn", 60_000),
}
CORES = {name: core for name, core in ALL_CORES.items() if name != "identity"}


def settings(options: Options) -> Settings:
    """A variant for each task and core."""
    variants = {}
    for task, (algo, steps) in TASKS.items():
        for core, core_class in CORES.items():
            policy = f"sb3_attn.{core_class.__name__.removesuffix('Core')}Policy"
            change: dict[str, Any] = {"policy_kwargs": {"core": core}} if algo == "rdqn" else {"policy": policy}
            entry = hyperparameters(algo, task, options, n_timesteps=steps, **change)
            evaluate_every = options.scaled(EVALUATE_EVERY)
            variants[f"{task}, {core}"] = dict(task=task, core=core, hyperparameters=entry, evaluate_every=evaluate_every)
    return variants


def measure(context: Context, task: str, core: str, hyperparameters: dict[str, Any], evaluate_every: int) -> dict[str, Any]:
    """Train once; returns steps and mean return of each evaluation, and the seconds that training took."""
    start = time.perf_counter()
    zip_path = train(context, task, TASKS[task][0], hyperparameters, (evaluate_every, EVALUATION_EPISODES))
    seconds = time.perf_counter() - start
    evaluations = np.load(zip_path.parent / "evaluations.npz")
    curve = np.column_stack((evaluations["timesteps"], evaluations["results"].mean(axis=1)))
    return {"curve": curve.tolist(), "seconds": seconds}


def solved_at(curve: Sequence[tuple[float, float]]) -> float | None:
    """The steps of the first evaluation from which on all reach the threshold; ``None`` if the last does not."""
    solved = None
    for steps, mean_return in reversed(curve):
        if mean_return < THRESHOLD:
            break
        solved = steps
    return solved


def rows(variants: Variants) -> Iterator[Row]:
    """A core a row."""
    for runs in variants.values():
        curves = values(runs, "curve")
        scores = [curve[-1][1] for curve in curves]
        yield {
            "task": runs[0].settings["task"],
            "core": runs[0].settings["core"],
            "steps": f"{runs[0].settings['hyperparameters']['n_timesteps']:,}",
            "mean": f"{np.mean(scores):.2f}",
            "each seed": each(scores),
            "solved at (steps), each seed": each(map(solved_at, curves), ",.0f"),
            "seconds per run": f"{np.mean(values(runs, 'seconds')):.0f}",
        }


def plot(variants: Variants, path: Path) -> None:
    """A panel for each task, with the mean of a core's seeds and each seed behind it."""
    tasks = [task for task in TASKS if any(runs[0].settings["task"] == task for runs in variants.values())]
    figure = Figure(figsize=(5 * len(tasks), 4), layout="constrained")
    for panel, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for number, core in enumerate(CORES):
            curves = [np.array(curve) for curve in values(variants.get(f"{task}, {core}", []), "curve")]
            for curve in curves:
                panel.plot(*curve.T, color=f"C{number}", alpha=0.2)
            if curves:
                panel.plot(curves[0][:, 0], np.mean([curve[:, 1] for curve in curves], axis=0), color=f"C{number}", label=core)
        panel.axhline(THRESHOLD, color="0.7", linestyle=":")
        panel.set(title=task, xlabel="environment steps", ylabel="mean return, greedy")
        panel.legend()
    figure.savefig(path.with_suffix(".png"), dpi=120)


BENCHMARK = Benchmark(settings, measure, rows, seeds=5, plot=plot, quick="*, key_value")
