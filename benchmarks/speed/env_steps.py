"""Environment steps per second of RecurrentDQN, training included, against Tianshou's: CartPole without velocities."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

from benchmarks.peers.tianshou import STEPS_PER_UPDATE, WARM_UP_STEPS, tianshou_trainer
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, values
from benchmarks.speed.recurrent_update import HEADS, make_model
from benchmarks.speed.turns import in_turn, medians, ratio


def settings(options: Options) -> Settings:
    """A variant for each kind of episodes."""
    steps = options.scaled(2000, multiple_of=STEPS_PER_UPDATE)
    common = {"sides": [*HEADS, *options.peers.keys() & {"tianshou"}], "steps": steps, "rounds": 7}
    return {
        "episodes of 500 steps": {"full_windows": True, **common},
        "episodes as they come": {"full_windows": False, **common},
    }


def our_trainer(full_windows: bool, head: str, seed: int) -> Callable[[int], float]:
    """RecurrentDQN after its warm-up: trains for a number of steps and returns the seconds it took."""
    model = make_model(full_windows, head, seed)
    model.learn(WARM_UP_STEPS + 10 * STEPS_PER_UPDATE)

    def train(steps: int) -> float:
        updates = model._n_updates
        start = time.perf_counter()
        model.learn(steps, reset_num_timesteps=False)
        seconds = time.perf_counter() - start
        assert model._n_updates - updates == steps // STEPS_PER_UPDATE, "one update per 4 steps"
        return seconds

    return train


def measure(context: Context, full_windows: bool, sides: list[str], steps: int, rounds: int) -> dict[str, Any]:
    """Measure all sides in turn; returns steps per second of each, and the ratio of ours to Tianshou's."""
    with ExitStack() as stack:
        trainers: dict[str, Callable[[int], float]] = {head: our_trainer(full_windows, head, context.seed) for head in HEADS}
        if "tianshou" in sides:
            trainers["tianshou"] = stack.enter_context(tianshou_trainer(context.peers["tianshou"], full_windows))
        seconds = in_turn({name: partial(train, steps) for name, train in trainers.items()}, rounds)
    rates = {name: [steps / measured for measured in side] for name, side in seconds.items()}
    result: dict[str, Any] = {"steps_per_second": medians(rates), "rounds": rates}
    if "tianshou" in sides:
        result["ratios"] = {head: ratio(rates[head], rates["tianshou"]) for head in HEADS}
    return result


def rows(variants: Variants) -> Iterator[Row]:
    """Episodes and a head a row."""
    for episodes, runs in variants.items():
        has_peer = "tianshou" in runs[0].settings["sides"]
        for head in HEADS:
            yield {
                "environment steps": f"{episodes}, {head} head",
                "RecurrentDQN": f"{median(values(runs, 'steps_per_second', head)):.0f}/s",
                "Tianshou": f"{median(values(runs, 'steps_per_second', 'tianshou')):.0f}/s" if has_peer else "-",
                "ratio": f"{median(values(runs, 'ratios', head)):.2f}" if has_peer else "-",
                "threshold": "at least 1.8",
            }


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
