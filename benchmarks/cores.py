"""
Every memory core in RecurrentDQN, through the shipped YAML with only the core changed.

    python -m benchmarks.cores --seeds 5 --jobs 2

The score is that of ``benchmarks.learning``: the greedy policy of the model saved at the end, over 100 episodes. The curve is
that of RL Zoo's evaluations on the way, 50 greedy episodes each; "solved at" is the first evaluation from which on all
later ones reach the bar. Runs that the results file already has are skipped.
"""

import argparse
import importlib
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch as th

from benchmarks.learning import hyperparameters, read, score, train, write
from sb3_attn import RecurrentDQN
from sb3_attn.zoo import register

EVALUATE_EVERY, EVALUATION_EPISODES = 5000, 50


class Task(NamedTuple):
    """
    What is expected of every core.

    :param steps: Number of training steps.
    :param bar: Mean return to reach.
    """

    steps: int
    bar: float = 0.95


TASKS = {
    "MemoryChain-v0": Task(60_000),
    "AssociativeRecall-v0": Task(150_000),
    "AssociativeRecall8-v0": Task(150_000),
}
#: The arguments of each core; an LSTM as large as elsewhere
CORES: dict[str, dict[str, Any]] = {
    "lstm": dict(hidden_size=64),
    "gru": dict(hidden_size=64),
    "ntm": {},
    "dnc": {},
    "key_value": {},
    "gated_transformer": {},
}


def run(task: str, core: str, seed: int, folder: Path) -> dict[str, Any]:
    """
    Train once, follow the evaluations on the way and score the saved model.

    :param task: A key of :data:`TASKS`.
    :param core: A key of :data:`CORES`.
    :param seed: Seed of the run.
    :param folder: Where the logs go.
    """
    register()
    importlib.import_module("rl_zoo3.import_envs")
    th.set_num_threads(1)
    steps = TASKS[task].steps
    overrides = {"policy_kwargs": f"dict(core={core!r}, core_kwargs={CORES[core]!r})"}
    start = time.perf_counter()
    zip_path = train(
        task, seed, folder / core / str(seed), steps, overrides=overrides, evaluation=(EVALUATE_EVERY, EVALUATION_EPISODES)
    )
    evaluations = np.load(zip_path.parent / "evaluations.npz")
    returns = score(RecurrentDQN.load(zip_path, device="cpu"), task, hyperparameters(task, steps))
    return {
        "task": task,
        "network": core,
        "seed": seed,
        "steps": steps,
        "core_kwargs": CORES[core],
        "score": float(np.mean(returns)),
        "curve": [[int(t), float(r)] for t, r in zip(evaluations["timesteps"], evaluations["results"].mean(1), strict=True)],
        "seconds": time.perf_counter() - start,
    }


def solved_at(result: dict[str, Any]) -> int | None:
    """
    The first evaluation from which on all reach the bar; ``None`` if the last does not.

    :param result: As :func:`run` returns it.
    """
    solved = None
    for steps, mean_return in reversed(result["curve"]):
        if mean_return < TASKS[result["task"]].bar:
            break
        solved = steps
    return solved


def report(runs: list[dict[str, Any]]) -> str:
    """The runs as a Markdown table, a core a row."""
    lines = [
        "| task | core | steps | mean | each seed | solved at (steps), each seed | seconds per run |",
        "|---|" + "---|" * 6,
    ]
    for task, expected in TASKS.items():
        for core in CORES:
            rows = sorted((r for r in runs if (r["task"], r["network"]) == (task, core)), key=lambda r: r["seed"])
            if not rows:
                continue
            seeds = ", ".join(f"{row['score']:.2f}" for row in rows)
            solved = ", ".join("-" if (at := solved_at(row)) is None else f"{at:,}" for row in rows)
            mean, seconds = (np.mean([row[key] for row in rows]) for key in ("score", "seconds"))
            lines.append(f"| {task} | {core} | {expected.steps:,} | {mean:.2f} | {seeds} | {solved} | {seconds:.0f} |")
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """
    Draw the curves: a panel for each task, the mean of a core's seeds and each seed behind it.

    :param runs: As :func:`run` returns them.
    :param path: The PNG file.
    """
    mpl.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    tasks = [task for task in TASKS if any(result["task"] == task for result in runs)]
    figure, panels = pyplot.subplots(1, len(tasks), figsize=(5 * len(tasks), 4), squeeze=False, layout="constrained")
    for panel, task in zip(panels[0], tasks, strict=True):
        for number, core in enumerate(CORES):
            curves = [np.array(r["curve"]) for r in runs if (r["task"], r["network"]) == (task, core)]
            for curve in curves:
                panel.plot(*curve.T, color=f"C{number}", alpha=0.2)
            if curves:
                panel.plot(curves[0][:, 0], np.mean([curve[:, 1] for curve in curves], axis=0), color=f"C{number}", label=core)
        panel.axhline(TASKS[task].bar, color="0.7", linestyle=":")
        panel.set(title=task, xlabel="environment steps", ylabel="mean return, greedy")
        panel.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: Its arguments; ``None`` takes them from ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="the tasks to learn")
    parser.add_argument("--core", nargs="+", choices=CORES, default=list(CORES), help="the cores to compare")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--jobs", type=int, default=2, help="number of runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cores.json"), help="the results file")
    parser.add_argument("--folder", type=Path, default=Path("logs/cores"), help="where models and logs go")
    args = parser.parse_args(arguments)
    runs = read(args.out)
    done = {(r["task"], r["network"], r["seed"]) for r in runs}
    asked = [(task, core, seed) for seed in range(args.seeds) for task in args.task for core in args.core]
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, *key, args.folder) for key in asked if key not in done]
        for future in as_completed(futures):
            runs.append(future.result())
            write(args.out, runs)
            print("{task}, {network}, seed {seed}: {score:.2f} in {seconds:.0f} s".format(**runs[-1]), flush=True)
    draw(runs, args.out.with_suffix(".png"))
    print(report(runs))


if __name__ == "__main__":
    main()
