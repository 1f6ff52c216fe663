"""
An update of the neural Turing machine and of the DNC against one of other implementations, on one thread.

    python -m benchmarks.memory_speed --pytorch-ntm path/to/pytorch-ntm --dnc path/to/site-packages

An update is the forward pass over sequences of the copy task, the backward pass and the optimizer's step. All sides take
turns in one run and in one process, so they have the same PyTorch; each is reported by the median of its CPU time, and the
ratio is the median of the ratios of each turn.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn
from torch.nn import functional as F

from benchmarks.sequence_tasks import Batch, copy
from sb3_attn.memory import make_core
from sb3_attn.memory.external.gradients import has_compiler

Outputs = Callable[[], th.Tensor]


class Case(NamedTuple):
    """
    What is measured.

    :param peer: Name of the other side, a key of :data:`PEERS`.
    :param batch_size: Number of rows.
    :param length: Of the sequences to copy; the steps are twice as many and one.
    :param core: Name of our core.
    :param core_kwargs: Its sizes, which are also the peer's.
    :param bar: How many times faster ours has to be.
    """

    peer: str
    batch_size: int
    length: int
    core: str
    core_kwargs: dict[str, int]
    bar: float

    @property
    def title(self) -> str:
        kwargs = self.core_kwargs
        return (
            f"{self.core.upper()} {kwargs['n_slots']} x {kwargs['word_size']}, {2 * self.length + 1} steps x {self.batch_size}"
        )


NTM = dict(hidden_size=100, n_slots=128, word_size=20)
DNC = dict(hidden_size=64, n_slots=16, word_size=16, n_reads=4)

CASES = (
    Case("pytorch-ntm", 32, 20, "ntm", NTM, 4.0),
    Case("pytorch-ntm", 1, 20, "ntm", NTM, 2.5),
    Case("dnc", 32, 10, "dnc", DNC, 1.7),
)


def our_side(case: Case, batch: Batch, compiled: bool = False) -> tuple[nn.Module, Outputs]:
    """
    Our core.

    :param case: What is measured.
    :param batch: The sequences.
    :param compiled: With ``torch.compile``.
    :return: The network, and a function that returns the probabilities ``[T, B, 8]``.
    """
    sizes = {**case.core_kwargs, "output_size": batch.targets.shape[-1]}
    core = make_core(case.core, batch.inputs.shape[-1], {**sizes, "compiled": compiled})
    return core, lambda: core.unroll(batch.inputs, core.initial_state(case.batch_size))[0].sigmoid()


def pytorch_ntm_side(case: Case, batch: Batch) -> tuple[nn.Module, Outputs]:
    """loudinthecloud/pytorch-ntm; parameters as for :func:`our_side`."""
    from ntm.aio import EncapsulatedNTM

    kwargs = case.core_kwargs
    input_size, output_size = batch.inputs.shape[-1], batch.targets.shape[-1]
    sizes = dict(controller_size=kwargs["hidden_size"], N=kwargs["n_slots"], M=kwargs["word_size"])
    network = EncapsulatedNTM(input_size, output_size, controller_layers=1, num_heads=1, **sizes)

    def outputs() -> th.Tensor:
        network.init_sequence(case.batch_size)
        return th.stack([network(inputs)[0] for inputs in batch.inputs])

    return network, outputs


def make_peer_dnc(case: Case, input_size: int) -> nn.Module:
    """
    The DNC of the package dnc with one LSTM layer; its outputs are as wide as its inputs.

    :param case: What is measured.
    :param input_size: Size F of an input.
    """
    from dnc import DNC as PeerDNC

    kwargs = case.core_kwargs
    sizes = dict(nr_cells=kwargs["n_slots"], cell_size=kwargs["word_size"], read_heads=kwargs["n_reads"])
    return PeerDNC(input_size, kwargs["hidden_size"], num_hidden_layers=1, **sizes)


def dnc_side(case: Case, batch: Batch) -> tuple[nn.Module, Outputs]:
    """The package dnc, a call for the whole sequence; parameters as for :func:`our_side`."""
    network = make_peer_dnc(case, batch.inputs.shape[-1])
    n_outputs, inputs = batch.targets.shape[-1], batch.inputs.transpose(0, 1)
    return network, lambda: network(inputs)[0].transpose(0, 1)[..., :n_outputs].sigmoid()


PEERS = {"pytorch-ntm": pytorch_ntm_side, "dnc": dnc_side}


@th.no_grad()
def feeds_reads_back(case: Case) -> bool:
    """
    Whether in the package dnc a call over two steps is the same as two calls of one step, the second of which is given
    what the first has read. If not, the controller does not see what the memory says until the next call.

    :param case: What is measured.
    """
    network, inputs = make_peer_dnc(case, 9), th.rand(case.batch_size, 2, 9)
    hidden = [(th.zeros(1, case.batch_size, case.core_kwargs["hidden_size"]),) * 2]  # by default it is random
    together, _ = network(inputs, (list(hidden), None, None), reset_experience=True)
    _, state = network(inputs[:, :1], (list(hidden), None, None), reset_experience=True)
    apart, _ = network(inputs[:, 1:], state)
    return th.allclose(together[:, 1:], apart, atol=1e-6)


def updater(network: nn.Module, outputs: Outputs, batch: Batch) -> Callable[[], None]:
    """
    An update of either side.

    :param network: The network.
    :param outputs: Returns its probabilities.
    :param batch: The sequences.
    """
    optimizer = th.optim.Adam(network.parameters(), fused=True)

    def update() -> None:
        optimizer.zero_grad()
        F.binary_cross_entropy(outputs()[batch.mask], batch.targets[batch.mask]).backward()
        optimizer.step()

    return update


def measure(case: Case, rounds: int, has_peer: bool, compiled: bool) -> dict[str, Any]:
    """
    Measure all sides in turns.

    :param case: What is measured.
    :param rounds: How many times each is measured.
    :param has_peer: Whether the peer can be imported.
    :param compiled: Whether to measure ours compiled, too.
    :return: Median milliseconds of each, the peer's by each of ours, and all measurements.
    """
    batch = copy(np.random.default_rng(0), case.batch_size, case.length)
    sides: dict[str, Callable[[Case, Batch], tuple[nn.Module, Outputs]]] = {"ours": our_side}
    if compiled:
        sides["compiled"] = partial(our_side, compiled=True)
    if has_peer:
        sides[case.peer] = PEERS[case.peer]
    networks = {name: side(case, batch) for name, side in sides.items()}
    updates = {name: updater(*network, batch) for name, network in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(rounds + 3):
        for name, update in updates.items():
            start = time.process_time()  # on one thread the same as by the clock, but that others do not add to it
            update()
            if round_ >= 3:  # the first ones warm caches up
                times[name].append(1000 * (time.process_time() - start))
    result: dict[str, Any] = {
        "parameters": {name: sum(p.numel() for p in network.parameters()) for name, (network, _) in networks.items()},
        "milliseconds": {name: median(values) for name, values in times.items()},
    }
    if has_peer:
        result["ratios"] = {
            name: median(peer / ours for peer, ours in zip(times[case.peer], times[name], strict=True))
            for name in ("ours", "compiled")
            if name in times
        }
    return {**result, "rounds": times}


def report(result: dict[str, Any]) -> str:
    """The measurements as a Markdown table."""
    lines = ["| update | peer | peer's | ours | ratio | bar | compiled | ratio |", "|---|" + "---|" * 7]
    for case in CASES:
        row = result["cases"][case.title]
        times = {name: f"{value:.1f} ms" for name, value in row["milliseconds"].items()}
        ratios = {name: f"{value:.2f}" for name, value in row.get("ratios", {}).items()}
        cells = (
            *(case.title, case.peer, times.get(case.peer, "-")),
            *(times["ours"], ratios.get("ours", "-"), f"at least {case.bar:g}"),
            *(times.get("compiled", "-"), ratios.get("compiled", "-")),
        )
        lines.append(f"| {' | '.join(cells)} |")
    machine = result["machine"]
    lines += ["", f"One thread of {machine['cores']}, load {machine['load']:.1f}, torch {machine['torch']}."]
    if "dnc_feeds_reads_back" in result:
        lines += ["", f"dnc feeds what was read back within a call: {'yes' if result['dnc_feeds_reads_back'] else 'no'}."]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """
    Run the command line.

    :param arguments: Its arguments; ``None`` takes them from ``sys.argv``.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pytorch-ntm", metavar="PATH", help="a checkout of loudinthecloud/pytorch-ntm, to compare with")
    parser.add_argument("--dnc", metavar="PATH", help="the folder that has the package dnc, to compare with")
    parser.add_argument("--compiled", action="store_true", help="measure ours with torch.compile, too; needs a C++ compiler")
    parser.add_argument("--rounds", type=int, default=30, help="measurements of each side")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory_speed.json"), help="where to write")
    args = parser.parse_args(arguments)
    if args.compiled and not has_compiler():
        parser.error("--compiled needs a C++ compiler and there is none; install g++, or set CXX to the one that you have.")
    folders = {"pytorch-ntm": args.pytorch_ntm, "dnc": args.dnc}
    sys.path += [folder for folder in folders.values() if folder]  # at the end: what else lies there must not hide ours
    th.set_num_threads(1)
    th.manual_seed(0)
    result: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "torch": th.__version__,
        },
        "cases": {case.title: measure(case, args.rounds, bool(folders[case.peer]), args.compiled) for case in CASES},
    }
    if args.dnc:
        result["dnc_feeds_reads_back"] = feeds_reads_back(next(case for case in CASES if case.peer == "dnc"))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(report(result))


if __name__ == "__main__":
    main()
