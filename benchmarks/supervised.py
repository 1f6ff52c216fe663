"""
Train memory cores alone, without reinforcement learning, on copy, repeat copy and associative recall.

    python -m benchmarks.supervised --task copy --core ntm dnc lstm --seeds 5

One thread per run. A run ends when it has held the bar of 0.1 wrong bits per sequence in four evaluations one after the
other, or when its seconds are over: CPU time, that of evaluations not counted. The score is the number of wrong bits per
sequence, over 320 sequences of the sizes that are trained, and over 320 longer ones at the end of the run. Finished runs are
skipped. The curves of all runs are in the results file, and in a picture beside it.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from benchmarks.learning import EVALUATION_SEED
from benchmarks.runs import finish, key, read
from benchmarks.sequence_tasks import TASKS, Batch, Task
from sb3_attn.memory import make_core

#: Wrong bits per sequence, and in how many evaluations one after the other
BAR, HELD = 0.1, 4
SECONDS_PER_EVALUATION = 10.0
TEST_BATCHES, TEST_BATCH_SIZE = 40, 8

#: The three have about as many parameters as each other. Longer sequences fit into both memories
CORES: dict[str, dict[str, Any]] = {
    "ntm": dict(hidden_size=100, n_slots=128, word_size=20),
    "dnc": dict(hidden_size=100, n_slots=64, word_size=20, n_reads=1),
    "lstm": dict(hidden_size=118),
}
#: With gates of a half the NTM stalls on repeat copy, and takes three times as long on associative recall
CORES_OF_TASKS: dict[tuple[str, str], dict[str, Any]] = {
    ("repeat_copy", "ntm"): dict(gate_bias=-2.0),
    ("associative_recall", "ntm"): dict(gate_bias=-2.0),
}


def settings(task: str, core: str, seconds: float) -> dict[str, Any]:
    """
    Hyperparameters, as the results file has them.

    :param task: A key of :data:`TASKS`.
    :param core: A key of :data:`CORES`.
    :param seconds: Of training, at most.
    """
    core_kwargs = {**CORES[core], **CORES_OF_TASKS.get((task, core), {})}
    return dict(core_kwargs=core_kwargs, batch_size=16, learning_rate=2e-3, max_grad_norm=1.0, seconds=seconds)


class Network(nn.Module):
    """
    A core that is asked for bits: its own output layer gives their logits, or one after it if it has none.

    :param core: A key of :data:`CORES`.
    :param core_kwargs: Arguments of the core.
    :param task: The task.
    """

    def __init__(self, core: str, core_kwargs: dict[str, Any], task: Task) -> None:
        super().__init__()
        own = {} if core == "lstm" else {"output_size": task.output_size}
        self.core = make_core(core, task.input_size, {**core_kwargs, **own})
        self.output = nn.Identity() if own else nn.Linear(self.core.output_size, task.output_size)

    def forward(self, batch: Batch) -> tuple[th.Tensor, th.Tensor]:
        """
        From the initial state.

        :param batch: Sequences, S of whose T steps are asked for.
        :return: Logits and targets, each ``[S, B, D]``.
        """
        outputs, _ = self.core.unroll(batch.inputs, self.core.initial_state(batch.inputs.shape[1]))
        return self.output(outputs[batch.mask]), batch.targets[batch.mask]


@th.no_grad()
def bit_errors(network: Network, batches: Sequence[Batch]) -> float:
    """
    Wrong bits per sequence.

    :param network: The network.
    :param batches: Each with as many rows as the others.
    """
    errors = []
    for batch in batches:
        logits, targets = network(batch)
        errors.append(((logits > 0) != (targets > 0.5)).sum().item() / targets.shape[1])
    return float(np.mean(errors))


def test_batches(task: Task) -> tuple[list[Batch], list[Batch]]:
    """The same for every seed: those of the sizes that are trained, and longer ones."""
    rng = np.random.default_rng(EVALUATION_SEED)
    trained = [task.draw(rng, TEST_BATCH_SIZE) for _ in range(TEST_BATCHES)]
    return trained, [task.make(rng, TEST_BATCH_SIZE, **task.longer) for _ in range(TEST_BATCHES)]


def run(task: str, core: str, seed: int, seconds: float) -> dict[str, Any]:
    """
    Train once.

    :param task: A key of :data:`TASKS`.
    :param core: A key of :data:`CORES`.
    :param seed: Seed of the network and of the sequences.
    :param seconds: Of training, at most.
    :return: The curve, and how it ended.
    """
    th.set_num_threads(1)
    th.manual_seed(seed)
    entry, rng = settings(task, core, seconds), np.random.default_rng(seed)
    network, (trained, longer) = Network(core, entry["core_kwargs"], TASKS[task]), test_batches(TASKS[task])
    parameters = list(network.parameters())
    optimizer = th.optim.Adam(parameters, lr=entry["learning_rate"], fused=True)
    curve: dict[str, list[float]] = dict(sequences=[], seconds=[], errors=[])
    sequences, elapsed = 0, 0.0
    while elapsed < seconds and not held(curve["errors"]):
        start = time.process_time()
        logits, targets = network(TASKS[task].draw(rng, entry["batch_size"]))
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, targets).backward()
        nn.utils.clip_grad_norm_(parameters, entry["max_grad_norm"])
        optimizer.step()
        sequences += entry["batch_size"]
        elapsed += time.process_time() - start
        if elapsed >= SECONDS_PER_EVALUATION * (len(curve["seconds"]) + 1):
            for name, value in (("sequences", sequences), ("seconds", elapsed), ("errors", bit_errors(network, trained))):
                curve[name].append(round(value, 4))
    return {
        "task": task,
        "network": core,
        "seed": seed,
        "settings": entry,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "errors": bit_errors(network, trained),
        "errors_longer": bit_errors(network, longer),
        "curve": curve,
    }


def held(errors: Sequence[float]) -> bool:
    """Whether the last evaluations were all below the bar."""
    return len(errors) >= HELD and max(errors[-HELD:]) < BAR


def reached(run: dict[str, Any]) -> tuple[float, float] | None:
    """The seconds and the sequences after which a run that held the bar was below it; ``None`` for one that did not."""
    curve = run["curve"]
    return (curve["seconds"][-HELD], curve["sequences"][-HELD]) if held(curve["errors"]) else None


def report(runs: Sequence[dict[str, Any]]) -> str:
    """The runs as a Markdown table, a core a row."""
    lines = [
        f"| task | core | parameters | below {BAR} | seconds until then | sequences until then | errors at the end | longer |",
        "|---|" + "---|" * 7,
    ]
    for task in TASKS:
        for core in CORES:
            rows = sorted((r for r in runs if (r["task"], r["network"]) == (task, core)), key=lambda r: r["seed"])
            if not rows:
                continue
            times = [reached(row) for row in rows]
            seconds, sequences = (", ".join("-" if t is None else f"{t[i]:,.0f}" for t in times) for i in (0, 1))
            errors, longer = (", ".join(f"{row[key]:.2f}" for row in rows) for key in ("errors", "errors_longer"))
            n_reached = sum(t is not None for t in times)
            lines.append(
                f"| {task} | {core} | {rows[0]['parameters']:,} | {n_reached} of {len(rows)} | {seconds} | {sequences} "
                f"| {errors} | {longer} |"
            )
    return "\n".join(lines)


def plot(runs: Sequence[dict[str, Any]], task: str, path: Path) -> None:
    """
    Wrong bits against the sequences seen and against seconds, a line a run.

    :param runs: Runs, also of other tasks.
    :param task: The one to show.
    :param path: The picture.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), ("sequences", "seconds"), strict=True):
        for color, core in enumerate(CORES):
            curves = [run["curve"] for run in runs if (run["task"], run["network"]) == (task, core)]
            for i, curve in enumerate(curves):
                axes.plot(curve[name], curve["errors"], color=f"C{color}", linewidth=1, label=None if i else core)
        axes.axhline(BAR, color="gray", linestyle=":", linewidth=1)
        axes.set_yscale("symlog", linthresh=BAR)  # 0 is worth showing
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"{name} seen" if name == "sequences" else "seconds of CPU time")
    axes.figure.axes[0].set_ylabel("wrong bits per sequence")
    axes.legend()
    figure.suptitle(task.replace("_", " "))
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: Its arguments; ``None`` takes them from ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS), help="the tasks to learn")
    parser.add_argument("--core", nargs="+", choices=CORES, default=list(CORES), help="the cores that learn them")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0")
    parser.add_argument("--seconds", type=float, default=600, help="CPU time of training per run, at most")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at a time, one thread each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/supervised.json"), help="the results file")
    args = parser.parse_args(arguments)
    asked = {
        (task, core, seed): (task, core, seed, args.seconds)
        for core in args.core
        for task in args.task
        for seed in range(args.seeds)
    }

    def is_current(result: dict[str, Any]) -> bool:
        return key(result) not in asked or result["settings"] == settings(result["task"], result["network"], args.seconds)

    current = [result for result in read(args.out) if is_current(result)]  # others are done again
    runs = finish(run, asked, current, args.out, args.jobs)
    for task in args.task:
        plot(runs, task, args.out.with_name(f"{args.out.stem}_{task}.png"))
    print(report(runs))


if __name__ == "__main__":
    main()
