"""
Every memory core in RecurrentDQN and over the stacked frames of stock DQN, by the shipped YAML with only the core changed.

    python -m benchmarks.cores --seeds 5 --jobs 2

While training RL Zoo evaluates every 5,000 steps, the greedy policy over 50 episodes. The score is the last of these
evaluations; "solved at" is the first from which on all reach the bar. Runs that the results file already has are skipped.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.learning import train
from benchmarks.runs import finish, read

EVALUATE_EVERY, EVALUATION_EPISODES = 5000, 50


class Task(NamedTuple):
    """
    What is expected of every core.

    :param steps: Number of training steps.
    :param algo: ``"rdqn"`` takes the core as such, ``"dqn"`` over eight stacked frames.
    :param bar: Mean return to reach.
    """

    steps: int
    algo: str = "rdqn"
    bar: float = 0.95


TASKS = {
    "MemoryChain-v0": Task(60_000),
    "AssociativeRecall-v0": Task(150_000),
    "AssociativeRecall8-v0": Task(150_000),
    "popgym-RepeatPreviousEasy-v0": Task(60_000, algo="dqn"),
}
#: The policy that has each core over stacked frames, if one is named after it
CORES = {
    "lstm": "sb3_attn.MemoryPolicy",
    "gru": None,
    "ntm": "sb3_attn.NTMPolicy",
    "dnc": "sb3_attn.DNCPolicy",
    "key_value": "sb3_attn.KeyValueMemoryPolicy",
    "gtrxl": "sb3_attn.GTrXLPolicy",
}


def run(task: str, core: str, seed: int, folder: Path) -> dict[str, Any]:
    """
    Train once and follow the evaluations on the way.

    :param task: A key of :data:`TASKS`.
    :param core: A key of :data:`CORES`.
    :param seed: Seed of the run.
    :param folder: Where the logs go.
    """
    steps, algo, _ = TASKS[task]
    overrides = {"policy_kwargs": f"dict(core={core!r})"} if algo == "rdqn" else {"policy": repr(CORES[core])}
    start = time.perf_counter()
    zip_path = train(task, seed, folder / core / str(seed), steps, algo, overrides, (EVALUATE_EVERY, EVALUATION_EPISODES))
    seconds = time.perf_counter() - start
    evaluations = np.load(zip_path.parent / "evaluations.npz")
    curve = zip(evaluations["timesteps"].tolist(), evaluations["results"].mean(axis=1).tolist(), strict=True)
    return {"task": task, "network": core, "seed": seed, "steps": steps, "curve": list(curve), "seconds": seconds}


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
            scores = [row["curve"][-1][1] for row in rows]
            seeds = ", ".join(f"{value:.2f}" for value in scores)
            solved = ", ".join("-" if (at := solved_at(row)) is None else f"{at:,}" for row in rows)
            seconds = np.mean([row["seconds"] for row in rows])
            lines.append(
                f"| {task} | {core} | {expected.steps:,} | {np.mean(scores):.2f} | {seeds} | {solved} | {seconds:.0f} |"
            )
    return "\n".join(lines)


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """
    Draw the curves: a panel for each task, the mean of a core's seeds and each seed behind it.

    :param runs: As :func:`run` returns them.
    :param path: The PNG file.
    """
    tasks = [task for task in TASKS if any(result["task"] == task for result in runs)]
    figure = Figure(figsize=(5 * len(tasks), 4), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)
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
    asked = {
        (task, core, seed): (task, core, seed, args.folder)
        for seed in range(args.seeds)
        for task in args.task
        for core in args.core
        if TASKS[task].algo == "rdqn" or CORES[core] is not None
    }
    runs = finish(run, asked, read(args.out), args.out, args.jobs)
    draw(runs, args.out.with_suffix(".png"))
    print(report(runs))


if __name__ == "__main__":
    main()
