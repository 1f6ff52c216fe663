"""What each part of R2D2's way costs that a trajectory goes from an actor on Ray into the replay."""

import time
from collections.abc import Callable, Iterable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
import ray
from gymnasium import spaces
from stable_baselines3.common.atari_wrappers import AtariWrapper

from benchmarks.reference import MaskedCartPole
from sb3_attn import R2D2
from sb3_attn.distributed import connect
from sb3_attn.distributed.codec import pack, unpack
from sb3_attn.r2d2.actor import Actor, copy_parameters
from sb3_attn.r2d2.trajectory import insert_trajectory

N_STEPS, N_ENVS = 40, 8


class Ball(gym.Env):
    """A frame of 84 x 84 pixels, black but for a square of 4 x 4 that flies about; episodes of 1000 steps."""

    observation_space = spaces.Box(0, 255, (84, 84, 1), np.uint8)
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.integers(80, size=2), self.np_random.integers(1, 4, size=2)
        self.n_steps = 0
        return self._frame(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Let the ball fly on."""
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


class Kind(NamedTuple):
    """
    A kind of observations.

    :param policy: the policy for it
    :param env: makes an environment
    :param policy_kwargs: arguments of the policy; R2D2's defaults are an LSTM of 512 behind NatureCNN
    """

    policy: str
    env: Callable[[], gym.Env]
    policy_kwargs: dict[str, Any]


KINDS = {
    "vectors (CartPole, LSTM 128)": Kind(
        "MlpPolicy",
        partial(MaskedCartPole, full_windows=True),
        dict(core_kwargs=dict(hidden_size=128), encoder_arch=[64], net_arch=[128]),
    ),
    "frames (a flying ball, LSTM 512)": Kind("CnnPolicy", Ball, {}),
    "frames (Breakout, LSTM 512)": Kind("CnnPolicy", breakout, {}),
}


class Peer:
    """
    The other side of a call on Ray.

    :param packed: what it gives when it is asked to
    """

    def __init__(self, packed: bytes) -> None:
        self.packed = packed

    def nothing(self) -> None:
        """Do nothing."""

    def give(self) -> bytes:
        """A packed trajectory."""
        return self.packed

    def fetch(self, refs: list[ray.ObjectRef]) -> float:
        """Milliseconds that it takes to get hold of what was put: on the same machine shared memory, which is not copied."""
        return timed(ray.get, refs)[0][0]


def timed(function: Callable[[Any], Any], arguments: Iterable[Any]) -> tuple[list[float], list[Any]]:
    """
    Call a function again and again.

    :param function: what to call
    :param arguments: an argument for each call
    :return: milliseconds of each call, and what each returned
    """
    times, results = [], []
    for argument in arguments:
        start = time.perf_counter()
        results.append(function(argument))
        times.append(1000 * (time.perf_counter() - start))
    return times, results


def parts_settings(scale: float) -> dict[str, dict[str, Any]]:
    """
    The arguments of :func:`parts` for each kind of observations.

    :param scale: share of the 50 trajectories
    """
    return {kind: {"kind": kind, "n_trajectories": max(int(scale * 50), 1)} for kind in KINDS}


def parts(seed: int, kind: str, n_trajectories: int) -> dict[str, Any]:
    """
    Measure each part.

    :param seed: seed of the run
    :param kind: a key of :data:`KINDS`
    :param n_trajectories: number of trajectories, each of :data:`N_STEPS` steps of :data:`N_ENVS` environments
    :return: median milliseconds of each part, and sizes in bytes
    """
    policy, env, policy_kwargs = KINDS[kind]
    model = R2D2(
        policy,
        env,
        buffer_size=20_000,
        n_actors=1,
        envs_per_actor=N_ENVS,
        rollout_length=N_STEPS,
        policy_kwargs=policy_kwargs,
        seed=seed,
        device="cpu",
    )

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
        peer: Any = ray.remote(num_cpus=1)(Peer).remote(packed[-1])
        ray.get(peer.nothing.remote())  # it has started
        times["call that does nothing"], _ = timed(lambda _: ray.get(peer.nothing.remote()), again)
        times["call that returns a packed trajectory"], _ = timed(lambda _: ray.get(peer.give.remote()), again)
        for _ in again:  # one by one, since the store has room for few
            put_times, refs = timed(ray.put, [weights])
            times.setdefault("put weights", []).extend(put_times)
            times.setdefault("fetch weights", []).append(ray.get(peer.fetch.remote(refs)))
        ray.kill(peer)
    return {
        "milliseconds": {part: median(values) for part, values in times.items()},
        "bytes": {
            "trajectory": int(median(trajectory.n_bytes for trajectory in trajectories)),
            "trajectory, packed": int(median(map(len, packed))),
            "weights": sum(array.nbytes for array in weights.arrays.values()),
        },
    }


def parts_report(runs: list[dict[str, Any]]) -> str:
    """The medians over rounds as a Markdown table, a part a row and a kind of observations a column."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_kind.setdefault(run["network"], []).append(run)
    lines = [f"| {N_STEPS} steps x {N_ENVS} environments | {' | '.join(by_kind)} |", "|---" * (len(by_kind) + 1) + "|"]
    for measure, unit, digits in (("milliseconds", "ms", 2), ("bytes", "bytes", 0)):
        for part in runs[0][measure]:
            cells = [median(row[measure][part] for row in rows) for rows in by_kind.values()]
            lines.append(f"| {part}, {unit} | {' | '.join(f'{cell:,.{digits}f}' for cell in cells)} |")
    return "\n".join(lines)
