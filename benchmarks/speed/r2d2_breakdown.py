"""
The cost of each part of a trajectory's way from an actor on Ray into the replay, for 40 steps of 8 environments.

Acting includes the environments, with Breakout its emulator, too. Fetching weights maps shared memory on the same machine;
loading them copies them.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import ray
from gymnasium import spaces
from stable_baselines3.common.atari_wrappers import AtariWrapper

from benchmarks.environments import MaskedCartPole
from benchmarks.runner import Benchmark, Context, Options, Row, Settings, Variants, values
from sb3_attn import R2D2
from sb3_attn.distributed import connect
from sb3_attn.distributed.codec import pack, unpack
from sb3_attn.r2d2.actor import Actor, copy_parameters
from sb3_attn.r2d2.trajectory import insert_trajectory

N_STEPS, N_ENVS = 40, 8


class Ball(gym.Env):
    """Frames of 84 x 84 pixels, black except for a flying square of 4 x 4; episodes of 1000 steps."""

    observation_space = spaces.Box(0, 255, (84, 84, 1), np.uint8)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.integers(80, size=2), self.np_random.integers(1, 4, size=2)
        self.n_steps = 0
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        self.position = (self.position + self.velocity) % 80
        return self._frame(), 0.0, self.n_steps == 1000, False, {}

    def _frame(self) -> np.ndarray:
        frame = np.zeros((84, 84, 1), np.uint8)
        y, x = self.position
        frame[y : y + 4, x : x + 4] = 255
        return frame


def breakout() -> gym.Env:
    """Breakout as R2D2 sees it: frames of 84 x 84 pixels, one of four shown."""
    gym.register_envs(ale_py)
    return AtariWrapper(gym.make("BreakoutNoFrameskip-v4"), terminal_on_life_loss=False, clip_reward=False)


LSTM_128 = dict(core_kwargs=dict(hidden_size=128), encoder_arch=[64], net_arch=[128])

#: Policy, environment and ``policy_kwargs`` for each kind of observations; the default is an LSTM of 512 behind NatureCNN
KINDS: dict[str, tuple[str, Callable[[], gym.Env], dict[str, Any]]] = {
    "vectors (CartPole, LSTM 128)": ("MlpPolicy", partial(MaskedCartPole, full_windows=True), LSTM_128),
    "frames (a flying ball, LSTM 512)": ("CnnPolicy", Ball, {}),
    "frames (Breakout, LSTM 512)": ("CnnPolicy", breakout, {}),
}


class Responder:
    """The other side of a call on Ray, which holds a packed trajectory."""

    def __init__(self, packed: bytes) -> None:
        self.packed = packed

    def nothing(self) -> None:
        pass

    def give(self) -> bytes:
        return self.packed

    def fetch(self, refs: list[ray.ObjectRef]) -> float:
        """Milliseconds to get an object from Ray's store: on the same machine shared memory, which is not copied."""
        return timed(ray.get, refs)[0][0]


def timed(function: Callable[[Any], Any], arguments: Iterable[Any]) -> tuple[list[float], list[Any]]:
    """Call a function with one argument after the other; returns the milliseconds and the result of each call."""
    times, results = [], []
    for argument in arguments:
        start = time.perf_counter()
        results.append(function(argument))
        times.append(1000 * (time.perf_counter() - start))
    return times, results


def settings(options: Options) -> Settings:
    """A variant for each kind of observations."""
    return {kind: {"kind": kind, "n_trajectories": options.scaled(50)} for kind in KINDS}


def measure(context: Context, kind: str, n_trajectories: int) -> dict[str, Any]:
    """Measure each part with some trajectories; returns median milliseconds of each part, and sizes in bytes."""
    policy, env, policy_kwargs = KINDS[kind]
    actors: dict[str, Any] = dict(n_actors=1, envs_per_actor=N_ENVS, rollout_length=N_STEPS)
    model = R2D2(policy, env, buffer_size=20_000, policy_kwargs=policy_kwargs, seed=context.seed, device="cpu", **actors)

    times: dict[str, list[float]] = {}
    actor = Actor(model.actor_spec(), 0)
    again = [None] * n_trajectories
    times["copy weights out of the network"], copies = timed(lambda _: copy_parameters(model.q_net, 0), again)
    weights = copies[-1]
    times["load weights into an actor"], _ = timed(actor.load, [weights] * n_trajectories)
    times["act"], trajectories = timed(actor.collect, [N_STEPS] * n_trajectories)
    times["pack"], packed = timed(pack, trajectories)
    times["unpack"], unpacked = timed(unpack, packed)
    times["insert into the replay"], _ = timed(partial(insert_trajectory, model.replay_buffer), unpacked)
    actor.close()

    with connect(1, "the benchmark"):
        responder: Any = ray.remote(num_cpus=1)(Responder).remote(packed[-1])
        ray.get(responder.nothing.remote())  # it has started
        times["call that does nothing"], _ = timed(lambda _: ray.get(responder.nothing.remote()), again)
        times["call that returns a packed trajectory"], _ = timed(lambda _: ray.get(responder.give.remote()), again)
        for _ in again:  # one by one, since the store has room for few
            put_times, refs = timed(ray.put, [weights])
            times.setdefault("put weights", []).extend(put_times)
            times.setdefault("fetch weights", []).append(ray.get(responder.fetch.remote(refs)))
        ray.kill(responder)
    return {
        "milliseconds": {part: median(values) for part, values in times.items()},
        "bytes": {
            "trajectory": int(median(trajectory.n_bytes for trajectory in trajectories)),
            "trajectory, packed": int(median(map(len, packed))),
            "weights": sum(array.nbytes for array in weights.arrays.values()),
        },
    }


def rows(variants: Variants) -> Iterator[Row]:
    """A part a row and a kind of observations a column, with medians over rounds."""
    first = next(iter(variants.values()))[0]
    for quantity, unit, form in (("milliseconds", "ms", ",.2f"), ("bytes", "bytes", ",.0f")):
        for part in first.result[quantity]:
            cells = {kind: format(median(values(runs, quantity, part)), form) for kind, runs in variants.items()}
            yield {f"{N_STEPS} steps x {N_ENVS} environments": f"{part}, {unit}", **cells}


BENCHMARK = Benchmark(settings, measure, rows, seeds=3, alone=True)
