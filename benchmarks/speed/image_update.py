"""An update of RecurrentDQN over images of 84 x 84 pixels: trained convolutions, in bfloat16, and frozen features."""

from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, compared, values
from benchmarks.speed.turns import cpu_milliseconds, in_turn, medians, ratio
from sb3_attn import FrozenEncoder, RecurrentDQN, VecFrozenFeatures

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
    """One variant, with all kinds."""
    return {f"{BATCH_SIZE} windows of {LENGTH} frames": {"rounds": options.scaled(7)}}


def make_model(kind: str, seed: int) -> RecurrentDQN:
    """A model with a filled replay, and no update so far."""
    policy, policy_kwargs, lengths = KINDS[kind]
    env: VecEnv = DummyVecEnv([RandomImages])
    if policy == "FrozenFeaturesPolicy":
        env = VecFrozenFeatures(env, FrozenEncoder.random(env, n_images=100))
    model = RecurrentDQN(
        policy, env, 1e-3, 1000, N_STEPS, BATCH_SIZE, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **lengths
    )
    return model.learn(N_STEPS)


def measure(context: Context, rounds: int) -> dict[str, Any]:
    """Measure all kinds in turn; returns milliseconds of each, and the ratio to the trained convolutions in float32."""
    models = {kind: make_model(kind, context.seed) for kind in KINDS}
    updates = {kind: cpu_milliseconds(partial(model.train, 1, BATCH_SIZE)) for kind, model in models.items()}
    times = in_turn(updates, rounds, warm_up=1)
    return {
        "milliseconds": medians(times),
        "ratios": {kind: ratio(times[kind], times["trained"]) for kind in KINDS},
        "rounds": times,
    }


def rows(variants: Variants) -> Iterator[Row]:
    """A kind a row, except that with which the others are compared."""
    for name, runs in variants.items():
        times = {kind: f"{median(values(runs, 'milliseconds', kind)):,.0f} ms" for kind in KINDS}
        base, *others = KINDS
        for kind in others:
            share = median(values(runs, "ratios", kind))
            yield compared(f"update, {name}: {kind}", times[kind], f"ours, {base} in float32", times[base], share)


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True)
