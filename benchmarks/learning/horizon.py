"""
How far a memory carries: trained on short episodes, tested on longer ones without further training.

Each core learns MemoryChain and TMaze with a cue 30 steps before the answer, with RecurrentDQN's defaults. The model at
the end is scored with the cue up to 3,000 steps before, greedily. One variant trains the LSTM with 1,000.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.learning.first_try import make_envs, score
from benchmarks.learning.zoo import N_EPISODES
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, values
from sb3_attn import RecurrentDQN
from sb3_attn.memory import CORES as ALL_CORES

TASKS = {"MemoryChain-v0": 30_000, "TMaze-v0": 50_000}  # numbers of training steps
TRAINED_ON, TESTED_ON = 30, (30, 100, 300, 1000, 3000)
LONG, N_LONG_STEPS = 1000, 300_000
LINE_STYLES = ("-", "--", ":", "-.")
CORES = [name for name in ALL_CORES if name != "identity"]


def settings(options: Options) -> Settings:
    """Variants "task, core", and "MemoryChain-v0/1000, lstm", which is trained with as many steps between cue and answer."""
    variants: Settings = {
        f"{task}, {core}": dict(
            task=task, trained_on=TRAINED_ON, n_steps=options.scaled(n_steps), arguments={"policy_kwargs": {"core": core}}
        )
        for core in CORES
        for task, n_steps in TASKS.items()
    }
    whole_episodes = {"trace_length": None, "policy_kwargs": {"core": "lstm"}}
    base = dict(task="MemoryChain-v0", trained_on=LONG, n_steps=options.scaled(N_LONG_STEPS), arguments=whole_episodes)
    return variants | {f"MemoryChain-v0/{LONG}, lstm": base}


def measure(context: Context, task: str, trained_on: int, n_steps: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """Train once; returns the score at each length, and the processor time of training in seconds."""
    env = make_envs(f"{task}/{trained_on}", 8, context.seed)
    model = RecurrentDQN("MlpPolicy", env, seed=context.seed, device="cpu", **arguments)
    start = time.process_time()
    model.learn(n_steps)
    seconds = time.process_time() - start
    test_envs = {length: make_envs(f"{task}/{length}", 10, EVALUATION_SEED) for length in TESTED_ON}
    return {
        "cpu_seconds": seconds,
        "scores": {str(length): score(model, test_env, N_EPISODES) for length, test_env in test_envs.items()},
    }


def rows(variants: Variants) -> Iterator[Row]:
    """A variant a row."""
    for name, runs in variants.items():
        scores = {length: values(runs, "scores", str(length)) for length in TESTED_ON}
        task, _, core = name.partition(", ")
        yield {
            "trained on": task,
            "core": core,
            "steps": f"{runs[0].settings['n_steps']:,}",
            "seeds": str(len(runs)),
            **{f"at {length:,}": f"{np.mean(each):.2f}" for length, each in scores.items()},
            "CPU seconds": f"{np.mean(values(runs, 'cpu_seconds')):.0f}",
        }


def plot(variants: Variants, path: Path) -> None:
    """A panel for each task: the mean of a core's seeds over the length, and each seed behind it."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for panel, task in zip(figure.subplots(1, len(TASKS), sharey=True), TASKS, strict=True):
        for number, core in enumerate(CORES):
            runs = variants.get(f"{task}, {core}", [])
            curves = np.array([[values([run], "scores", str(length))[0] for length in TESTED_ON] for run in runs])
            for curve in curves:
                panel.plot(TESTED_ON, curve, color=f"C{number}", alpha=0.2)
            if runs:
                style = dict(color=f"C{number}", linestyle=LINE_STYLES[number % len(LINE_STYLES)])  # many lie on each other
                panel.plot(TESTED_ON, curves.mean(axis=0), marker="o", label=core, **style)
        panel.axvline(TRAINED_ON, color="0.7", linestyle=":")
        panel.set(title=task, xlabel="steps between the cue and the answer", xscale="log")
    figure.legend(*panel.get_legend_handles_labels(), loc="outside right center")
    figure.axes[0].set_ylabel("mean return, greedy")
    figure.savefig(path.with_suffix(".png"), dpi=100)


BENCHMARK = Benchmark(settings, measure, rows, seeds=3, plot=plot, quick="MemoryChain-v0, lstm")
