"""
Environment steps per second of CPU time, training included: CartPole without velocities.

RecurrentDQN against the recurrent DQNs of Tianshou and TorchRL; RecurrentPPO and stock DQN show what a memory costs.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

from sb3_contrib import RecurrentPPO
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm

from benchmarks.environments import MaskedCartPole
from benchmarks.peers import server, sizes
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, compared, values
from benchmarks.speed.recurrent_update import dqn_arguments, make_model
from benchmarks.speed.turns import in_turn, medians, ratio

OURS = ("linear head", "default head", "default head, bf16")
PRICE = ("RecurrentPPO", "stock DQN, no memory")
PEERS = {"Tianshou": "tianshou", "TorchRL": "torchrl"}  # and the modules of benchmarks.peers
#: What is compared: ours and the other
PAIRS = (*((ours, peer) for peer in PEERS for ours in OURS), *(("default head", other) for other in PRICE))


def settings(options: Options) -> Settings:
    """A variant for each kind of episodes."""
    steps = options.scaled(1000, multiple_of=sizes.STEPS_PER_UPDATE)
    peers = [*PEERS] if "python" in options.peers else []
    common = {"sides": [*OURS, *PRICE, *peers], "steps": steps, "rounds": options.scaled(5)}
    return {
        "episodes of 500 steps": {"full_windows": True, **common},
        "episodes as they come": {"full_windows": False, **common},
    }


def make_agent(side: str, full_windows: bool, seed: int) -> BaseAlgorithm:
    """An agent of this interpreter, with the sizes of the comparison; RecurrentPPO otherwise with its defaults."""
    if side in OURS:
        head, bf16 = side.split()[0], side.endswith("bf16")
        return make_model(full_windows, head, seed, bf16=bf16)
    env = MaskedCartPole(full_windows)
    common: dict[str, Any] = {"seed": seed, "device": "cpu"}
    if side == "RecurrentPPO":
        return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=dict(lstm_hidden_size=sizes.HIDDEN_SIZE), **common)
    return DQN("MlpPolicy", env, **dqn_arguments(), **common)


def trainer(model: BaseAlgorithm) -> Callable[[int], float]:
    """An agent after its warm-up: trains for a number of steps and returns the seconds that so many took."""
    model.learn(sizes.WARM_UP_STEPS + 10 * sizes.STEPS_PER_UPDATE)

    def train(steps: int) -> float:
        n_updates, n_steps = model._n_updates, model.num_timesteps
        start = time.process_time()
        model.learn(steps, reset_num_timesteps=False)
        seconds = time.process_time() - start
        done = model.num_timesteps - n_steps  # RecurrentPPO completes its rollout
        if isinstance(model, DQN):
            assert model._n_updates - n_updates == done // sizes.STEPS_PER_UPDATE, "one update per 4 steps"
        return seconds * steps / done

    return train


def measure(context: Context, full_windows: bool, sides: list[str], steps: int, rounds: int) -> dict[str, Any]:
    """Measure all sides in turn; returns steps per second of each, and the ratios of :data:`PAIRS`."""
    with ExitStack() as stack:
        trainers: dict[str, Callable[[int], float]] = {}
        for side in sides:
            if side in PEERS:
                arguments = ["--full-windows"] if full_windows else []
                ask = stack.enter_context(server.start(context.peers["python"], PEERS[side], *arguments))
                trainers[side] = partial(ask, "train")
            else:
                trainers[side] = trainer(make_agent(side, full_windows, context.seed))
        seconds = in_turn({name: partial(train, steps) for name, train in trainers.items()}, rounds)
    rates = {name: [steps / measured for measured in side] for name, side in seconds.items()}
    ratios = {f"{ours}, {other}": ratio(rates[ours], rates[other]) for ours, other in PAIRS if other in sides}
    return {"steps_per_second": medians(rates), "ratios": ratios, "rounds": rates}


def rows(variants: Variants) -> Iterator[Row]:
    """A pair a row."""
    for episodes, runs in variants.items():
        for ours, other in PAIRS:
            if f"{ours}, {other}" in runs[0].result["ratios"]:
                rates = [f"{median(values(runs, 'steps_per_second', side)):,.0f}/s" for side in (ours, other)]
                share = median(values(runs, "ratios", f"{ours}, {other}"))
                yield compared(f"environment steps, {episodes}: {ours}", rates[0], other, rates[1], share)


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
