"""
Forward and backward pass of each memory core, against the LSTM, and as the length, the batch and its sizes grow.

It also measures whole updates of RecurrentDQN with the cores that have a sliding window, over 1,000 steps.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from benchmarks.environments import SlowEnv
from benchmarks.runner import Benchmark, Context, Options, Row, Run, Settings, Variants, compared, values
from benchmarks.speed.turns import cpu_milliseconds, in_turn, medians, peak_memory, ratio
from sb3_attn import RecurrentDQN
from sb3_attn.memory import make_core

INPUT_SIZE = 64
#: Sizes to start from: those of the inputs, then the arguments that make a core larger
START = {"length": 100, "batch_size": 8}
ARGUMENTS = {
    "lstm": {"hidden_size": 64},
    "gru": {"hidden_size": 64},
    "rnn": {"hidden_size": 64},
    "ctrnn": {"hidden_size": 64},
    "mingru": {"hidden_size": 64},
    "ntm": {"hidden_size": 64, "n_slots": 32},
    "dnc": {"hidden_size": 64, "n_slots": 16},
    "key_value": {"hidden_size": 64, "n_slots": 64},
    "gtrxl": {"hidden_size": 64, "memory_length": 64},
}
#: How many times as large each of them gets, the others staying as they are
FACTORS = (4, 16)
#: Numbers of windows for which a core is compared with the LSTM; by default an update has 8 of 128 steps, or more of fewer
AGAINST_LSTM = (8, 32)
#: Cores whose updates over long windows are measured, those with a sliding window against both LSTMs
UPDATED = {
    "lstm of 64 units": ("lstm", ARGUMENTS["lstm"]),
    "lstm of 128 units": ("lstm", {"hidden_size": 128}),
    "key_value": ("key_value", ARGUMENTS["key_value"]),
    "gtrxl": ("gtrxl", ARGUMENTS["gtrxl"]),
}
UPDATE_LENGTH, N_STEPS = 1_000, 3_000
#: Growth still counts as linear up to this factor
TOLERANCE = 1.25


def settings(options: Options) -> Settings:
    """A variant for each core, and one of updates for each number of windows."""
    variants: Settings = {core: {"core": core, "factors": [*FACTORS], "rounds": options.scaled(5)} for core in ARGUMENTS}
    for n_windows in AGAINST_LSTM:
        variants[f"update, {n_windows} windows"] = {"n_windows": n_windows, "rounds": options.scaled(15)}
    return variants


def unroll(core: str, length: int, batch_size: int, **arguments: int) -> Callable[[], None]:
    """Forward and backward pass over sequences, from the initial state."""
    module = make_core(core, INPUT_SIZE, arguments)
    inputs = th.randn(length, batch_size, INPUT_SIZE, requires_grad=True)

    def both() -> None:
        outputs, _ = module.unroll(inputs, module.initial_state(batch_size))
        outputs.square().mean().backward()

    return both


def make_update(name: str, n_windows: int, seed: int) -> Callable[[], None]:
    """An update of RecurrentDQN over long windows, from an episode that does not end."""
    core, arguments = UPDATED[name]
    model = RecurrentDQN(
        "MlpPolicy",
        SlowEnv(spaces.Box(-1, 1, (4,), np.float32)),
        buffer_size=N_STEPS,
        learning_starts=N_STEPS,
        trace_length=UPDATE_LENGTH,
        burn_in_length=0,
        policy_kwargs=dict(core=core, core_kwargs=arguments),
        seed=seed,
        device="cpu",
    )
    model.learn(N_STEPS)
    return partial(model.train, 1, n_windows)


def measure(context: Context, **settings: Any) -> dict[str, Any]:
    """Measure whole updates or a core alone, depending on the settings."""
    return (measure_updates if "n_windows" in settings else measure_sizes)(context, **settings)


def measure_updates(context: Context, n_windows: int, rounds: int) -> dict[str, Any]:
    """Measure all updates in turn; returns the milliseconds of each, and the peak memory in MiB of two in a new process."""
    updates = {name: cpu_milliseconds(make_update(name, n_windows, context.seed)) for name in UPDATED}
    times = in_turn(updates, rounds, warm_up=1)
    peaks = {name: peak_memory(make_update, name, n_windows, context.seed) for name in UPDATED}
    return {"milliseconds": medians(times), "peak_memory": peaks, "rounds": times}


def measure_sizes(context: Context, core: str, factors: list[int], rounds: int) -> dict[str, Any]:
    """Measure all sizes in turn; returns the milliseconds of each."""
    th.manual_seed(context.seed)
    start = {**START, **ARGUMENTS[core]}
    sides = {"start": cpu_milliseconds(unroll(core, **start))}
    for name, factor in product(start, factors):
        sides[f"{name} x {factor}"] = cpu_milliseconds(unroll(core, **{**start, name: factor * start[name]}))
    for batch_size, (name, arguments) in product(AGAINST_LSTM, ((core, ARGUMENTS[core]), ("lstm", ARGUMENTS["lstm"]))):
        sizes = {**START, **arguments, "batch_size": batch_size}
        sides[f"{batch_size} windows, {name}"] = cpu_milliseconds(unroll(name, **sizes))
    times = in_turn(sides, rounds, warm_up=1)
    return {"milliseconds": medians(times), "rounds": times}


def rows(variants: Variants) -> Iterator[Row]:
    """A size of a core a row: the time at its largest, and where it stops growing linearly; and a row for each comparison."""
    for core, runs in variants.items():
        if "n_windows" in runs[0].settings:
            yield from update_rows(core, runs)
            continue
        times = {side: median(values(runs, "milliseconds", side)) for side in runs[0].result["milliseconds"]}
        shares: dict[str, dict[int, float]] = {}  # of what linear growth would take
        for side, time in times.items():
            if " x " in side:
                name, _, factor = side.partition(" x ")
                shares.setdefault(name, {})[int(factor)] = time / times["start"] / int(factor)
        for name, by_factor in shares.items():
            start, largest = (START | ARGUMENTS[core])[name], max(by_factor)
            faster = [start * factor for factor, share in by_factor.items() if share > TOLERANCE]
            yield compared(
                f"core {core}, {name} {start} to {start * largest:,}",
                f"{times[f'{name} x {largest}']:,.1f} ms",
                "linear growth",
                f"{largest} x {times['start']:,.1f} ms",
                by_factor[largest],
                f"more than linear at {faster[0]:,}" if faster else "",
            )
        for batch_size in AGAINST_LSTM:
            ours, theirs = (f"{batch_size} windows, {name}" for name in (core, "lstm"))
            if core != "lstm" and ours in times:
                share = median(ratio(run.result["rounds"][ours], run.result["rounds"][theirs]) for run in runs)
                what = f"core {core}, {batch_size} windows of {START['length']} steps"
                yield compared(what, f"{times[ours]:,.1f} ms", "our lstm", f"{times[theirs]:,.1f} ms", share)


def update_rows(name: str, runs: list[Run]) -> Iterator[Row]:
    """A row for each pair of an update with a sliding window and one with an LSTM."""
    times = {side: f"{median(values(runs, 'milliseconds', side)):,.1f} ms" for side in UPDATED}
    memory = {side: median(values(runs, "peak_memory", side)) for side in UPDATED}
    lstms = [side for side in UPDATED if side.startswith("lstm")]
    others = [side for side in UPDATED if side not in lstms]
    for ours, theirs in product(others, lstms):
        share = median(ratio(run.result["rounds"][ours], run.result["rounds"][theirs]) for run in runs)
        note = f"memory {memory[ours]:,.0f} MiB, {memory[ours] / memory[theirs]:.2f} of {memory[theirs]:,.0f}"
        what = f"{name} of {UPDATE_LENGTH:,} steps: {ours}"
        yield compared(what, times[ours], f"our {theirs}", times[theirs], share, note)


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
