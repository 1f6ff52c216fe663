"""
RecurrentDQN on a GPU with R2D2's sizes: an update over images against the same layers in plain torch, and acting.

64 windows of 40 steps of burn-in and 80 trained ones, 84 x 84 pixels, NatureCNN and an LSTM of 512.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, values
from benchmarks.speed.image_update import RandomImages
from benchmarks.speed.turns import in_turn, medians, ratio
from sb3_attn import FrozenEncoder, RecurrentDQN, VecFrozenFeatures

BATCH_SIZE, BURN_IN, TRACE, HIDDEN_SIZE, N_STEPS = 64, 40, 80, 512, 1_000
CORE = {"hidden_size": HIDDEN_SIZE}
#: Policy, its arguments, and the trained steps of a window; all windows are as long
KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "float32": ("CnnPolicy", {"core_kwargs": CORE}, TRACE),
    "bf16": ("CnnPolicy", {"core_kwargs": CORE | {"bf16": True}, "bf16_features": True}, TRACE),
    "frozen": ("FrozenFeaturesPolicy", {"core_kwargs": CORE}, 8),
}


def missing() -> str | None:
    return None if th.cuda.is_available() else "a GPU that torch.cuda can use"


def settings(options: Options) -> Settings:
    """A variant for the update, and one for acting in each number of environments."""
    variants: Settings = {"update": {"n_envs": None, "rounds": options.scaled(20)}}
    for n_envs in (1, 8, 64):
        variants[f"predict, {n_envs} environments"] = {"n_envs": n_envs, "rounds": options.scaled(20)}
    return variants


def make_model(kind: str, seed: int, device: str, n_envs: int = 1) -> RecurrentDQN:
    """A model that has made no update."""
    policy, policy_kwargs, n_trained = KINDS[kind]
    env: VecEnv = DummyVecEnv([RandomImages] * n_envs)
    if policy == "FrozenFeaturesPolicy":
        env = VecFrozenFeatures(env, FrozenEncoder.random(env, n_images=100))
    return RecurrentDQN(
        policy,
        env,
        buffer_size=N_STEPS * n_envs,
        learning_starts=N_STEPS,
        batch_size=BATCH_SIZE,
        trace_length=n_trained,
        burn_in_length=BURN_IN + TRACE - n_trained,
        policy_kwargs=policy_kwargs,
        seed=seed,
        device=device,
    )


def plain_update() -> Callable[[], None]:
    """The least that such an update computes: features and memories of both networks, and the gradient of one of them."""
    space = spaces.Box(0, 255, (1, 84, 84), np.uint8)
    nets = [nn.ModuleList([cnn := NatureCNN(space), nn.LSTM(cnn.features_dim, HIDDEN_SIZE)]).cuda() for _ in range(2)]
    images = th.randint(256, (BURN_IN + TRACE + 1, BATCH_SIZE, 1, 84, 84), dtype=th.uint8, device="cuda")

    def unroll(net: nn.ModuleList, images: th.Tensor, state: Any = None) -> Any:
        features = net[0](images.flatten(0, 1).float() / 255).unflatten(0, (-1, BATCH_SIZE))
        return net[1](features, state)

    def update() -> None:
        with th.no_grad():
            states = [unroll(net, images[:BURN_IN])[1] for net in nets]
            unroll(nets[1], images[BURN_IN:], states[1])
        nets[0].zero_grad()
        unroll(nets[0], images[BURN_IN:], states[0])[0].sum().backward()

    return update


def milliseconds(function: Callable[[], object]) -> Callable[[], float]:
    """Make a side that calls a function and returns the milliseconds until the GPU has finished."""

    def side() -> float:
        th.cuda.synchronize()
        start = time.perf_counter()
        function()
        th.cuda.synchronize()
        return 1000 * (time.perf_counter() - start)

    return side


def predictions(model: RecurrentDQN, n_envs: int) -> Callable[[], object]:
    """A greedy action in each environment."""
    obs = np.random.default_rng(0).integers(256, size=(n_envs, 1, 84, 84), dtype=np.uint8)
    _, state = model.predict(obs, deterministic=True)
    episode_starts = np.zeros(n_envs, dtype=bool)
    return lambda: model.predict(obs, state, episode_starts, deterministic=True)


def measure(context: Context, n_envs: int | None, rounds: int) -> dict[str, Any]:
    """Measure all sides in turn; returns milliseconds of each, and the ratio to the first."""
    if n_envs is None:
        sides: dict[str, Callable[[], object]] = {"plain torch": plain_update()}
        for kind in KINDS:
            model = make_model(kind, context.seed, "cuda").learn(N_STEPS)
            sides[kind] = partial(model.train, 1, BATCH_SIZE)
            sides[f"{kind}, sampling alone"] = partial(model.replay_buffer.sample, BATCH_SIZE)
    else:
        sides = {
            device: predictions(make_model("float32", context.seed, device, n_envs), n_envs) for device in ("cuda", "cpu")
        }
    times = in_turn({name: milliseconds(side) for name, side in sides.items()}, rounds, warm_up=3)
    (first, *_) = times
    return {
        "gpu": th.cuda.get_device_name(),
        "milliseconds": medians(times),
        "ratios": {name: ratio(times[name], times[first]) for name in times},
        "rounds": times,
    }


def rows(variants: Variants) -> Iterator[Row]:
    """A side a row."""
    for name, runs in variants.items():
        for side in runs[0].result["milliseconds"]:
            yield {
                "on a GPU": name,
                "side": side,
                "time": f"{median(values(runs, 'milliseconds', side)):.2f} ms",
                "ratio to the first": f"{median(values(runs, 'ratios', side)):.2f}",
                "GPU": runs[0].result["gpu"],
            }


BENCHMARK = Benchmark(settings, measure, rows, seeds=1, alone=True, missing=missing)
