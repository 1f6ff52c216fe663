"""A call of ``predict``, which acts in environments: RecurrentDQN against sb3-contrib's RecurrentPPO, CartPole, LSTM 64."""

from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, compared, values
from benchmarks.speed.turns import cpu_milliseconds, in_turn, medians, ratio
from sb3_attn import RecurrentDQN

N_CALLS = 200


def settings(options: Options) -> Settings:
    """A variant for each number of environments."""
    return {f"{n_envs} environments": {"n_envs": n_envs, "rounds": options.scaled(30)} for n_envs in (1, 8, 64)}


def predictions(model: BaseAlgorithm, n_envs: int) -> Callable[[], None]:
    """Greedy actions for a number of steps, each from the state that the one before returned."""
    obs = np.random.default_rng(0).standard_normal((n_envs, 4)).astype(np.float32)
    episode_starts = np.zeros(n_envs, dtype=bool)

    def predict() -> None:
        state: Any = None
        for _ in range(N_CALLS):
            _, state = model.predict(obs, state, episode_starts, deterministic=True)

    return predict


def measure(context: Context, n_envs: int, rounds: int) -> dict[str, Any]:
    """Measure both in turn; returns microseconds of a call, and the ratio of ours to the other."""
    env = make_vec_env("CartPole-v1", n_envs)
    models: dict[str, BaseAlgorithm] = {
        "RecurrentDQN": RecurrentDQN("MlpPolicy", env, seed=context.seed, device="cpu"),
        "RecurrentPPO": RecurrentPPO(
            "MlpLstmPolicy", env, policy_kwargs=dict(lstm_hidden_size=64), seed=context.seed, device="cpu"
        ),
    }
    sides = {name: cpu_milliseconds(predictions(model, n_envs)) for name, model in models.items()}
    times = in_turn(sides, rounds, warm_up=3)
    return {
        "microseconds": {name: 1000 * time / N_CALLS for name, time in medians(times).items()},
        "ratio": ratio(times["RecurrentDQN"], times["RecurrentPPO"]),
        "rounds": times,
    }


def rows(variants: Variants) -> Iterator[Row]:
    """A number of environments a row."""
    for name, runs in variants.items():
        ours, theirs = (f"{median(values(runs, 'microseconds', model)):.0f} us" for model in ("RecurrentDQN", "RecurrentPPO"))
        yield compared(f"predict, {name}", ours, "RecurrentPPO", theirs, median(values(runs, "ratio")))


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
