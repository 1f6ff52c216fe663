"""
Memory cores alone, without reinforcement learning, on copy, repeat copy and associative recall.

A run ends when it has held the threshold of 0.1 wrong bits per sequence in four consecutive evaluations, or when its seconds
are over: CPU time, without evaluations. The score is the number of wrong bits per sequence, over 320 sequences of the sizes
that are trained and over 320 longer ones at the end of the run.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F

from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, each, values
from benchmarks.sequence_tasks import TASKS, Batch, Task
from sb3_attn.memory import make_core

#: Wrong bits per sequence, and in how many consecutive evaluations
THRESHOLD, N_HELD = 0.1, 4
SECONDS_PER_EVALUATION = 10.0
TEST_BATCHES, TEST_BATCH_SIZE = 40, 8

#: The three have about the same number of parameters. Both memories hold the longer sequences, too
CORES: dict[str, dict[str, Any]] = {
    "ntm": dict(hidden_size=100, n_slots=128, word_size=20),
    "dnc": dict(hidden_size=100, n_slots=64, word_size=20, n_reads=1),
    "lstm": dict(hidden_size=118),
}
#: With gates that start at a half the NTM stalls on repeat copy, and takes three times as long on associative recall
CORES_OF_TASKS: dict[tuple[str, str], dict[str, Any]] = {
    ("repeat_copy", "ntm"): dict(gate_bias=-2.0),
    ("associative_recall", "ntm"): dict(gate_bias=-2.0),
}


def settings(options: Options) -> Settings:
    """A variant for each task and core."""
    training = dict(batch_size=16, learning_rate=2e-3, max_grad_norm=1.0, seconds=600 * options.scale)
    variants = {}
    for task in TASKS:
        for core, core_kwargs in CORES.items():
            core_kwargs = {**core_kwargs, **CORES_OF_TASKS.get((task, core), {})}
            variants[f"{task}, {core}"] = dict(task=task, core=core, core_kwargs=core_kwargs, training=training)
    return variants


class Network(nn.Module):
    """A core whose outputs are the logits of bits: those of its own output layer or, if it has none, of one after it."""

    def __init__(self, core: str, core_kwargs: dict[str, Any], task: Task) -> None:
        super().__init__()
        own = {} if core == "lstm" else {"output_size": task.output_size}
        self.core = make_core(core, task.input_size, {**core_kwargs, **own})
        self.output = nn.Identity() if own else nn.Linear(self.core.output_size, task.output_size)

    def forward(self, batch: Batch) -> tuple[th.Tensor, th.Tensor]:
        """Logits and targets of the S steps that ask for bits, each ``[S, B, D]``."""
        outputs, _ = self.core.unroll(batch.inputs, self.core.initial_state(batch.inputs.shape[1]))
        return self.output(outputs[batch.mask]), batch.targets[batch.mask]


@th.no_grad()
def bit_errors(network: nn.Module, batches: Sequence[Batch]) -> float:
    """Wrong bits per sequence; all batches have the same number of rows."""
    errors = []
    for batch in batches:
        logits, targets = network(batch)
        errors.append(((logits > 0) != (targets > 0.5)).sum().item() / targets.shape[1])
    return float(np.mean(errors))


def test_batches(task: Task) -> tuple[list[Batch], list[Batch]]:
    """Batches of the sizes that are trained, and longer ones, the same for every seed."""
    rng = np.random.default_rng(EVALUATION_SEED)
    trained = [task.draw(rng, TEST_BATCH_SIZE) for _ in range(TEST_BATCHES)]
    return trained, [task.make(rng, TEST_BATCH_SIZE, **task.longer) for _ in range(TEST_BATCHES)]


def measure(context: Context, task: str, core: str, core_kwargs: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Train once; returns wrong bits at the end, and their curve against sequences and seconds."""
    th.manual_seed(context.seed)
    rng = np.random.default_rng(context.seed)
    network, (trained, longer) = Network(core, core_kwargs, TASKS[task]), test_batches(TASKS[task])
    parameters = list(network.parameters())
    optimizer = th.optim.Adam(parameters, lr=training["learning_rate"], fused=True)
    curve: dict[str, list[float]] = dict(sequences=[], seconds=[], errors=[])
    sequences, elapsed = 0, 0.0
    while elapsed < training["seconds"] and not held(curve["errors"]):
        start = time.process_time()
        logits, targets = network(TASKS[task].draw(rng, training["batch_size"]))
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(logits, targets).backward()
        nn.utils.clip_grad_norm_(parameters, training["max_grad_norm"])
        optimizer.step()
        sequences += training["batch_size"]
        elapsed += time.process_time() - start
        if elapsed >= SECONDS_PER_EVALUATION * (len(curve["seconds"]) + 1):
            for name, value in (("sequences", sequences), ("seconds", elapsed), ("errors", bit_errors(network, trained))):
                curve[name].append(round(value, 4))
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "errors": bit_errors(network, trained),
        "errors_longer": bit_errors(network, longer),
        "curve": curve,
    }


def held(errors: Sequence[float]) -> bool:
    """True if the last evaluations were all below the threshold."""
    return len(errors) >= N_HELD and max(errors[-N_HELD:]) < THRESHOLD


def reached(curve: dict[str, list[float]], unit: str) -> float | None:
    """The seconds or sequences after which a run that held the threshold was below it; ``None`` for one that did not."""
    return curve[unit][-N_HELD] if held(curve["errors"]) else None


def rows(variants: Variants) -> Iterator[Row]:
    """A core a row."""
    for runs in variants.values():
        curves = values(runs, "curve")
        yield {
            "task": runs[0].settings["task"],
            "core": runs[0].settings["core"],
            "parameters": f"{runs[0].result['parameters']:,}",
            f"below {THRESHOLD}": f"{sum(held(curve['errors']) for curve in curves)} of {len(runs)}",
            "seconds until then": each((reached(curve, "seconds") for curve in curves), ",.0f"),
            "sequences until then": each((reached(curve, "sequences") for curve in curves), ",.0f"),
            "errors at the end": each(values(runs, "errors")),
            "longer": each(values(runs, "errors_longer")),
        }


def plot(variants: Variants, path: Path) -> None:
    """A picture of each task: wrong bits against the sequences seen and against seconds, a line a run."""
    for task in TASKS:
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for panel, unit, label in zip(panels, ("sequences", "seconds"), ("sequences", "seconds of CPU time"), strict=True):
            for number, core in enumerate(CORES):
                for i, curve in enumerate(values(variants.get(f"{task}, {core}", []), "curve")):
                    panel.plot(curve[unit], curve["errors"], color=f"C{number}", linewidth=1, label=None if i else core)
            panel.axhline(THRESHOLD, color="gray", linestyle=":", linewidth=1)
            panel.set_yscale("symlog", linthresh=THRESHOLD)  # a logarithmic scale has no 0
            panel.set_ylim(bottom=0)
            panel.set_xlabel(label)
        panels[0].set_ylabel("wrong bits per sequence")
        panels[1].legend()
        figure.suptitle(task.replace("_", " "))
        figure.savefig(path.with_name(f"{path.name}_{task}.png"), dpi=120)


BENCHMARK = Benchmark(settings, measure, rows, seeds=5, plot=plot, quick="copy, *")
