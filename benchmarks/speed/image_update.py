"""An update of RecurrentDQN over images of 84 x 84: trained convolutions, bfloat16, encoding in parts, frozen features."""

import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, compared, values
from benchmarks.speed.turns import cpu_milliseconds, in_turn, medians, peak_memory, ratio
from sb3_attn import FrozenEncoder, RecurrentDQN, VecFrozenFeatures
from sb3_attn.recurrent_dqn import networks

BATCH_SIZE, N_STEPS = 32, 600
#: Trained steps of a window; frozen features train the last 8 of as many
LENGTH, N_TRAINED = 80, 8
#: Policy and its arguments; all lengths are those of RecurrentDQN
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "trained": ("CnnPolicy", {}, {"trace_length": LENGTH, "burn_in_length": 0}),
    "trained, bf16": ("CnnPolicy", {"bf16_features": True}, {"trace_length": LENGTH, "burn_in_length": 0}),
    "frozen": ("FrozenFeaturesPolicy", {}, {"trace_length": N_TRAINED, "burn_in_length": LENGTH - N_TRAINED}),
    "frozen, bf16": (
        "FrozenFeaturesPolicy",
        {"bf16_features": True, "core_kwargs": {"bf16": True}},
        {"trace_length": N_TRAINED, "burn_in_length": LENGTH - N_TRAINED},
    ),
}
#: How images of shorter windows are encoded: all at once, or in parts, as on every CPU
SHORT = {"trace_length": 40, "burn_in_length": 20}
ENCODINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "at once": ("CnnPolicy", {}, SHORT),
    "in parts": ("CnnPolicy", {}, SHORT),
    "in parts, bf16": ("CnnPolicy", {"bf16_features": True}, SHORT),
}


class RandomImages(gym.Env):
    """Random images, and episodes of 200 steps."""

    observation_space = spaces.Box(0, 255, (84, 84, 1), np.uint8)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._elapsed_steps = 0
        return self._image(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._elapsed_steps += 1
        return self._image(), 0.0, False, self._elapsed_steps == 200, {}

    def _image(self) -> np.ndarray:
        return self.np_random.integers(256, size=self.observation_space.shape, dtype=np.uint8)


def settings(options: Options) -> Settings:
    """A variant with all kinds, and one with all encodings."""
    rounds = options.scaled(7)
    return {
        f"{BATCH_SIZE} windows of {LENGTH} frames": {"rounds": rounds},
        f"{BATCH_SIZE} windows of {sum(SHORT.values())} frames": {"rounds": rounds, "encodings": True},
    }


def make_model(kind: str, seed: int) -> RecurrentDQN:
    """A model with a filled replay, and no update so far."""
    policy, policy_kwargs, lengths = (KINDS | ENCODINGS)[kind]
    env: VecEnv = DummyVecEnv([RandomImages])
    if policy == "FrozenFeaturesPolicy":
        env = VecFrozenFeatures(env, FrozenEncoder.random(env, n_images=100))
    model = RecurrentDQN(
        policy, env, 1e-3, 1000, N_STEPS, BATCH_SIZE, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **lengths
    )
    return model.learn(N_STEPS)


def make_update(kind: str, seed: int) -> Callable[[], None]:
    """An update of a new model."""
    model = make_model(kind, seed)
    limit = sys.maxsize if kind == "at once" else networks.MAX_NUMBERS_ENCODED_AT_ONCE

    def update() -> None:
        with mock.patch.object(networks, "MAX_NUMBERS_ENCODED_AT_ONCE", limit):
            model.train(1, BATCH_SIZE)

    return update


def measure(context: Context, rounds: int, encodings: bool = False) -> dict[str, Any]:
    """
    Measure all kinds in turn, or all encodings.

    Returns the milliseconds of each, their ratios to the first, and for encodings the peak memory in MiB.
    """
    kinds = list(ENCODINGS if encodings else KINDS)
    times = in_turn({kind: cpu_milliseconds(make_update(kind, context.seed)) for kind in kinds}, rounds, warm_up=1)
    ratios = {kind: ratio(times[kind], times[kinds[0]]) for kind in kinds}
    result: dict[str, Any] = {"milliseconds": medians(times), "ratios": ratios, "rounds": times}
    if encodings:
        result["peak_memory"] = {kind: peak_memory(make_update, kind, context.seed) for kind in kinds}
    return result


def rows(variants: Variants) -> Iterator[Row]:
    """A kind a row, except that with which the others are compared."""
    for name, runs in variants.items():
        base, *others = runs[0].result["milliseconds"]
        times = {kind: f"{median(values(runs, 'milliseconds', kind)):,.0f} ms" for kind in (base, *others)}
        for kind in others:
            share = median(values(runs, "ratios", kind))
            note = ""
            if "peak_memory" in runs[0].result:
                ours, theirs = (median(values(runs, "peak_memory", side)) for side in (kind, base))
                note = f"memory {ours:,.0f} MiB, {ours / theirs:.2f} of {theirs:,.0f}"
            yield compared(f"update, {name}: {kind}", times[kind], f"ours, {base} in float32", times[base], share, note)


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
