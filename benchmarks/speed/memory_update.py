"""
An update of the NTM and of the DNC against one of other implementations.

An update is the forward pass over sequences of the copy task, the backward pass and the optimizer's step. All sides run in one
process, so they have the same PyTorch. The time that compiling takes is not included.
"""

import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch.nn import functional as F

from benchmarks.peers import memories
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, values
from benchmarks.sequence_tasks import Batch, copy
from benchmarks.speed.turns import cpu_milliseconds, in_turn, medians, ratio
from sb3_attn.memory import make_core
from sb3_attn.memory.external.core import has_compiler

PEERS = {"pytorch-ntm": memories.pytorch_ntm, "dnc": memories.dnc}

NTM = dict(hidden_size=100, n_slots=128, word_size=20)
DNC = dict(hidden_size=64, n_slots=16, word_size=16, n_reads=4)


class Case(NamedTuple):
    """A memory to measure, and the package to compare it with."""

    core: str
    sizes: dict[str, int]  # of both sides, as arguments of our core
    length: int  # number of words to copy; there are 2 length + 1 steps
    batch_size: int
    peer: str
    threshold: float  # how many times faster than the peer ours has to be


CASES = {
    "NTM 128 x 20, 41 steps x 32": Case("ntm", NTM, 20, 32, "pytorch-ntm", 4.0),
    "NTM 128 x 20, 41 steps x 1": Case("ntm", NTM, 20, 1, "pytorch-ntm", 2.5),
    "DNC 16 x 16, 21 steps x 32": Case("dnc", DNC, 10, 32, "dnc", 1.7),
}


def settings(options: Options) -> Settings:
    """A variant for each case."""
    if options.compiled and not has_compiler():
        raise SystemExit("--compiled needs a C++ compiler and there is none; install g++, or set CXX to the one you have.")
    ours = ["ours", "compiled"] if options.compiled else ["ours"]
    return {
        name: {"case": name, "sides": [*ours, *options.peers.keys() & {case.peer}], "rounds": options.scaled(30)}
        for name, case in CASES.items()
    }


def make_side(name: str, case: Case, batch: Batch, context: Context) -> memories.Side:
    """A side by its name in the settings."""
    if name in PEERS:
        sys.path.append(context.peers[name])  # at the end: other modules there must not hide ours
        return PEERS[name](batch, case.sizes)
    kwargs = {**case.sizes, "output_size": batch.targets.shape[-1], "compiled": name == "compiled"}
    core = make_core(case.core, batch.inputs.shape[-1], kwargs)
    return core, lambda: core.unroll(batch.inputs, core.initial_state(case.batch_size))[0].sigmoid()


def updater(side: memories.Side, batch: Batch) -> Callable[[], None]:
    """An update of any side."""
    network, outputs = side
    optimizer = th.optim.Adam(network.parameters(), fused=True)

    def update() -> None:
        optimizer.zero_grad()
        F.binary_cross_entropy(outputs()[batch.mask], batch.targets[batch.mask]).backward()
        optimizer.step()

    return update


def measure(context: Context, case: str, sides: list[str], rounds: int) -> dict[str, Any]:
    """Measure all sides in turn; returns parameters and milliseconds of each, and how many times slower the peer is."""
    th.manual_seed(context.seed)
    entry = CASES[case]
    batch = copy(np.random.default_rng(0), entry.batch_size, entry.length)
    networks = {name: make_side(name, entry, batch, context) for name in sides}
    updates = {name: cpu_milliseconds(updater(side, batch)) for name, side in networks.items()}
    times = in_turn(updates, rounds, warm_up=3)
    result: dict[str, Any] = {
        "parameters": {name: sum(p.numel() for p in network.parameters()) for name, (network, _) in networks.items()},
        "milliseconds": medians(times),
        "rounds": times,
    }
    if entry.peer in sides:
        result["ratios"] = {name: ratio(times[entry.peer], times[name]) for name in sides if name != entry.peer}
    if "dnc" in sides:
        result["feeds_reads_back"] = memories.dnc_feeds_reads_back(entry.sizes)
    return result


def rows(variants: Variants) -> Iterator[Row]:
    """A case a row."""
    for name, runs in variants.items():
        case, result = CASES[name], runs[0].result
        times = {side: f"{median(values(runs, 'milliseconds', side)):.1f} ms" for side in result["milliseconds"]}
        ratios = {side: f"{median(values(runs, 'ratios', side)):.2f}" for side in result.get("ratios", {})}
        feeds_back = {None: "", True: ", feeds reads back", False: ", feeds reads back only in the next call"}
        yield {
            "update": name,
            "peer": case.peer + feeds_back[result.get("feeds_reads_back")],
            "peer's": times.get(case.peer, "-"),
            "ours": times["ours"],
            "ratio": ratios.get("ours", "-"),
            "threshold": f"at least {case.threshold:g}",
            "compiled": times.get("compiled", "-"),
            "ratio, compiled": ratios.get("compiled", "-"),
        }


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
