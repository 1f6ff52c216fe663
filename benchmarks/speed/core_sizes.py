"""Forward and backward pass of each memory core as the length, the batch and its size grow."""

import resource
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch as th

from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, values
from benchmarks.speed.turns import cpu_milliseconds, in_turn, medians, ratio
from sb3_attn.memory import make_core

INPUT_SIZE = 64
#: Length, rows and factor of the core's size; the first is the one that the others are compared with
SIZES = {
    "100 steps": (100, 8, 1),
    "400 steps": (400, 8, 1),
    "1,000 steps": (1000, 8, 1),
    "4 x the rows": (100, 32, 1),
    "4 x the size": (100, 8, 4),
}
#: Sizes at which the LSTM is measured in the same rounds; an update has 8 windows of 128 steps by default, or more of fewer
AGAINST_LSTM = ("100 steps", "4 x the rows")
#: The argument that makes a core larger: units, slots or the window
SIZE_ARGUMENTS = {
    "lstm": ("hidden_size", 64),
    "gru": ("hidden_size", 64),
    "rnn": ("hidden_size", 64),
    "ctrnn": ("hidden_size", 64),
    "mingru": ("hidden_size", 64),
    "ntm": ("n_slots", 32),
    "dnc": ("n_slots", 16),
    "key_value": ("n_slots", 64),
    "gtrxl": ("memory_length", 64),
}


def settings(options: Options) -> Settings:
    """A variant for each core."""
    return {core: {"core": core, "rounds": options.scaled(5)} for core in SIZE_ARGUMENTS}


def unroll(core: str, length: int, n_rows: int, factor: int) -> Callable[[], None]:
    """Forward and backward pass over sequences, from the initial state."""
    name, size = SIZE_ARGUMENTS[core]
    module = make_core(core, INPUT_SIZE, {name: size * factor})
    inputs = th.randn(length, n_rows, INPUT_SIZE, requires_grad=True)

    def both() -> None:
        outputs, _ = module.unroll(inputs, module.initial_state(n_rows))
        outputs.square().mean().backward()

    return both


def measure(context: Context, core: str, rounds: int) -> dict[str, Any]:
    """Measure all sizes in turn; returns milliseconds, ratios to the LSTM, and the process's peak memory in MiB."""
    th.manual_seed(context.seed)
    sides = {name: unroll(core, *size) for name, size in SIZES.items()}
    sides |= {f"{name}, LSTM": unroll("lstm", *SIZES[name]) for name in AGAINST_LSTM}
    times = in_turn({name: cpu_milliseconds(side) for name, side in sides.items()}, rounds, warm_up=1)
    ratios = {name: ratio(times[name], times[f"{name}, LSTM"]) for name in AGAINST_LSTM}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"milliseconds": medians(times), "against_lstm": ratios, "peak_memory": peak, "rounds": times}


def rows(variants: Variants) -> Iterator[Row]:
    """A core a row: the time at the first size, how many times that the others take, and ratios to the LSTM."""
    first, *others = SIZES
    for core, runs in variants.items():
        times = {size: median(values(runs, "milliseconds", size)) for size in SIZES}
        yield (
            {"core": core, f"{first}, 8 rows": f"{times[first]:.1f} ms"}
            | {size: f"{times[size] / times[first]:.1f} x" for size in others}
            | {f"{size}, against LSTM": f"{median(values(runs, 'against_lstm', size)):.2f}" for size in AGAINST_LSTM}
        )


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
