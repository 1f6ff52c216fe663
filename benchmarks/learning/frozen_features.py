"""
Memory over images at equal processor time: trained convolutions, and frozen ones whose features are stored in the replay.

A kind gets as many training steps as take about the same processor time, which includes making the encoder.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.learning.first_try import Curve, score
from benchmarks.learning.zoo import N_EPISODES
from benchmarks.runner import EVALUATION_SEED, Benchmark, Context, Options, Row, Settings, Variants, each, values
from sb3_attn import FrozenEncoder, RecurrentDQN, VecFrozenFeatures

#: Seed of the encoder's images, apart from those of training
ENCODER_SEED = 1_000
TILE_SIZE = 8


class Task(NamedTuple):
    """
    A task.

    :param n_steps: Number of training steps, by kind.
    :param frozen: Arguments of RecurrentDQN with frozen features.
    """

    n_steps: dict[str, int]
    frozen: dict[str, Any]


KINDS = {"end to end": None, "frozen, random": FrozenEncoder.random, "frozen, autoencoder": FrozenEncoder.autoencoder}
TASKS = {
    "RememberedGlyph-v0": Task(
        {"end to end": 12_000, "frozen, random": 40_000, "frozen, autoencoder": 36_000},
        {"trace_length": 4, "burn_in_length": 20, "batch_size": 32},  # its episodes have 21 steps
    ),
    "MiniGrid-MemoryS7-v0": Task(
        {"end to end": 27_000, "frozen, random": 60_000, "frozen, autoencoder": 60_000},
        {"trace_length": 8, "burn_in_length": 72, "batch_size": 32},
    ),
}


def make_envs(task: str, n_envs: int, seed: int) -> VecEnv:
    """Environments with images; MiniGrid's as it sees them."""

    def make() -> gym.Env:
        env = gym.make(task)
        if task.startswith("MiniGrid"):
            from minigrid.wrappers import ImgObsWrapper, RGBImgPartialObsWrapper

            env = ImgObsWrapper(RGBImgPartialObsWrapper(env, tile_size=TILE_SIZE))
        return env

    return make_vec_env(make, n_envs, seed)


def settings(options: Options) -> Settings:
    """A variant "task, kind" for each."""
    return {
        f"{name}, {kind}": {"task": name, "kind": kind, "n_steps": options.scaled(task.n_steps[kind])}
        for name, task in TASKS.items()
        for kind in KINDS
    }


def measure(context: Context, task: str, kind: str, n_steps: int) -> dict[str, Any]:
    """Train once; returns the score, the curve and the processor time, in seconds, of encoder and training."""
    make, start = partial(make_envs, task), time.process_time()
    env, evaluation_env = make(8, context.seed), make(10, EVALUATION_SEED)
    policy, arguments = "CnnPolicy", {}
    if (make_encoder := KINDS[kind]) is not None:
        encoder = make_encoder(make(8, ENCODER_SEED), seed=context.seed)
        env, evaluation_env = VecFrozenFeatures(env, encoder), VecFrozenFeatures(evaluation_env, encoder)
        policy, arguments = "FrozenFeaturesPolicy", TASKS[task].frozen
    seconds_of_encoder = time.process_time() - start
    model = RecurrentDQN(policy, env, buffer_size=50_000, seed=context.seed, device="cpu", **arguments)
    curve = Curve(evaluation_env, n_steps)
    model.learn(n_steps, callback=curve)
    seconds = seconds_of_encoder + curve.seconds
    return {"cpu_seconds": seconds, "score": score(model, evaluation_env, N_EPISODES), "curve": curve.points}


def rows(variants: Variants) -> Iterator[Row]:
    """A variant a row."""
    for name, runs in variants.items():
        task, _, kind = name.partition(", ")
        scores = values(runs, "score")
        yield {
            "task": task,
            "convolutions": kind,
            "steps": f"{runs[0].settings['n_steps']:,}",
            "CPU seconds": f"{np.mean(values(runs, 'cpu_seconds')):.0f}",
            "mean": f"{np.mean(scores):.2f}",
            "each seed": each(scores),
        }


BENCHMARK = Benchmark(settings, measure, rows, seeds=3, quick="RememberedGlyph-v0, frozen, random")
